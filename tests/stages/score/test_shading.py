"""What the tokens of a page are shaded by: parts that sum to the score, losses, or slopes of the row's loss.

python -m pytest tests/stages/score/test_shading.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from influence_cli.settings import GradSpec, Inputs, Runtime
from influence_cli.stages.score.tokens.shading import SCORE_PARTS, SLOPES, TOKEN_LOSSES, Shading, shading_of
from tests.cases import column, write
from tests.languages import texts, trained
from tests.opened import Opened, opened, score
from tests.texts import saved, sentences

SOME = np.array([7, 0, 3])


def shaded(of: Opened, method: str, objective: str | None, scores: np.ndarray) -> Shading:
    found = shading_of(of.run, of.session, method, objective, SOME, scores)
    assert found is not None
    assert set(found.rows) == {of.run.train.ids[k] for k in SOME}
    return found


def spelled(found: Shading, row: str, name: str, text: str) -> list[str]:
    """The tokens of a row that stand for characters, which the row's text is made of but for spaces."""
    parts = [text[t.start : t.end] for t in found.rows[row][name] if t.end > t.start]
    assert "".join("".join(parts).split()) == "".join(text.split())
    return parts


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    here = tmp_path_factory.mktemp("language")
    table = texts().replace_schema_metadata({"task": "language"})
    manifest = write(table, here / "m.parquet")
    return manifest, trained(manifest, here / "run", epochs=1)


def test_tokens_of_a_language_model_have_parts_that_sum_to_the_score(
    language: tuple[Path, Path], tmp_path: Path
) -> None:
    manifest, run = language
    spec = GradSpec(methods=("ip", "loss"), precision="fp64")
    of = opened(Inputs(str(manifest), checkpoint=str(run)), spec, Runtime(str(tmp_path)))
    table = score(of)
    scores = column(table, "score_ip_utility")
    found = shaded(of, "ip", "utility", scores)
    assert found.what == SCORE_PARTS
    said = dict(zip(*texts().select(["id", "text"]).to_pydict().values(), strict=True))
    for k in SOME.tolist():
        tokens = found.rows[of.run.train.ids[k]]["text"]
        assert sum(t.value for t in tokens) == pytest.approx(scores[k], rel=1e-8)
        spelled(found, of.run.train.ids[k], "text", said[of.run.train.ids[k]])
    losses = shaded(of, "loss", None, column(table, "score_loss"))
    assert losses.what == TOKEN_LOSSES
    for k in SOME.tolist():
        total = sum(t.value for t in losses.rows[of.run.train.ids[k]]["text"])
        assert total == pytest.approx(column(table, "score_loss")[k], rel=1e-8)


@pytest.mark.parametrize("pairs", [False, True])
def test_tokens_of_a_classifier_have_slopes_of_the_loss(pairs: bool, tmp_path: Path) -> None:
    table = sentences(12, 6, 0)
    if pairs:
        other = pa.array(["a film was " + t for t in table.column("text").to_pylist()])
        table = table.rename_columns([n if n != "text" else "text_a" for n in table.column_names]).append_column(
            "text_b", other
        )
    manifest, model = write(table, tmp_path / "m.parquet"), saved(tmp_path / "model")
    spec = GradSpec(methods=("loss",), precision="fp64")
    of = opened(Inputs(str(manifest), checkpoint=str(model)), spec, Runtime(str(tmp_path / "store")))
    scores = column(score(of))
    found = shaded(of, "loss", None, scores)
    assert found.what == SLOPES
    for k in SOME.tolist():
        name, at = of.run.train.ids[k], int(of.run.train.index[k])
        for text in ("text_a", "text_b") if pairs else ("text",):
            words = table.column(text)[at].as_py()
            assert [p.strip() for p in spelled(found, name, text, words)] == words.split()
        first = found.rows[name]["text_a" if pairs else "text"][0]
        assert (first.name, first.end) == ("[CLS]", 0)
    again = shading_of(of.run, of.session, None, None, SOME[:1], scores)  # alone, as in a batch
    assert again is not None
    (name,) = again.rows
    for text, tokens in again.rows[name].items():
        np.testing.assert_allclose([t.value for t in tokens], [t.value for t in found.rows[name][text]], atol=1e-12)
