#!/usr/bin/env bash
# The tables of results/epochs_and_folds.md: wrong labels found by what training noted of its rows, and out of fold.
#   bash tests/benchmarks/epochs_and_folds.sh OUT [digits|cifar]     about 10 minutes on two cores
. "$(dirname "$0")/opening.sh"
data=${DATA:-$here/../shared/data}
[ -d "$data" ] || { echo "skipped: no $data (the data sets are not redistributable)" >&2; exit 0; }
installed ""
mkdir -p "$1" && cd "$1"
methods=(aum el2n forget data-maps confident oof-loss oof-margin ip self-tracin loss)

# detect NAME MANIFEST RETRAIN...: train with records and folds, score by every method, and hold them against the truth
detect() {
  name=$1 manifest=$2
  shift 2
  influence retrain "$manifest" "$@" --folds 5 -o "$name"
  influence score "$manifest" --checkpoint "$name" "${methods[@]/#/--method=}" -o "$name.parquet"
  influence evaluate "$name.parquet" --budget 10% --reference loss --format table | tee "$name.md"
}

only=${2:-all}
[ "$only" = cifar ] || detect digits "$data/digits-noisy/manifest.parquet" --model mlp:128 --epochs 30
[ "$only" = cifar ] || detect digits-long "$data/digits-noisy/manifest.parquet" --model mlp:128 --epochs 200
[ "$only" = digits ] ||
  detect cifar "$data/cifar10n-small/manifest.parquet" --model test_resnet --epochs 12 --augment flip-shift
