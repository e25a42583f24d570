"""Review pages of real models in Chromium, from the commands to the edits: digits, bank, CIFAR-10N and CoLA.

    python tests/benchmarks/real_pages.py OUT [--data ../shared/data] [--encoder FOLDER] [--only digits,bank]

For every data set a model is trained and scored by the public commands, and the page of 100 rows to trim is opened in
headless Chromium.  A person's work is played: every filter is chosen and taken back, ten rows are decided by keyboard,
the decisions are saved.  ``curate --decisions`` must then make exactly these edits; axe must find nothing serious, in
light and dark, at 1280 and at 390 pixels; and the page must ask for nothing.  Pictures of every form are left in
OUT/DATA.  What is there is not trained again.  Data or an encoder that are not there are skipped with the reason.

It needs playwright and axe-playwright-python (extra ``test``), Chromium, and for CoLA the extra ``text`` and a folder
with a small encoder (all-MiniLM-L6-v2).  Half an hour on one core, most of it CoLA.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for what tests share

from tests.browser import chromium

KEYS = "kdrdkrrddk"  # of ten rows
NAMES = {"k": "keep", "d": "drop", "r": "relabel"}
FORMS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Setting:
    """A data set: its manifest below the data folder, what is said of labels, and what trains a model."""

    manifest: str
    train: tuple[str, ...]
    label: tuple[str, ...] = ()
    reasons: str = "100"


SETTINGS = {
    "digits": Setting("", ("--model", "mlp:128", "--epochs", "60")),
    "bank": Setting("bank", ("--model", "linear", "--optimizer", "lbfgs"), ("--label", "label_flip20")),
    "cifar10n": Setting("cifar10n-small", ("--model", "resnet18", "--epochs", "6", "--augment", "flip-shift")),
    "cola": Setting(
        "cola", ("--model", "hf:{encoder}", "--amp", "bf16", "--epochs", "2"), ("--label", "label_flip20"), "20"
    ),
}


def influence(*words: Any, here: Path) -> float:
    """One command, which has to succeed; its seconds."""
    started = time.monotonic()
    command = [sys.executable, "-m", "influence_cli", *map(str, words), "--isolated", "-q"]
    ran = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"influence {' '.join(map(str, words))}: {ran.returncode}\n{ran.stderr}"
    return time.monotonic() - started


def scored(manifest: Path, of: Setting, encoder: str, here: Path) -> None:
    """A run and its scores, where they are not there yet."""
    if not (here / "RUN" / "run.json").exists():
        train = [word.format(encoder=encoder) for word in of.train]
        influence("retrain", manifest, *of.label, *train, "-o", "RUN", here=here)
    if not (here / "scores.parquet").exists():
        given = (*of.label, "--checkpoint", "RUN", "--method", "ip")
        influence("score", manifest, *given, "-o", "scores.parquet", here=here)


def filtered(page: Any) -> int:
    """Choose every filter and take it back; the number of choices, each of which shows as many rows as it says."""
    chosen, everything = 0, page.inner_text("#count")
    for name in page.eval_on_selector_all("#filters select", "some => some.map((s, k) => k)"):
        select = page.locator("#filters select").nth(name)
        if select.get_attribute("id") == "sort" or not select.is_visible():
            continue
        for option in select.locator("option").all()[1:4]:
            text = option.text_content()
            select.select_option(option.get_attribute("value"))
            count = text.rpartition("(")[2].rstrip(")")
            said = page.inner_text("#count")
            assert said == everything or said.split(" ")[0] == count, f"{text}: {said}"
            chosen += 1
        select.select_option("")
    assert page.inner_text("#count") == everything
    return chosen


def decided(page: Any, place: Path) -> list[dict[str, Any]]:
    """Ten rows by keyboard, and what is saved of them."""
    for key in KEYS:
        before = page.inner_text("#said")
        page.keyboard.press(key)
        assert page.inner_text("#said") != before, f"key {key} decides nothing"
    with page.expect_download() as found:
        page.click("#save")
    found.value.save_as(place)
    return json.loads(place.read_text())["decisions"]


def check_edits(decisions: list[dict[str, Any]], edits: Path) -> dict[str, int]:
    """That the edits are exactly what was decided; how many there are of each."""
    made = {row["id"]: (row["action"], row["label"]) for row in pq.read_table(edits).to_pylist()}
    wanted = {d["id"]: d for d in decisions if d["decision"] != "keep"}
    assert made.keys() == wanted.keys()
    for name, d in wanted.items():
        action, label = made[name]
        assert action == {"drop": "trim", "relabel": "relabel"}[d["decision"]]
        assert d["decision"] == "drop" or label in (d["label"], d["label_name"])
    kinds = [d["decision"] for d in decisions]
    return {name: kinds.count(name) for name in NAMES.values()}


def grave(page: Any) -> list[str]:
    """What axe finds serious."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [v["id"] for v in found if v["impact"] in ("serious", "critical")]


