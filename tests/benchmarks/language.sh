#!/usr/bin/env bash
# The figures of results/language.md: a small GPT on Tiny Shakespeare, 1,432 speeches, with curation against controls.
#   bash tests/benchmarks/language.sh OUT        about half an hour on two cores
. "$(dirname "$0")/opening.sh"
data=${DATA:-$here/../shared/data/tinyshakespeare/manifest.parquet}
[ -f "$data" ] || { echo "skipped: no $data" >&2; exit 0; }
installed ""
mkdir -p "$1" && cd "$1" && cp "$data" train.parquet
model=${MODEL:-gpt:2x64}

influence retrain train.parquet --model "$model" -o RUN
influence score train.parquet --checkpoint RUN --method ip --method loss -o scores.parquet
python - <<'PY'
import pyarrow.parquet as pq
rows = pq.read_table("train.parquet")
target = [k for k, split in enumerate(rows.column("split").to_pylist()) if split == "val"]
pq.write_table(rows.take(target[:1]), "one.parquet")
PY
influence score train.parquet --checkpoint RUN --target one.parquet --method ip -o one-speech.parquet
influence curate scores.parquet --budget 5% -o clean.parquet
influence retrain train.parquet --scores scores.parquet --by score_ip_utility --budget 5% --model "$model" --seeds 3 -o ARMS
python - <<'PY'
import math
from collections import Counter
import pyarrow.parquet as pq
rows = pq.read_table("train.parquet").to_pylist()
train, test = ("\n\n".join(r["text"] for r in rows if r["split"] == s) for s in ("train", "test"))
one, two, letters = Counter(train), Counter(zip(train, train[1:])), set(train + test)
uni = -sum(math.log((one[c] + 1) / (len(train) + len(letters))) for c in test) / len(test)
bi = -sum(math.log((two[a, b] + 1) / (one[a] + len(letters))) for a, b in zip(test, test[1:])) / (len(test) - 1)
print(f"test, nats a character: unigrams {uni:.3f}, bigrams {bi:.3f}")
PY
