#!/usr/bin/env bash
# What exact scores cost on this machine, against training, inference and other libraries: one table in Markdown.
#   bash tests/benchmarks/engines.sh [OPTIONS of engines.py] > table.md     under 40 minutes on two cores
# PEERS   where kronfluence and captum are, or are to be installed (default: .venv/peers in the checkout)
. "$(dirname "$0")/opening.sh"
. "$here/.ci/setup"
setup "" >&2
PEERS=${PEERS:-$here/.venv/peers}
if ! "$PEERS/bin/python" -c 'import captum, kronfluence, timm' 2>/dev/null; then
  "$VENV/bin/python" -m venv "$PEERS"
  "$PEERS/bin/python" -m pip install --quiet --disable-pip-version-check kronfluence captum timm >&2
fi
exec "$VENV/bin/python" "$here/tests/benchmarks/engines.py" --peers-python "$PEERS/bin/python" "$@"
