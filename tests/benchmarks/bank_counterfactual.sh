#!/usr/bin/env bash
# Do scores foretell retraining?  UCI Bank Marketing, 18,292 rows, logistic regression at its optimum: LDS over 100
# half subsets, leave-one-out of 50 rows, removal curves and brittleness of 50 target rows; and the same with a fifth
# of the training labels flipped.
#   bash tests/benchmarks/bank_counterfactual.sh OUT        under five minutes on one core
. "$(dirname "$0")/opening.sh"
data=${DATA:-$here/../shared/data/bank/manifest.parquet}
[ -f "$data" ] || { echo "skipped: no $data (the data set is not part of the repository)" >&2; exit 0; }
installed ""
mkdir -p "$1" && cd "$1" && cp "$data" bank.parquet
export OMP_NUM_THREADS=1

for label in label label_flip20; do
  echo "== labels: $label"
  influence retrain bank.parquet --label "$label" --model linear --optimizer lbfgs --weight-decay 1e-3 -o "RUN-$label"
  influence score bank.parquet --label "$label" --checkpoint "RUN-$label" --precision fp64 \
    --method exact --method ip --method loss --method random -o "scores-$label.parquet"
  influence evaluate "scores-$label.parquet" --lds 100 --loo 50 --removal 5%,10%,20% --brittleness 50 --format table
done
