#!/usr/bin/env bash
# The whole pipeline on digits with planted wrong labels: sets up its own environment, some two minutes once installed.
set -euo pipefail
cd "$(dirname "$0")"
. ../.ci/setup
setup ""
run() { echo; echo "\$ $*"; "$@"; }

run influence grads -o out/grads.parquet
run influence score out/grads.parquet --method auto --method loss --method ip -o out/scores.parquet
run influence evaluate out/scores.parquet --budget 15% --format table
run influence curate out/scores.parquet --budget auto -o out/trimmed.parquet
run influence curate out/scores.parquet --budget auto --by score_ip_utility -o out/trimmed-by-ip.parquet
run influence retrain out/trimmed.parquet --against manifest.parquet --arm ip=out/trimmed-by-ip.parquet --seeds 10 \
  -o out/compared
