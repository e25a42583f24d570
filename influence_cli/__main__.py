"""``python -m influence_cli`` is ``influence``."""

from influence_cli.cli.main import main

main()
