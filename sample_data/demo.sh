#!/usr/bin/env bash
# The whole pipeline on digits with planted wrong labels: sets up its own environment, a minute once installed.
set -euo pipefail
cd "$(dirname "$0")"
. ../.ci/setup
setup ""
run() { echo; echo "\$ $*"; "$@"; }

run influence grads --method ip-ensemble --method ip -o out/grads.parquet
run influence score out/grads.parquet --method ip-ensemble --method ip --method loss -o out/scores.parquet
run influence evaluate out/scores.parquet --budget 15% --format table
run influence curate out/scores.parquet --budget 15% -o out/trimmed.parquet
run influence curate out/scores.parquet --budget 15% --by score_loss -o out/trimmed-by-loss.parquet
run influence curate out/scores.parquet --budget 15% --by score_loss --action relabel -o out/relabelled-by-loss.parquet
run influence retrain out/trimmed.parquet --against manifest.parquet --arm loss=out/trimmed-by-loss.parquet \
  --arm loss-relabel=out/relabelled-by-loss.parquet --seeds 5 -o out/compared
