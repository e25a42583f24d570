#!/usr/bin/env bash
# Slips in the code that the tests notice: a seeded sample of four parts of the package.
#   bash tests/benchmarks/mutants.sh OUT [--count 300] [--part store]     OUT/mutants.json lists each with what ended it
. "$(dirname "$0")/opening.sh"
installed "[test]"
mkdir -p "$1" && out=$(cd "$1" && pwd)
shift
cd "$here"
export OMP_NUM_THREADS=1 HYPOTHESIS_STORAGE_DIRECTORY="$out/hypothesis"
exec python -m tests.hardening.mutants "$@" -o "$out/mutants.json"
