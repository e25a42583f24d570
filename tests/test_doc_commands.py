"""The commands of README and the guide run, on data and models small enough: each document in a folder of its own.

python -m pytest tests/test_doc_commands.py
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from tests.cases import call_cli, digits_table, examples, feature_table, run_process, write
from tests.generate_docs import FILES, ROOT

DOCUMENTS = {path.stem: path.read_text() for path in FILES}
SMALLER = {  # what would take too long as it stands
    "--model resnet18": "--model mlp:4",
    "--input-size 64": "--input-size 8",  # photos are of 8x8 pixels
    "--input-size 32": "",  # train.parquet has features
    "--features tf_efficientnet_lite0": "--features RUN",  # whose weights are not here
    "--features-checkpoint lite0.safetensors": "",
    "--features-size 224,128": "",
    "--set ip-ensemble.members=10": "--set ip-ensemble.members=2",
    "--seeds 10": "--seeds 2",
    "--seeds 5": "--seeds 2",
    "--seeds 2 --flips": "--seeds 1 --epochs 1 --flips",
    "--seeds 2 --attack": "--seeds 1 --attack",
    "--set bif.draws=100": "--set bif.draws=10",
    "--budget 1%,2%,5%": "--budget 10%",
    "--budget 200": "--budget 20",
    "--budget 500": "--budget 20",
    "--lds 100": "--lds 3",
    "--removal 5%,10%,20%": "--removal 20%",
    "--removal 5%,10%": "--removal 20%",
    "--loo 50": "--loo 4",
    "--brittleness 50": "--brittleness 1",
    "--calibration 5%": "--calibration 50%",  # of 120 rows, so that a rate of a few per cent can be told
    "--false-flag 1%": "--false-flag 5%",
    "--log tensorboard:events": "",  # needs an extra; tests/loggers has it
    "--log tensorboard": "",
}
SMALLER_IN = {"trust": {"--model resnet18 --canaries 5%": "--model linear --epochs 60 --canaries 25%"}}  # a cut is told
DECIDING = ("--check", "--require-improvement")  # flags of commands that may exit 1
SOURCES = {  # what an export of the guide is made from, and what makes that from photos/
    "photos-clean": "photos/",
    "clean.csv": "rows.csv",
    "clean.jsonl": "rows.jsonl",
    "dataset-clean": "dataset",
    "clean.npz": "data.npz",
    "tasks.json": "photos/",
    "looked-at": "photos/",
    "looked-at.parquet": "photos/",
}
LINEAR = "retrain train.parquet --model linear --optimizer lbfgs -o RUN"
TRAINED = "retrain train.parquet --model mlp:4 -o RUN"
SCORED = "score train.parquet --checkpoint RUN --method ip --method loss -o scores.parquet"
OBJECTIVES = "--objective utility --objective fairness --objective robustness"
PHOTOS = ("manifest photos/ -o made.parquet", "retrain made.parquet --model mlp:4 -o PHOTOS")
PREPARED = {  # what stands in the folder when the document begins, beside the data
    "README": [*PHOTOS, TRAINED, SCORED, "retrain train.parquet --model mlp:4 --seed 1 -o OLD_RUN"],
    "start": [TRAINED, SCORED, "curate scores.parquet --budget 5% -o clean.parquet"],
    "manifest": [*PHOTOS, "score made.parquet --checkpoint PHOTOS -o all.parquet"],
    "objectives": [LINEAR, f"score train.parquet --checkpoint RUN --method exact {OBJECTIVES} -o scores.parquet"],
    "trust": [
        *(
            "retrain train.parquet --model linear --epochs 60 -o RUN",
            "retrain train.parquet --model mlp:4 --seed 1 -o OLD_RUN",
        ),
        *("retrain train.parquet --model mlp:4 --epochs 3 -o NEW_RUN", SCORED),
        "score train.parquet --checkpoint RUN --method ip -o ip.parquet",
        "score train.parquet --checkpoint RUN --method loss -o loss.parquet",
        *(f"score train.parquet --checkpoint OLD_RUN -o seed{k}.parquet --seed {k}" for k in range(3)),
        "score train.parquet --checkpoint OLD_RUN --method ip -o old.parquet",
        "score train.parquet --checkpoint NEW_RUN --method ip -o new.parquet",
    ],
    "retraining": [
        "retrain train.parquet --model mlp:4 -o FIRST",
        "score train.parquet --checkpoint FIRST --method ip --method loss -o scores.parquet",
        "curate scores.parquet --budget 5% -o clean.parquet",
    ],
    "gate": [TRAINED, SCORED.replace("--method ip ", "--method ip-ensemble --set ip-ensemble.members=3 ")],
    "store": [TRAINED, SCORED],
    "text": [],
    "methods": [TRAINED],
}
SET_UP = ("python3 -m venv", ".venv/bin/", "set -euo pipefail")  # lines of a shell that no test repeats


def lines_of(text: str) -> list[str]:
    """The command lines of a document's blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for raw in lines if (line := re.sub(r"(^|\s)#.*", "", raw).strip())]


