"""How fast a page of 10,000 flagged rows is in Chromium: first paint, and steps of scrolling, filters and keys.

    python tests/benchmarks/review_page.py [ROWS] > tests/benchmarks/results/review_page.md

It needs playwright (extra ``test``) and Chromium, and takes about half a minute.
"""

from __future__ import annotations

import base64
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from influence_cli.report.review.page import review_page
from influence_cli.report.review.rows import Review, ReviewRow
from tests.browser import chromium

# a step of the page, and how long it takes until the next frame is painted, in milliseconds
STEP = """async (step) => {
  const start = performance.now();
  new Function(step)();
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - start;
}"""
STEPS = {
    "filter by label": "const s = document.getElementById('by-label'); s.selectedIndex = 1 + (s.selectedIndex % 9); "
    "s.dispatchEvent(new Event('input', {bubbles: true}))",
    "search": "const s = document.getElementById('search'); s.value = String(10 + Math.floor(80 * Math.random())); "
    "s.dispatchEvent(new Event('input', {bubbles: true}))",
    "no filter": "document.getElementById('by-label').value = ''; const s = document.getElementById('search'); "
    "s.value = ''; s.dispatchEvent(new Event('input', {bubbles: true}))",
    "scroll by a screen": "scrollBy(0, 800)",
    "next page": "document.querySelector('.pager .next').click()",
    "decide by key": "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'd', bubbles: true}))",
}


def picture(k: int) -> str:
    """A PNG of 32 x 32 pixels of noise, which is as large as such pictures get."""
    pixels = np.random.default_rng(k).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def review(count: int) -> Review:
    """A page of so many rows, with pictures up to the limit of a page, about 6,000."""
    names = [f"class {c}" for c in range(10)]
    rows: list[ReviewRow] = []
    for k in range(count):
        about: dict[str, Any] = {"number": k % 10, "score": k / count - 1.0, "rank": k + 1, "reason": f"rank {k + 1}"}
        about |= {"proposed": names[(k + 1) % 10], "proposed_number": (k + 1) % 10, "gain": "1.5 higher"}
        about |= {"agreement": 0.8, "slices": {"source": "abc"[k % 3]}}
        about["card"] = {"picture": picture(k), "size": [32, 32]} if k < 6000 else {"texts": {"text": f"text {k}"}}
        rows.append(ReviewRow(id=f"row-{k:05d}", row_key=f"{k:032x}", label=names[k % 10], **about))
    scores = np.linspace(-1.0, 1.0, 4 * count)
    return Review(
        title=f"{count:,} rows", answer="An answer.", command="influence curate", apply="influence curate",
        fingerprint="0" * 32, rows=rows, scores=scores, flagged=scores < -0.5, cut=-0.5, column="score",
        decisions=("keep", "drop", "relabel"), classes=names,
    )  # fmt: skip


def main() -> None:
    """Print a table of times."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        place = Path(folder) / "page.html"
        started = time.perf_counter()
        place.write_text(review_page(review(count)), encoding="utf-8")
        made = time.perf_counter() - started
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(place.as_uri())
        entries = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
        page.wait_for_function(f"{entries} !== undefined")
        paint, cards = page.evaluate(entries), page.locator(".card").count()
        ready = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        print(f"{count:,} rows, {place.stat().st_size / 2**20:.1f} MiB, made in {made:.1f} s, {cards} cards at first\n")
        print("| what | median ms | slowest ms |\n|---|---|---|")
        print(f"| first paint | {paint:.0f} | |\n| rows are there | {ready:.0f} | |")
        for name, step in STEPS.items():
            took = [page.evaluate(STEP, step) for _ in range(15)]
            print(f"| {name} | {statistics.median(took):.0f} | {max(took):.0f} |")


if __name__ == "__main__":
    main()
