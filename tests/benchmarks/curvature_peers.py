"""EKFAC scores of the same rows and weights by us and by other libraries, timed by turns (results/curvature.md).

    python tests/benchmarks/curvature_peers.py --checkpoint RUN [--kronfluence PYTHON --pydvl PYTHON --dattri PYTHON]

RUN is a run folder of an image model on CIFAR-10N, PYTHON an interpreter in which that library, torch, timm and
safetensors are installed; a library without one is left out.  Two comparisons: over all convolutions and the last
layer, which kronfluence alone can do, and over the last layer, since pyDVL and dattri have Kronecker factors of linear
layers alone: there all three are given a linear model on the features before that layer, one forward pass that is part
of their time, as dattri on the whole model takes 15 GB for 100 rows.  Every library runs in a process of its own,
warm, at the batch size given.  Each run of ours starts from the Parquet file, the run folder and an empty store, and
our checks of the model count.  The others do so too with ``--start files``: rows are read and decoded, the model is
built and its weights are loaded.  With ``--start memory``, the default, they have decoded rows and the model.  A run is
all of the rest: factors, the target's gradient, and a score for every train row (the mean over target rows).  Damping
and labels are set alike as far as they can be: no l2; over all layers a tenth of a layer's mean eigenvalue (both
defaults), over the last one ``DAMPING`` in all four; float32, and ``double`` is ours in float64, our default for few
parameters.  Times are seconds of the processor, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
DATA = Path(os.environ.get("DATA") or HERE.parents[2] / "shared/data/cifar10n-small/manifest.parquet")
DAMPING = 1e-3
LAST = "fc"  # of a timm resnet
Scores = Callable[[], Any]  # -> scores [rows]


# ---- in a process of its own -----------------------------------------------------------------------------------------


def ours(folder: Path, asked: argparse.Namespace) -> Scores:
    """The whole of ``score``."""
    import influence_cli

    precision = "fp64" if asked.library == "double" else "fp32"
    options = {"ekfac": {"l2": 0.0, "precision": precision, **({"damping": DAMPING} if asked.params == "last" else {})}}

    def scores() -> Any:
        with tempfile.TemporaryDirectory() as store:
            table = influence_cli.score(
                str(folder / "rows.parquet"), checkpoint=asked.checkpoint, method="ekfac", options=options,
                params=asked.params, store=store, batch_size=asked.batch, device="cpu",
            )  # fmt: skip
        return table.column("score").to_numpy()

    return scores


def kronfluence(folder: Path, asked: argparse.Namespace) -> Scores:
    """Gradients of the target rows aggregated before the pass over the rows."""
    import torch
    import torch.nn.functional as F
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Classify(Task):
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Any:
            logits = model(batch[0])
            labels = torch.multinomial(logits.detach().softmax(1), 1).flatten() if sample else batch[1]
            return F.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch: Any, model: Any) -> Any:
            return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    model, sets = opened(folder, asked)
    task, place = Classify(), tempfile.mkdtemp()
    analyzer = Analyzer(
        "peer", prepare_model(model, task), task, cpu=True, output_dir=place, disable_tqdm=True, disable_model_save=True
    )
    how = ScoreArguments(aggregate_query_gradients=True, damping_factor=DAMPING if asked.params == "last" else None)

    def scores() -> Any:
        train, target = sets()
        analyzer.fit_all_factors(
            "f", train, per_device_batch_size=asked.batch, factor_args=FactorArguments(strategy="ekfac"),
            overwrite_output_dir=True,
        )  # fmt: skip
        analyzer.compute_pairwise_scores(
            "s", "f", target, train, per_device_query_batch_size=asked.batch, per_device_train_batch_size=asked.batch,
            score_args=how, overwrite_output_dir=True,
        )  # fmt: skip
        return analyzer.load_pairwise_scores("s")["all_modules"][0].numpy()

    return scores


def pydvl(folder: Path, asked: argparse.Namespace) -> Scores:
    """Linear layers alone: the others are no parameters to it; a score for every pair, whose mean is taken."""
    from pydvl.influence.torch import EkfacInfluence
    from torch.utils.data import DataLoader

    model, sets = opened(folder, asked)

    def scores() -> Any:
        train, target = sets()
        fitted = EkfacInfluence(model, update_diagonal=True, hessian_regularization=DAMPING)
        fitted.fit(DataLoader(train, batch_size=asked.batch))
        factors = [fitted.influence_factors(*some).detach() for some in DataLoader(target, batch_size=asked.batch)]
        mean = sum(len(f) * f.mean(0, keepdim=True) for f in factors) / len(target)
        parts = [
            fitted.influences_from_factors(mean, *some, mode="up") for some in DataLoader(train, batch_size=asked.batch)
        ]
        return np.concatenate([part.detach().numpy()[0] for part in parts])

    return scores


def dattri(folder: Path, asked: argparse.Namespace) -> Scores:
    """Linear layers alone; a score for every pair, whose mean is taken; all target rows in one batch, its fastest."""
    import torch
    import torch.nn.functional as F
    from dattri.algorithm.influence_function import IFAttributorEKFAC
    from dattri.task import AttributionTask
    from torch.func import functional_call
    from torch.utils.data import DataLoader

    model, sets = opened(folder, asked)

    def loss(params: Any, data: Any) -> Any:
        x, y = data
        x, y = (x[None], y[None]) if x.ndim == 1 else (x, y)
        return F.cross_entropy(functional_call(model, params, (x,)), y)

    task = AttributionTask(loss_func=loss, model=model, checkpoints=[model.state_dict()])

    def scores() -> Any:
        train, target = sets()
        train.tensors[0].requires_grad_(True)  # it hooks gradients of the layer's output, which needs something to flow
        attributor = IFAttributorEKFAC(task, module_name=[LAST], device="cpu", damping=DAMPING)
        every = DataLoader(train, batch_size=asked.batch)
        attributor.cache(every)
        with torch.no_grad():
            return attributor.attribute(every, DataLoader(target, batch_size=len(target))).mean(1).numpy()

    return scores


LIBRARIES = {"ours": ours, "double": ours, "kronfluence": kronfluence, "pydvl": pydvl, "dattri": dattri}


def opened(folder: Path, asked: argparse.Namespace) -> tuple[Any, Callable[[], tuple[Any, Any]]]:
    """The model in evaluation mode or its last layer, and what gives the train and target rows as inputs of it."""
    import timm
    import torch
    from safetensors.torch import load_file
    from torch.utils.data import TensorDataset

    about = json.loads((folder / "model.json").read_text())
    model: Any = timm.create_model(about["name"], num_classes=about["num_classes"])
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    model.eval()
    arrays = decoded(folder) if asked.start == "files" else dict(np.load(folder / "rows.npz"))
    rows = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def features(x: Any) -> Any:
        with torch.no_grad():
            found = [model.forward_head(model.forward_features(b), pre_logits=True) for b in x.split(asked.batch)]
        return torch.cat(found)

    def sets() -> tuple[Any, Any]:
        inputs = features if asked.params == "last" else lambda x: x
        train, target = (TensorDataset(inputs(rows[f"{part}x"]), rows[f"{part}y"]) for part in ("", "target_"))
        return train, target

    head = torch.nn.Sequential()
    head.add_module(LAST, model.get_submodule(LAST))
    return (head if asked.params == "last" else model), sets


def answer(asked: argparse.Namespace) -> None:
    """Run once for every line of standard input: seconds of the processor and of the clock, and the file of scores."""
    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(asked.threads)
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        made = LIBRARIES[asked.library]
        kept = made(asked.folder, asked) if asked.start == "memory" else None
        for _ in sys.stdin:
            started, processor = time.perf_counter(), time.process_time()
            try:
                found = np.asarray((kept or made(asked.folder, asked))(), dtype=np.float64)
            except Exception as error:
                said: dict[str, Any] = {"error": f"{type(error).__name__}: {error}"}
            else:
                took = {"cpu": time.process_time() - processor, "wall": time.perf_counter() - started}
                np.save(asked.folder / f"{asked.library}.npy", found)
                said = took
            print(json.dumps(said), file=answers, flush=True)


# ---- by turns --------------------------------------------------------------------------------------------------------


class Library:
    """One of them in its process; what it says of its own runs is kept."""

    def __init__(self, name: str, python: str, folder: Path, params: str, asked: argparse.Namespace) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        command = [
            python, str(HERE / "curvature_peers.py"), "--library", name, "--folder", str(folder), "--params", params,
            "--checkpoint", str(asked.checkpoint), "--batch", str(asked.batch), "--threads", str(asked.threads),
            "--start", asked.start,
        ]  # fmt: skip
        env = {**os.environ, "OMP_NUM_THREADS": str(asked.threads)}
        if LIBRARIES[name] is ours:  # what this process imports it imports too, whatever it was started by
            env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True, env=env
        )

    def run(self) -> float:
        """Seconds of the processor of one run.

        Raises:
            SystemExit: it failed; says how.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        said: dict[str, Any] = json.loads(line) if line else {"error": self.log.read_text()[-2000:]}
        if "error" in said:
            raise SystemExit(f"{self.name}: {said['error']}")
        return said["cpu"]

    def close(self) -> None:
        """End it."""
        self.process.communicate("")