def looked_at(browser: Any, here: Path) -> dict[str, Any]:
    """The page in every form, with pictures; then filters, ten decisions and what is saved."""
    asked, problems, url = list[str](), list[str](), (here / "page.html").resolve().as_uri()
    for width, scheme in FORMS:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("request", lambda r: None if r.url.startswith("data:") else asked.append(r.url))
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.goto(url)
        page.screenshot(path=here / f"top-{width}-{scheme}.png")
        page.evaluate("document.getElementById('bar').scrollIntoView()")
        page.wait_for_timeout(300)
        page.screenshot(path=here / f"rows-{width}-{scheme}.png")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        problems.extend(grave(page))
        page.close()
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(url)
    figures = {"rows": page.inner_text("#count").split(" ")[0], "choices": filtered(page)}
    figures["shaded"] = page.evaluate("rows.filter(r => r.shades).length")
    figures["reasons"] = page.evaluate("rows.filter(r => r.why).length")
    figures |= {"decisions": decided(page, here / "decisions.json"), "requests": len(set(asked) - {url})}
    page.close()
    assert problems == [], problems
    return figures


def main() -> None:
    """Run what is asked for, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--encoder", default="", help="folder of a small encoder, for CoLA")
    parser.add_argument("--only", default=",".join(SETTINGS))
    asked = parser.parse_args()
    print("| data | rows | MiB | page s | reasons | shaded | filters chosen | keep, drop, relabel | requests |")
    print("|---" * 9 + "|")
    for name in asked.only.split(","):
        of = SETTINGS[name]
        manifest = asked.data.resolve() / of.manifest / "manifest.parquet" if of.manifest else None
        manifest = manifest or ROOT / "sample_data" / "manifest.parquet"
        missing = f"no {manifest}" if not manifest.exists() else ""
        missing = missing or ("no --encoder FOLDER" if name == "cola" and not asked.encoder else "")
        if missing:
            print(f"skipped: {name}, {missing}", file=sys.stderr)
            continue
        here = asked.out.resolve() / name
        here.mkdir(parents=True, exist_ok=True)
        scored(manifest, of, str(Path(asked.encoder).resolve()), here)
        page = ("--budget", 100, "--report", "page.html", "--reasons", of.reasons)
        seconds = influence("curate", "scores.parquet", *of.label, *page, here=here)
        with chromium() as browser:
            found = looked_at(browser, here)
        for old in ("decided.parquet", "edits.parquet"):
            (here / old).unlink(missing_ok=True)
        apply = ("--decisions", "decisions.json", "-o", "decided.parquet", "--edits", "edits.parquet")
        influence("curate", "scores.parquet", *of.label, *apply, here=here)
        counts = check_edits(found["decisions"], here / "edits.parquet")
        size = (here / "page.html").stat().st_size / 2**20
        figures = [
            found["rows"],
            f"{size:.1f}",
            f"{seconds:.0f}",
            *(found[k] for k in ("reasons", "shaded", "choices")),
        ]
        cells = [name, *figures, ", ".join(map(str, counts.values())), found["requests"]]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
