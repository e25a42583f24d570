#!/usr/bin/env bash
# How well scores predict what retraining on half of the rows does, on a network of two layers (results/curvature.md).
#   bash tests/benchmarks/lds.sh OUT     400 trainings of a small network, ten minutes; run again, it goes on
. "$(dirname "$0")/opening.sh"
data=${DATA:-$here/../shared/data/digits-noisy/manifest.parquet}
[ -f "$data" ] || { echo "skipped: no $data (the data set is not redistributable)" >&2; exit 0; }
installed ""
mkdir -p "$1" && cd "$1" && cp -f "$data" train.parquet
[ -f RUN/run.json ] || influence retrain train.parquet --model mlp:32 --epochs 60 -o RUN

# every solve to its end, so that nothing but the curvature and its damping (-0.005: so much) tells them apart
read -ra methods <<< "${METHODS:-ip exact ekfac cg cg-ekfac cg-0.005 cg-0.05 lissa lissa-ekfac}"
for method in "${methods[@]}"; do
  name=${method%%-*} set=()
  case $method in
    ekfac) ;;
    *-ekfac) set=(--set "$name.preconditioner=ekfac") ;;
    *-0.*) set=(--set "$name.damping=${method#*-}") ;;
  esac
  case $method in cg*) set+=(--set cg.tolerance=1e-4) ;; esac
  [ -f "$method.parquet" ] ||
    influence score train.parquet --checkpoint RUN --method "$name" "${set[@]}" -o "$method.parquet" 2>&1 | tee "$method.log"
done
for method in "${methods[@]}"; do  # the first trains, the others find its trainings in the store
  influence evaluate "$method.parquet" --checkpoint RUN --lds "${SUBSETS:-100}" --seeds "${SEEDS:-4}" --format table \
    > "$method.lds" 2>> lds.log
  echo "== $method"
  cat "$method.lds"
done
