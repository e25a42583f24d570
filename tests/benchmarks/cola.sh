#!/usr/bin/env bash
# The tables of results/cola.md: CoLA with a small encoder, accuracy and fairness by changed texts, and what trimming does.
#   bash tests/benchmarks/cola.sh OUT ENCODER     ENCODER: folder of all-MiniLM-L6-v2; about two hours on one core
. "$(dirname "$0")/opening.sh"
data=${DATA:-$here/../shared/data/cola/manifest.parquet}
[ -f "$data" ] || { echo "skipped: no $data (the data set is not redistributable)" >&2; exit 0; }
[ -f "${2:-}/config.json" ] || { echo "skipped: give the folder of an encoder" >&2; exit 0; }
encoder=$(cd "$2" && pwd)
installed "[text]"
mkdir -p "$1" && cd "$1" && cp "$data" train.parquet && cp "$(dirname "$data")/classes.json" .
ln -sfn "$encoder" encoder
timed() { local start=$SECONDS; "$@"; echo "$((SECONDS - start)) s: $*" >> wall.txt; }

timed influence retrain train.parquet --model hf:encoder --amp bf16 -o RUN
timed influence grads train.parquet --checkpoint RUN --method ip --method ip-ensemble --method ekfac \
  --objective utility --objective flip-fairness -o grads.parquet
for method in ip ip-ensemble ekfac; do
  timed influence score grads.parquet --method $method --objective utility --objective flip-fairness -o $method.parquet
  influence curate $method.parquet --by score_utility --by score_flip-fairness --combine ranksum --budget 5% \
    -o trimmed-$method.parquet
done
influence score grads.parquet --method loss -o loss.parquet
influence curate loss.parquet --budget 5% -o trimmed-loss.parquet
timed influence retrain trimmed-ip.parquet --against train.parquet --arm ip-ensemble=trimmed-ip-ensemble.parquet \
  --arm ekfac=trimmed-ekfac.parquet --arm loss=trimmed-loss.parquet --model hf:encoder --amp bf16 --seeds 3 \
  --flips words --plot pareto.png --report compared.html --json -o COMPARED > compared.json
