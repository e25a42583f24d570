#!/usr/bin/env bash
# Canaries beside the truth: wrong labels planted in training, and how well every method there is finds them, against
# how well it finds the labels that are really wrong.  The digits of sample_data, and CIFAR-10N (5,000 rows, human
# labels, 39 % wrong; resnet18) where it is.
#   bash tests/benchmarks/canaries.sh OUT        a minute for the digits; CIFAR-10N a quarter of an hour on two cores
. "$(dirname "$0")/opening.sh"
data=${DATA:-$here/../shared/data/cifar10n-small/manifest.parquet}
installed "[report]"
mkdir -p "$1" && cd "$1"

measure() { # manifest, name, options of retrain
  local manifest=$1 name=$2
  shift 2
  echo "== $name"
  influence retrain "$manifest" --isolated "$@" -o "$name/RUN"
  influence retrain "$manifest" --isolated "$@" --canaries 5% --canaries-from "$name/RUN" -o "$name/PLANTED"
  influence score "$manifest" --isolated --checkpoint "$name/PLANTED" --method ip --method ip-ensemble --method loss \
    --method margin --method random --store "$name/store" -o "$name/all.parquet"
  influence score "$manifest" --isolated --checkpoint "$name/PLANTED" --params last --method exact --method ip \
    --set exact.max_parameters=6000 --store "$name/store" -o "$name/last.parquet"
  influence evaluate "$name/all.parquet" "$name/last.parquet" --isolated --store "$name/store" --format table \
    --report "$name/trust.html" --plot "$name/trust.png"
  influence evaluate "$name/all.parquet" "$name/last.parquet" --isolated --store "$name/store" -o "$name/trust.json"
}

cp "$here/sample_data/manifest.parquet" digits.parquet
measure digits.parquet digits --model mlp:128 --epochs 60
if [ -f "$data" ]; then
  cp "$data" cifar.parquet
  measure cifar.parquet cifar10n-small --model resnet18 --epochs 12 --augment flip-shift
else
  echo "skipped: no $data (the data set is not redistributable)" >&2
fi
