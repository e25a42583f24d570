"""The review page as one file of HTML: templates, one script and one style sheet in it, and the rows as JSON.

Nothing is fetched: the page's policy allows its own script and style by their hashes and images that are data, and
nothing else.  Rows are JSON in which nothing can end the element that holds it; the script shows them as text alone.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
from pathlib import Path
from typing import Any

from influence_cli.data.earlier import GENERATOR, PAGE
from influence_cli.data.outputs import write_output
from influence_cli.report.origin import made_at
from influence_cli.report.page import environment
from influence_cli.report.review.histogram import HEIGHT, WIDTH, histogram
from influence_cli.report.review.rows import Counted, Review
from influence_cli.report.review.shades import LEVELS
from influence_cli.report.text_table import share
from influence_cli.report.token_pieces import visible

MOST_PAIRS = 40  # lines of the table of labels and proposed labels
_ESCAPED = {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def review_page(review: Review) -> str:
    """The page of a review."""
    made = environment()
    made.filters |= {"visible": visible, "share": _share}
    folder = importlib.resources.files("influence_cli.report") / "templates"

    def joined(*names: str) -> str:
        return "".join((folder / name).read_text(encoding="utf-8") for name in names)

    style = joined("colours.css", "review.css", *(["shades.css"] if review.scale is not None else []))
    script = '"use strict";\n' + joined("review_cards.js", "review.js")
    return made.get_template("review.html.j2").render(
        generator=GENERATOR,
        review=review,
        script=script,
        style=style,
        script_hash=_hash(script),
        style_hash=_hash(style),
        data=as_json(_data(review)),
        drawn=histogram(review.scores, review.flagged, review.cut),
        width=WIDTH,
        levels=LEVELS,
        height=HEIGHT,
        tables=[("class", "By class", review.by_class)]
        + [(f"slice {column}", f"By {column}", counts) for column, counts in review.by_slice.items()],
        pairs=review.pairs[:MOST_PAIRS],
        more_pairs=len(review.pairs) - MOST_PAIRS,
        date=made_at("%Y-%m-%d"),
    )


def write_review(review: Review, path: str | Path) -> None:
    """Write the page whole or not at all."""
    write_output(path, PAGE, review_page(review).encode())


def as_json(value: Any) -> str:
    r"""JSON that can stand in an element of a page: no character of it ends one, or a line of a script.

    >>> as_json(["</script>", "a\u2028b\0"])
    '["\\u003c/script\\u003e","a\\u2028b\\u0000"]'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(str.maketrans(_ESCAPED))


def _data(review: Review) -> dict[str, Any]:
    """What the script is given."""
    return {
        "fingerprint": review.fingerprint,
        "classes": None if review.classes is None else list(review.classes),
        "decisions": list(review.decisions),
        "column": review.column,
        "manifest": review.manifest,
        "rows": [row.as_dict() for row in review.rows],
        "others": review.others,
    }


def _hash(text: str) -> str:
    """What a content security policy calls an inline element of this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _share(counted: Counted) -> str:
    _, rows, flagged = counted
    return share(flagged / rows) if rows else "-"
