#!/usr/bin/env bash
# Set up an environment and run the tests, in a process a core; with arguments for pytest in one, unless -n says more.
set -euo pipefail
cd "$(dirname "$0")/.."
. .ci/setup
setup "[test]"
unset PYTHONDONTWRITEBYTECODE  # tests start processes: none should compile the package again
[ $# -gt 0 ] || set -- --numprocesses auto --maxprocesses 8 --dist worksteal
python -m pytest "$@"
