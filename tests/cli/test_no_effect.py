"""A flag that changes nothing beside the others is refused by its name, before anything is read.

python -m pytest tests/cli/test_no_effect.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

from influence_cli.cli.settings.no_effect import RULES
from influence_cli.cli.settings.requests import options_of
from tests.cases import call_cli, examples, feature_table, write

REFUSED = [
    ("score m.parquet --json --format csv", "--format and --json contradict"),
    ("score m.parquet -q -v", "--verbose and --quiet contradict"),
    ("score m.parquet --isolated --config x.toml", "--config names a settings file"),
    ("score m.parquet --overlap refuse --allow-overlap", "--allow-overlap means --overlap drop"),
    ("grads m.parquet --overlap keep --allow-overlap", "--allow-overlap means --overlap drop"),
    ("score m.parquet --top 3", "--top is about pairs of rows"),
    ("curate s.parquet --check --budget 5%", "--budget is about edits"),
    ("curate s.parquet --write-baseline b.jsonl --action relabel", "--action is about edits"),
    ("curate s.parquet --max-flagged 3%", "--max-flagged is about the gate"),
    ("curate s.parquet --false-flag 3%", "--false-flag is about the gate"),
    ("curate s.parquet --check --threshold 0.1 --false-flag 3%", "--false-flag is a rate"),
    ("curate s.parquet --check --threshold 0.1 --fdr 3%", "--fdr is a rate"),
    ("curate s.parquet --check --fdr 3% --false-flag 3%", "--false-flag and --fdr are two rates"),
    ("curate s.parquet --fdr 3%", "--fdr is about the gate"),
    ("curate s.parquet --max-flagged-per source=3%", "--max-flagged-per is about the gate"),
    ("curate s.parquet --against m.parquet", "--against is about the gate"),
    ("curate s.parquet --write-baseline b.jsonl --threshold 1", "--threshold is about the gate"),
    ("curate s.parquet --export-as csv", "--export-as is about an export"),
    ("curate s.parquet --export x --export-as csv --link hard", "--link is about images"),
    ("curate s.parquet --undo --by loss", "--by is about new edits"),
    ("retrain m.parquet -o RUN --optimizer lbfgs --momentum 0.5", "--momentum has no meaning with --optimizer lbfgs"),
    ("retrain m.parquet -o RUN --optimizer lbfgs --epochs 5", "--epochs has no meaning with --optimizer lbfgs"),
    ("retrain m.parquet -o RUN --optimizer adamw --momentum 0.5", "--momentum is of sgd"),
    ("retrain m.parquet -o RUN --init x --pretrained", "--pretrained and --init are two starts"),
    ("retrain m.parquet -o RUN --objective fairness", "--objective is about scores made between rounds"),
    ("score m.parquet --set cg.damping=1", "--set cg.damping=1 has no effect: cg is not asked for"),
    ("score m.parquet --set fairness.tau=1", "--set fairness.tau=1 has no effect: fairness is not asked for"),
    ("score m.parquet --set combine.clip=4", "--set combine.clip=4 has no effect: combine is not asked for"),
    ("score m.parquet --set cg.dampin=1", "cg has no option 'dampin'"),
    ("score m.parquet --set cg.damping=much", "cg.damping='much' is not a number"),
    ("curate s.parquet --set relabel.rule=model", "--set relabel.rule=model has no effect: relabel is not asked for"),
    ("retrain m.parquet -o RUN --set ip.normalise=cosine", "--set ip.normalise=cosine has no effect"),
    ("score m.parquet --per-member", "--per-member has no effect: auto has no members beside the checkpoint"),
    ("score m.parquet --fit-rows m.parquet", "--fit-rows has no effect: auto fits no curvature"),
    ("grads m.parquet --fit-rows m.parquet --method loss", "--fit-rows has no effect: loss fits no curvature"),
    ("score m.parquet --method ip --features x", "--features has no effect: ip looks at no features"),
    ("grads m.parquet --method loss --method ip --features x", "--features has no effect: loss, ip looks at no"),
    ("score m.parquet --method auto --objective robustness --features x", "--features has no effect: auto looks"),
    ("evaluate s.parquet --epochs 5", "--epochs is about trainings"),
    ("evaluate s.parquet --loo 5 --subset-share 20%", "--subset-share is about --lds"),
    ("evaluate s.parquet --lds 5 --convention loo", "--convention is about --loo"),
    ("evaluate s.parquet --lds 5 --known-bad ids.txt", "--known-bad is about rows known to be wrong"),
]


@pytest.mark.parametrize(("line", "what"), REFUSED, ids=[line for line, _ in REFUSED])
def test_a_flag_without_effect_is_refused(line: str, what: str, tmp_path: Path) -> None:
    write(feature_table(examples()), tmp_path / "m.parquet")  # score looks whose table it is
    ran = call_cli(*line.split(), cwd=tmp_path)
    assert (ran.code, ran.err.splitlines()[0][: len(what) + 7]) == (2, f"error: {what}")
    assert "fix: " in ran.err


def test_a_store_that_a_settings_file_takes_away_is_not_ignored_in_silence(tmp_path: Path) -> None:
    (tmp_path / "influence.toml").write_text("no_store = true\n")
    write(feature_table(examples()), tmp_path / "m.parquet")
    ran = call_cli("score", "--method", "ip", "m.parquet", "--store", "s", cwd=tmp_path)
    assert (ran.code, "--store and --no-store contradict" in ran.err) == (2, True)
    (tmp_path / "influence.toml").write_text('store = "kept"\n')  # which a flag overrides
    assert "contradict" not in call_cli("score", "--method", "ip", "m.parquet", "--no-store", cwd=tmp_path).err


def test_a_settings_file_may_hold_what_one_run_does_not_use(tmp_path: Path) -> None:
    (tmp_path / "influence.toml").write_text('budget = "5%"\n[retrain]\nmomentum = 0.8\noptimizer = "adamw"\n')
    for line in ("curate s.parquet --check", "retrain m.parquet --model linear -o RUN"):
        ran = call_cli(*line.split(), cwd=tmp_path)
        assert "no such" in ran.err or "not found" in ran.err or "is not there" in ran.err, ran.err


def test_every_rule_names_options_of_its_commands() -> None:
    for rule in RULES:
        for name in rule.names:
            known = [command for command in rule.commands if name in {o.name for o in options_of(command)}]
            assert known, (rule.what, name)


@pytest.mark.parametrize(
    "line",
    [
        "score m.parquet --method self-lissa --set ekfac.damping=0.1 --fit-rows m.parquet",
        "score m.parquet --method cg --set cg.preconditioner=ekfac --set ekfac.fit_sample=9",
        "score m.parquet --method self-lissa --set self-lissa.solve=lissa --set lissa.preconditioner=ekfac "
        "--set ekfac.fit_sample=9",
        "score m.parquet --method ip-ensemble --per-member --set members=2",
        "score m.parquet --method bif --per-member --fit-rows m.parquet",
        "score m.parquet --method gex --per-member --fit-rows m.parquet",
        "retrain m.parquet -o RUN --attack fgsm --set robustness.eps=0.2",
        "curate s.parquet --set trim.guard=false --set combine.clip=4",
    ],
)
def test_what_has_an_effect_is_not_refused_so(line: str, tmp_path: Path) -> None:
    write(feature_table(examples()), tmp_path / "m.parquet")
    assert "has no effect" not in call_cli(*line.split(), cwd=tmp_path).err


def test_a_settings_file_may_hold_options_of_what_is_not_asked_for(tmp_path: Path) -> None:
    (tmp_path / "influence.toml").write_text("[method.cg]\ndamping = 1.0\n")
    write(feature_table(examples()), tmp_path / "m.parquet")
    assert call_cli("score", "m.parquet", "--method", "random", "-o", "s.parquet", cwd=tmp_path).code == 0
