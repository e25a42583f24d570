#!/usr/bin/env bash
# The tables of results/cifar10n_small.md: CIFAR-10N, 5,000 rows, human labels, 39 % wrong; resnet18.
#   bash tests/benchmarks/cifar10n_small.sh OUT        under an hour on two cores
. "$(dirname "$0")/opening.sh"
data=${DATA:-$here/../shared/data/cifar10n-small/manifest.parquet}
[ -f "$data" ] || { echo "skipped: no $data (the data set is not redistributable)" >&2; exit 0; }
installed ""
mkdir -p "$1" && cd "$1" && cp "$data" train.parquet

influence retrain train.parquet --model resnet18 --epochs 12 --augment flip-shift -o RUN
influence grads train.parquet --checkpoint RUN --method ip-ensemble --method ip -o grads.parquet
influence score grads.parquet --method ip-ensemble --method ip --method loss -o scored.parquet
influence evaluate scored.parquet --budget 20% --format table
influence curate scored.parquet --budget 20% -o clean.parquet
influence curate scored.parquet --budget 20% --by score_loss -o by-loss.parquet
influence retrain clean.parquet --against train.parquet --arm loss=by-loss.parquet \
  --model resnet18 --epochs 12 --augment flip-shift --seeds 3 -o COMPARED
