#!/usr/bin/env bash
# Faults tried and survived: crashes, full disks, other runs on the same store, damage, bad input, security, numerics.
#   bash tests/benchmarks/hardening.sh OUT [PART ...] [--share 0.3]     full disks take root; all of it takes hours
# OUT/table.md is the table; what was wrong is said as it is found, and the exit code is 1 then.
. "$(dirname "$0")/opening.sh"
installed "[test]"
mkdir -p "$1" && out=$(cd "$1" && pwd)
shift
cd "$here"
exec python -m tests.hardening "$@" -o "$out/table.md"
