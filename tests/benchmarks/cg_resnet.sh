#!/usr/bin/env bash
# Conjugate gradients on all parameters of a resnet18 with 1,000 fit rows, plain and preconditioned by EKFAC (results/curvature.md).
#   bash tests/benchmarks/cg_resnet.sh OUT [RUN]     RUN: a run folder of resnet18 on CIFAR-10N; an hour on one core
# METHODS="cg cg-ekfac" solves by these alone, DAMPING=0.005 adds so much to every eigenvalue (default: l2 alone).
. "$(dirname "$0")/opening.sh"
data=${DATA:-$here/../shared/data/cifar10n-small/manifest.parquet}
[ -f "$data" ] || { echo "skipped: no $data (the data set is not redistributable)" >&2; exit 0; }
installed ""
mkdir -p "$1" && run=${2:+$(cd "$2" && pwd)} && cd "$1" && cp -f "$data" train.parquet
[ -n "$run" ] || { influence retrain train.parquet --model resnet18 --epochs 12 --augment flip-shift -o RUN; run=RUN; }

# each alone on a store of its own: seconds of the clock and of the processor, iterations and residual
read -ra methods <<< "${METHODS:-ekfac cg-ekfac lissa-ekfac cg lissa}"
for method in "${methods[@]}"; do
  set=()
  case $method in *-ekfac) set=(--set "${method%-ekfac}.preconditioner=ekfac" --set ekfac.fit_sample=1000) ;; esac
  case $method in cg*) set+=(--set cg.tolerance=0.05 --set cg.max_iterations=300) ;; esac
  name=${method%-ekfac}
  [ -z "${DAMPING:-}" ] || set+=(--set "$name.damping=$DAMPING")
  /usr/bin/env time -f "$method: %e s, processor %U s, %M kB" influence score train.parquet --checkpoint "$run" \
    --method "$name" --set "$name.fit_sample=1000" "${set[@]}" --store "store-$method" -o "$method.parquet" \
    2>&1 | tee "$method.log"
done
python - "${methods[@]}" <<'PY'
import json, sys
import pyarrow.parquet as pq
for name in sys.argv[1:]:
    origin = json.loads(pq.read_schema(f"{name}.parquet").metadata[b"influence"])
    facts = origin["curvature"][name.removesuffix("-ekfac")]
    print(name, {k: facts[k] for k in ("iterations", "depth", "repeats", "series_scale", "damping", "residual") if k in facts})
PY
influence evaluate "${methods[@]/%/.parquet}" --budget 5% --format table