def commands_of(line: str) -> list[str]:
    """The commands of a pipe, chained by files: what is written to and read from ``-``."""
    commands = [command.strip() for command in line.split(" | ")]
    for k in range(len(commands) - 1):
        commands[k] = commands[k].replace("-o -", f"-o pipe{k}.parquet")
        commands[k + 1] = re.sub(r" - ", f" pipe{k}.parquet ", f"{commands[k + 1]} ", count=1).strip()
    return commands


def smaller(command: str, name: str = "") -> str:
    """The command of a document on less data, with a smaller model, for a shorter time."""
    for text, less in {**SMALLER_IN.get(name, {}), **SMALLER}.items():
        command = re.sub(rf"{re.escape(text)}(?![\w%,])", less, command)
    return command


def run(command: str, here: Path) -> None:
    """Run a command of ours in a folder."""
    arguments = shlex.split(command)
    ran = call_cli(*arguments, cwd=here)
    assert ran.code == 0 or (ran.code == 1 and set(DECIDING) & set(arguments)), f"influence {command}\n{ran.err}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the documents name: feature rows with groups and wrong labels, and a folder of images."""
    here = tmp_path_factory.mktemp("data")
    rows = examples(120, 90, 30)
    labels = np.array([r.label for r in rows])
    given = labels.copy()
    given[:12] = (labels[:12] + 1) % 3
    groups = pa.array([("old", "young")[k % 2] for k in range(len(rows))])
    table = feature_table(rows, clean_label=labels, group=groups, age_group=groups)
    table = table.set_column(table.column_names.index("label"), "label", pa.array(given))
    write(table, here / "train.parquet")
    write(table.slice(0, 120), here / "accepted.parquet")
    write(table.slice(120, 90), here / "val.parquet")
    for name, count in (("adult.csv", 60), ("later.csv", 5)):
        lines = [
            f"{20 + k},{('clerk', 'nurse')[k % 2]},{('f', 'm')[k % 3 % 2]},{('<=50K', '>50K')[k % 5 % 2]}\n"
            for k in range(count)
        ]
        (here / name).write_text("age,job,sex,income\n" + "".join(lines))
    (here / "bad.csv").write_text("id\n" + "".join(f"{r.id}\n" for r in rows[:12]))
    (here / "decisions.json").write_text('{"decisions": []}')  # what a person saves between two commands
    for row in digits_table(40, 12, 12).to_pylist():
        place = here / "photos" / row["split"] / str(row["label"]) / f"{row['id']}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(row["image"])
    return here


def prepare(name: str, data: Path, here: Path) -> None:
    """Copy the data and run what comes before a document's commands."""
    shutil.copytree(data, here, dirs_exist_ok=True)
    if name == "text":
        prepare_texts(here)
    if name == "manifest":
        prepare_labels(here)
    for command in PREPARED[name]:
        run(command, here)
    if name == "start":
        torch.save(load_file(here / "RUN" / "model.safetensors"), here / "weights.pt")
        (here / "influence.toml").write_text('manifest = "train.parquet"\ncheckpoint = "RUN"\n')
    if (here / "PHOTOS").exists():
        torch.save(load_file(here / "PHOTOS" / "model.safetensors"), here / "weights.pth")


def prepare_labels(here: Path) -> None:
    """A table of prices, and one of posts with two labels."""
    rng = np.random.default_rng(0)
    rooms, age = rng.integers(1, 9, 80), rng.integers(0, 90, 80)
    price = 40_000 * rooms - 500 * age + rng.normal(size=80) * 10_000
    homes = [f"{r},{a},{p:.0f}\n" for r, a, p in zip(rooms, age, price, strict=True)]
    (here / "homes.csv").write_text("rooms,age,price\n" + "".join(homes))
    posts = [f"{r},{a},{int(r > 4)},{int(a > 40)}\n" for r, a in zip(rooms, age, strict=True)]
    (here / "posts.csv").write_text("balls,votes,sport,politics\n" + "".join(posts))


