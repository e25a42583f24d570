#!/usr/bin/env bash
# Set up an environment and run the tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. .ci/setup
setup "[test]"
python -m pytest "$@"