def prepare(folder: Path, asked: argparse.Namespace) -> None:
    """The rows of the comparison as Parquet and decoded, and the weights, in ``folder``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    about = json.loads((Path(asked.checkpoint) / "run.json").read_text())["model"]
    (folder / "model.json").write_text(json.dumps(about))
    shutil.copy(Path(asked.checkpoint) / "model.safetensors", folder / "weights.safetensors")
    table = pq.read_table(asked.data)
    split = np.array(table.column("split").to_pylist())
    parts = [np.flatnonzero(split == s)[:n] for s, n in (("train", asked.rows), ("val", asked.targets))]
    pq.write_table(table.take(pa.array(np.concatenate(parts))), folder / "rows.parquet")
    np.savez(folder / "rows.npz", **decoded(folder))


def decoded(folder: Path) -> dict[str, Any]:
    """Inputs [n, 3, H, W] and labels of the train and target rows of the Parquet file."""
    import pyarrow.parquet as pq
    from PIL import Image

    about, table = json.loads((folder / "model.json").read_text()), pq.read_table(folder / "rows.parquet")
    split, arrays = np.array(table.column("split").to_pylist()), dict[str, Any]()
    for name, of in (("", "train"), ("target_", "val")):
        some = table.filter(split == of)
        images = [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in some.column("image").to_pylist()]
        values = (np.stack([np.asarray(i) for i in images]).astype(np.float32) / 255 - about["mean"]) / about["std"]
        arrays |= {f"{name}x": values.astype(np.float32).transpose(0, 3, 1, 2).copy()}
        arrays |= {f"{name}y": some.column("label").to_numpy().astype(np.int64)}
    return arrays


def written_out(folder: Path) -> dict[str, tuple[str, Any]]:
    """By library, what it computes of the last layer as its source has it, and these scores, in numpy and float64."""
    argv = ["--checkpoint", "", "--params", "last", "--folder", str(folder)]
    train, target = opened(folder, arguments(argv))[1]()
    state = {k: v.double().numpy() for k, v in _weights(folder).items()}
    w = np.hstack([state[f"{LAST}.weight"], state[f"{LAST}.bias"][:, None]])

    def part(rows: Any) -> tuple[Any, Any, Any]:
        """Inputs with a one [n, I], probabilities and gradients in the logits [n, O]."""
        a = np.hstack([rows.tensors[0].double().numpy(), np.ones((len(rows), 1))])
        z = a @ w.T
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        return a, p, p - np.eye(len(w))[rows.tensors[1].numpy()]

    (a, p, g), (a_target, _, g_target) = part(train), part(target)
    q = g_target.T @ a_target / len(a_target)
    q_a = np.linalg.eigh(a.T @ a / len(a))[1]

    def bases(s: Any) -> Any:
        return np.linalg.eigh(s.T @ s / len(a))[1]

    def scores(direction: Any) -> Any:
        return np.einsum("no,oi,ni->n", g, direction, a)

    root = np.sqrt(p)
    s = root - p * root.sum(1, keepdims=True)  # the gradient of sum_c sqrt(p_c) log p_c, p_c held in the root
    q_s = bases(s)
    lam = ((s @ q_s) ** 2).T @ ((a @ q_a) ** 2) / len(a)
    of_pydvl = scores(q_s @ ((q_s.T @ q @ q_a) / (lam + DAMPING)) @ q_a.T)
    q_s = bases(g)
    lam = ((g @ q_s.T) ** 2).T @ ((a @ q_a.T) ** 2) / len(a)  # columns of eigenvectors taken for rows
    cut = np.concatenate([q[:, :-1].ravel(), q[:, -1]]).reshape(q.shape)  # weights, then biases, cut into rows anew
    u = (q_s.T @ ((q_s @ cut @ q_a.T) / (lam + DAMPING)) @ q_a).ravel()
    rows = np.hstack([(g[:, :, None] * a[:, None, :-1]).reshape(len(a), -1), g])
    return {
        "pydvl": ("its Fisher is of one gradient a row, of sum_c sqrt(p_c) log p_c", of_pydvl),
        "dattri": (
            "eigenvectors transposed, weights and biases cut into rows anew, given labels",
            rows @ u,
        ),
    }


def _weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "weights.safetensors")


def compare(params: str, asked: argparse.Namespace) -> list[str]:
    """Lines of the table of one comparison."""
    from alternating import Ratio, alternate
    from scipy import stats

    pythons = {"ours": sys.executable, "kronfluence": asked.kronfluence}
    if params == "last":
        pythons |= {"pydvl": asked.pydvl, "dattri": asked.dattri, "double": sys.executable}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, asked)
        every = [Library(name, python, folder, params, asked) for name, python in pythons.items() if python]
        times = alternate([library.run for library in every], asked.rounds)
        for library in every:
            library.close()
        scores = {library.name: np.load(folder / f"{library.name}.npy") for library in every}
        if params == "last":
            for name, (what, expected) in written_out(folder).items():
                if name in scores:
                    rank = stats.spearmanr(scores[name], expected).statistic
                    print(f"{name}: {what}; Spearman of its scores with that written out: {rank:.4f}")
    lines = []
    for library, taken in zip(every[1:], times[1:], strict=True):
        ratio, what = Ratio(taken, times[0]), f"{library.name}, `--params {params}`, from {asked.start}"
        rank = stats.spearmanr(scores["ours"], scores[library.name]).statistic
        lines.append(
            f"| {what} | {np.median(taken):.3g} | {np.median(times[0]):.3g} "
            f"| {ratio.median:.3g} ({min(ratio.every):.3g} to {max(ratio.every):.3g}) | {rank:+.3f} |"
        )
    return lines


def main() -> int:
    """Print the table; or answer, in a library's own process."""
    asked = arguments()
    if asked.library:
        answer(asked)
        return 0
    if not asked.data.exists():
        print(f"skipped: no {asked.data} (the data set is not redistributable)", file=sys.stderr)
        return 0
    lines = [line for params in asked.params.split(",") for line in compare(params, asked)]
    print("| library | its CPU seconds | ours | its / ours (least to greatest) | Spearman of the scores |")
    print("|---|---|---|---|---|")
    print("\n".join(lines))
    return 0


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a run folder of an image model with a last layer `fc`")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--params", default="all,last")
    parser.add_argument("--start", choices=("memory", "files"), default="memory", help="what the others have")
    parser.add_argument("--rows", type=int, default=1000, help="train rows")
    parser.add_argument("--targets", type=int, default=200)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    for name in (n for n, of in LIBRARIES.items() if of is not ours):
        parser.add_argument(f"--{name}", help="an interpreter that has it", metavar="PYTHON")
    parser.add_argument("--library", choices=LIBRARIES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(main())
