#!/usr/bin/env bash
# Scores of tokens by bif on the small GPT of language.sh: the last part of results/bif.md.
#   bash tests/benchmarks/bif_tokens.sh OUT        about 15 minutes of one processor
. "$(dirname "$0")/opening.sh"
data=${DATA:-$here/../shared/data/tinyshakespeare/manifest.parquet}
[ -f "$data" ] || { echo "skipped: no $data" >&2; exit 0; }
installed ""
mkdir -p "$1" && cd "$1" && cp "$data" train.parquet
[ -d RUN ] || influence retrain train.parquet --model gpt:2x64 -o RUN
python - <<'PY'
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
rows = pq.read_table("train.parquet")
text = [t if len(t) <= 240 else t[:240].rsplit(" ", 1)[0] for t in rows.column("text").to_pylist()]
rows = rows.set_column(rows.schema.get_field_index("text"), "text", pa.array(text))
train = np.flatnonzero(np.array(rows.column("split").to_pylist()) == "train")
some = np.concatenate([train[-30:], np.random.default_rng(0).choice(train[:-30], 30, replace=False)])
pq.write_table(rows.take(train), "all.parquet")
pq.write_table(rows.take(np.sort(some)), "some.parquet")
pq.write_table(rows.take([1440]), "question.parquet")  # Baptista to Petruchio, of the target rows
PY
influence score some.parquet --fit-rows all.parquet --target question.parquet --checkpoint RUN --method bif \
  --set bif.draws=60 --set bif.chains="${CHAINS:-2}" --tokens --top 4 --report tokens.html -o tokens.parquet
