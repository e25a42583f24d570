"""Settings: flags over environment over provenance over the settings file over defaults, and where files count from."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from influence_cli.cli.settings.settings import resolve
from influence_cli.cli.settings.settings_file import read_file
from influence_cli.errors import UsageError
from tests.cases import call_cli, digits_table, write


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, and an environment that says nothing."""
    for name in [n for n in os.environ if n.startswith("INFLUENCE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_flag_over_environment_over_provenance_over_file_over_default(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(given: dict[str, object], carried: dict[str, object] | None) -> None:
        settings = resolve("score", given, "m.parquet", carried)
        seen.append((settings.values["seed"], settings.origins["seed"]))

    look({}, None)
    (here / "influence.toml").write_text("seed = 1\n")
    look({}, None)
    look({}, {"seed": 2})
    monkeypatch.setenv("INFLUENCE_SEED", "3")
    look({}, {"seed": 2})
    look({"seed": 4}, {"seed": 2})
    look({"seed": 0}, {"seed": 2})
    file = str(here / "influence.toml")
    origins = ["default", file, "provenance", "environment", "flag", "flag"]
    assert seen == list(zip([0, 1, 2, 3, 4, 0], origins, strict=True))


def test_the_manifest_follows_the_same_order(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "influence.toml").write_text('manifest = "file.parquet"\n')
    assert resolve("score", {}, None).source == "file.parquet"
    monkeypatch.setenv("INFLUENCE_MANIFEST", "environment.parquet")
    assert resolve("score", {}, None).source == "environment.parquet"
    assert resolve("score", {}, "argument.parquet").source == "argument.parquet"


def test_a_manifest_setting_is_no_score_table(here: Path) -> None:
    (here / "influence.toml").write_text('manifest = "file.parquet"\n')
    for command in ("curate", "evaluate"):
        assert resolve(command, {}, None).source is None
        assert resolve(command, {}, "scores.parquet").values["manifest"] == "file.parquet"


def test_lists_and_switches_from_the_environment(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFLUENCE_METHOD", "ip,loss")
    monkeypatch.setenv("INFLUENCE_NO_STORE", "true")
    settings = resolve("score", {}, "m.parquet")
    assert (settings.values["method"], settings.values["no_store"]) == (["ip", "loss"], True)
    monkeypatch.setenv("INFLUENCE_NO_STORE", "perhaps")
    write(digits_table(train=5, val=0, test=0), here / "m.parquet")
    ran = call_cli("score", "--method", "ip", "m.parquet", cwd=here, env={"INFLUENCE_NO_STORE": "perhaps"})
    assert ran.code == 2
    assert "INFLUENCE_NO_STORE='perhaps'" in ran.err


def test_the_table_of_a_command_beats_the_top_of_the_file(here: Path) -> None:
    (here / "influence.toml").write_text('seed = 1\nbudget = "3%"\n[score]\nseed = 2\n')
    assert resolve("score", {}, "m").values["seed"] == 2
    assert resolve("retrain", {}, "m").values["seed"] == 1
    assert resolve("curate", {}, "s").values["budget"] == "3%"


def test_options_come_from_tables_and_set_wins(here: Path) -> None:
    tables = "[method.ip-ensemble]\nmembers = 7\np-max = 0.1\n[action.trim]\nguard = false\n"
    (here / "influence.toml").write_text(tables)
    given = {"method": ["ip-ensemble"], "set": ["ip-ensemble.members=3"]}
    assert resolve("score", given, "m").options["ip-ensemble"] == {"members": "3", "p_max": 0.1}
    assert resolve("curate", {}, "s").options["trim"] == {"guard": False}
    carried = {"options": {"ip-ensemble": {"members": 9}}}
    assert resolve("score", {}, "m", carried).options["ip-ensemble"] == {"members": 9, "p_max": 0.1}


def test_relative_paths_count_from_the_settings_file(here: Path, digits_run: Path) -> None:
    write(digits_table(train=40, val=10, test=5), here / "data" / "m.parquet")
    (here / "run").symlink_to(digits_run)
    (here / "influence.toml").write_text('manifest = "data/m.parquet"\ncheckpoint = "run"\nstore = "memo"\n')
    deep = here / "a" / "b"
    deep.mkdir(parents=True)
    ran = call_cli("score", "--method", "ip", "-o", "scores.parquet", cwd=deep)
    assert ran.code == 0, ran.err
    assert (here / "memo").is_dir()
    assert [p.name for p in deep.iterdir()] == ["scores.parquet"]  # paths of flags count from where one stands
    assert pq.read_table(deep / "scores.parquet").num_rows == 40


def test_the_nearest_file_wins_whole(here: Path) -> None:
    (here / "influence.toml").write_text('seed = 1\nlabel = "other"\n')
    inner = here / "inner"
    inner.mkdir()
    (inner / "pyproject.toml").write_text('[project]\nname = "x"\n')
    assert shown(inner)["seed"] == ("1", str(here / "influence.toml"))  # a project without our table is passed over
    (inner / "pyproject.toml").write_text("[tool.influence]\nseed = 5\n[tool.influence.score]\nbatch-size = 3\n")
    settings = shown(inner)
    assert settings["seed"] == ("5", str(inner / "pyproject.toml"))
    assert settings["batch-size"] == ("3", str(inner / "pyproject.toml"))
    assert settings["label"] == ("label", "default")


def shown(cwd: Path, *flags: str, env: dict[str, str] | None = None) -> dict[str, tuple[str, str]]:
    """What --show-settings prints: setting -> (value, origin)."""
    write(digits_table(train=5, val=0, test=0), cwd / "m.parquet")
    ran = call_cli("score", "m.parquet", "--show-settings", *flags, cwd=cwd, env=env)
    assert ran.code == 0, ran.err
    lines = [line.split() for line in ran.text.splitlines()[1:]]
    return {line[0]: (" ".join(line[1:-1]), line[-1]) for line in lines if len(line) > 1}


def test_show_settings_prints_every_value_with_its_origin(here: Path) -> None:
    (here / "influence.toml").write_text("seed = 1\n[method.ip]\n")
    seen = shown(here, "--method", "loss", env={"INFLUENCE_LABEL": "noisy"})
    assert seen["seed"] == ("1", str(here / "influence.toml"))
    assert seen["method"] == ("['loss']", "flag")
    assert seen["label"] == ("noisy", "environment")
    assert seen["precision"] == ("fp32", "default")
    assert seen["source"] == ("m.parquet", "argument")
    assert not (here / ".influence").exists()


def test_show_settings_does_not_cut_long_values(here: Path) -> None:
    long = "/".join(["a-rather-long-folder-name"] * 12)
    assert shown(here, "--store", long)["store"] == (long, "flag")


def test_isolated_reads_no_file_and_config_reads_another(here: Path) -> None:
    (here / "influence.toml").write_text("seed = 1\n")
    (here / "other.toml").write_text("seed = 2\n")
    assert shown(here)["seed"][0] == "1"
    assert shown(here, "--isolated")["seed"] == ("0", "default")
    assert shown(here, "--config", "other.toml")["seed"] == ("2", "other.toml")
    gone = call_cli("score", "--method", "ip", "m.parquet", "--config", "gone.toml", cwd=here)
    assert gone.code == 2
    assert "gone.toml" in gone.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sede = 1\n", "'seed'"),
        ("[score]\nmehtod = ['ip']\n", "'method'"),
        ("[score]\nepochs = 3\n", "[score] 'epochs'"),
        ("[scroe]\nseed = 1\n", "'scroe'"),
        ("seed = 'one'\n", "not of type int"),
        ("seed = true\n", "not of type int"),
        ("method = 3\n", "must be a list"),
        ("seed = \n", "not TOML"),
        ("[method]\nip = 3\n", "method"),
        ("[method.ip-ensmble]\nmembers = 3\n", "'ip-ensemble'"),
        ("score = 3\n", "score"),
    ],
    ids=repr,
)
def test_a_wrong_settings_file_exits_2_and_names_it(text: str, said: str, here: Path, digits: Path) -> None:
    (here / "influence.toml").write_text(text)
    ran = call_cli("score", digits, "--method", "random", cwd=here)
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert "influence.toml" in ran.err


def test_a_pipe_is_read_where_it_is_named_and_not_where_it_is_found(here: Path, digits: Path) -> None:
    for name in ("influence.toml", "pyproject.toml"):
        os.mkfifo(here / name)
        ran = call_cli("score", digits, "--method", "random", cwd=here)
        assert ran.code == 2
        assert "the settings file is no regular file" in ran.err
        assert name in ran.err
        assert call_cli("score", digits, "--method", "random", "--isolated", cwd=here).code == 0
        writer = threading.Thread(target=(here / name).write_text, args=("seed = 7\n",))
        writer.start()
        assert shown(here, "--config", name)["seed"][0] == "7" or name == "pyproject.toml"
        writer.join()
        (here / name).unlink()


def test_command_line_settings_reach_the_stage(here: Path, digits: Path) -> None:
    (here / "influence.toml").write_text('method = ["random"]\nseed = 5\n')
    from_file = call_cli("score", digits, cwd=here).rows
    assert from_file == call_cli("score", digits, "--isolated", "--method", "random", "--seed", "5", cwd=here).rows
    assert from_file == call_cli("score", digits, "--method", "random", cwd=here, env={"INFLUENCE_SEED": "5"}).rows
    assert from_file != call_cli("score", digits, "--seed", "6", cwd=here).rows


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("influence.toml", b"seed = 1 # \xff", "not TOML"),
        ("pyproject.toml", b"\xff", "not TOML"),
        ("pyproject.toml", b"tool = 3", "tool is a value"),
        ("pyproject.toml", b"[tool]\ninfluence = 3", "influence is a value"),
        ("pyproject.toml", b"tool = [1]", "tool is a value"),
    ],
)
def test_files_that_are_no_settings_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said) as caught:
        read_file(None, "score")
    assert name in caught.value.where
    assert "--isolated" in caught.value.fix