def prepare_texts(here: Path) -> None:
    """A table of reviews, one of speeches without labels, and a small encoder with its tokenizer."""
    from tests.languages import texts
    from tests.texts import classifier, sentences, tokenizer

    classifier().base_model.save_pretrained(here / "encoder")
    tokenizer().save_pretrained(here / "encoder")
    lines = [f'{r["id"]},"{r["text"]}",{("bad", "good")[r["label"]]}\n' for r in sentences(120, 40, 40).to_pylist()]
    (here / "reviews.csv").write_text("id,review,sentiment\n" + "".join(lines))
    said = [f"{r['id']},{r['text']}\n" for r in texts(40, 10, 10).to_pylist()]
    (here / "speeches.csv").write_text("id,speech\n" + "".join(said))
    (here / "question.csv").write_text("id,speech\nq,the old man sang of rain\n")


def prepare_source(source: str, here: Path) -> None:
    """Make ``scores.parquet`` of the rows of a source, after the source itself."""
    if not (here / source).exists():
        form = {"dataset": "huggingface"}.get(source) or Path(source).suffix.removeprefix(".")
        run(f"curate all.parquet --budget 0 --export {source} --export-as {form}", here)
    run(f"manifest {source} -o {Path(source).stem}.parquet", here)
    run(f"score {Path(source).stem}.parquet --checkpoint PHOTOS -o scores.parquet", here)


def test_every_document_with_commands_has_its_data() -> None:
    ours = {name for name, text in DOCUMENTS.items() if any(line.startswith("influence ") for line in lines_of(text))}
    assert ours == set(PREPARED)


def test_every_other_line_names_a_script_that_is_there() -> None:
    for name, text in DOCUMENTS.items():
        for line in lines_of(text):
            if line.startswith(("influence ", *SET_UP)):
                continue
            assert (match := re.match(r"(?:bash|python) ([\w./]+)|python -m ([\w.]+)", line)), f"{name}: {line}"
            assert (ROOT / (match[1] or match[2].replace(".", "/") + ".py")).is_file(), f"{name}: {line}"


def test_the_commands_with_output_are_those_of_the_demo() -> None:
    demo = " ".join((ROOT / "sample_data" / "demo.sh").read_text().replace("\\\n", " ").split())
    for text in DOCUMENTS.values():
        for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
            for command in re.findall(r"(?m)^\$ (.*)$", block.replace("\\\n", " ")):
                assert f"run {' '.join(command.split())}" in demo


def test_the_commands_of_the_demo_run(tmp_path: Path) -> None:
    """On the data and the model that it has; trainings are fewer and shorter."""
    shutil.copytree(ROOT / "sample_data", tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("out", ".*"))
    demo = (ROOT / "sample_data" / "demo.sh").read_text().replace("\\\n", " ")
    commands = re.findall(r"(?m)^run influence (.*)$", demo)
    assert commands
    for command in commands:
        run(smaller(command) + (" --epochs 5" if command.startswith("retrain") else ""), tmp_path)


def test_scripts_of_benchmarks_are_shell_and_say_where_their_data_is_missing(tmp_path: Path) -> None:
    """Those of data sets that cannot be given away; the others would run for minutes."""
    lines = [line for text in DOCUMENTS.values() for line in lines_of(text)]
    scripts = {match[1] for line in lines if (match := re.match(r"bash (tests/benchmarks/\S+)", line))}
    assert scripts
    for name in sorted(scripts):
        command = ["bash", str(ROOT / name), str(tmp_path / "out")]
        assert run_process([command[0], "-n", command[1]], tmp_path).code == 0
        if re.search(r"skipped: .* exit 0", (ROOT / name).read_text()):
            ran = run_process(command, tmp_path, {"DATA": str(tmp_path / "missing.parquet")})
            assert (ran.code, ran.err.split(":")[0]) == (0, "skipped"), name
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", list(PREPARED))
def test_the_commands_of_a_document_run(name: str, data: Path, tmp_path: Path) -> None:
    prepare(name, data, tmp_path)
    for line in lines_of(DOCUMENTS[name]):
        for command in commands_of(line):
            if command.startswith("influence "):
                exported = None if name == "text" else re.search(r"--export (\S+)", command)
                if exported is not None and not exported[1].startswith("homes"):  # made two lines before
                    prepare_source(SOURCES[exported[1]], tmp_path)
                run(smaller(command.removeprefix("influence "), name), tmp_path)
