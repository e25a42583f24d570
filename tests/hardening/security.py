"""Security: what data say is never run, shown as markup, sent or written where it does not belong.

Code in files is met by ``bad_input``; here are secrets of the environment, the network, modes of files, links, and pages.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from pathlib import Path
from typing import Any, NoReturn

import pyarrow.parquet as pq

from influence_cli.cli.main import run
from tests.cases import examples, feature_table
from tests.hardening import crash, scene
from tests.hardening.harness import Ended, Tally, cli, copy_of, forked

SECRET = "hunter2-that-nobody-may-read"
MARKUP = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
POLICY = "default-src 'none'"
SKIPPED = ("score, bif", "score, gex", "evaluate, lds", "retrain, compared", "score, cg and self")


def _isolated(arguments: tuple[str, ...], mask: int) -> int:  # runs in a fork
    """A run that may open no socket and whose files nobody else may read."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        os.write(2, b"NETWORK\n")
        raise OSError("no network here")

    socket.socket.connect = refuse  # type: ignore[method-assign]
    socket.getaddrinfo = refuse  # type: ignore[assignment]
    os.umask(mask)
    return run(list(arguments))


def secrets_and_modes(tally: Tally) -> None:
    """Every command with a secret in its environment, without a network, under a umask of 077."""
    env = {
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "HF_TOKEN": SECRET,
        "WANDB_API_KEY": SECRET,
        "DATABASE_URL": f"x://u:{SECRET}@h",
    }
    for name, (template, arguments) in crash.COMMANDS.items():
        if name in SKIPPED:
            continue
        with copy_of(template()) as place:
            before = set(place.rglob("*"))
            ended = forked(lambda arguments=arguments: _isolated((*arguments, "--debug"), 0o077), place, env=env)
            new = [p for p in place.rglob("*") if p.is_file() and p not in before]
            told = [p for p in new if SECRET.encode() in p.read_bytes()]
            wrong = f"{told[0].name} has a secret" if told else None
            if SECRET in ended.err or SECRET.encode() in ended.out:
                wrong = "a secret is printed"
            tally.count("secrets of the environment", name, wrong or (None if ended.code == 0 else ended.how))
            open_to_others = [p for p in new if stat.S_IMODE(p.stat().st_mode) & 0o177]
            tally.count("file modes", name, f"{open_to_others[0]} may be read by others" if open_to_others else None)
            tally.count("network", name, "a connection is tried" if "NETWORK" in ended.err else None)


def pages(tally: Tally) -> None:
    """Markup in ids, labels, groups and file names does not become part of a page."""
    table = feature_table(examples(), group=[MARKUP, "b"] * 32)
    ids = [f"{MARKUP}{k}" for k in range(64)]
    table = table.set_column(0, "id", [ids]).replace_schema_metadata({"classes": f'["{MARKUP[2:]}", "b", "c"]'})
    with copy_of(scene.bare()) as place:
        pq.write_table(table, place / "<b>x.parquet")
        score = ("score", "<b>x.parquet", *scene.ABOUT[1:], "--method", "loss", "--report", "r.html", "-o", "s.parquet")
        edit = ("curate", "s.parquet", "--budget", "10%", "--report", "review.html", "-o", "c.parquet")
        judge = ("evaluate", "s.parquet", "--clean-label", "label", "--report", "v.html", "-o", "v.json")
        for asked, page in ((score, "r.html"), (edit, "review.html"), (judge, "v.html")):
            ended = cli(*asked, cwd=place)
            tally.count("pages", page, _page_fault(place / page, ended))


def _page_fault(page: Path, ended: Ended) -> str | None:
    if not page.exists():
        return None if ended.code == 2 else ended.how
    text = page.read_text()
    if MARKUP[2:] in text or "<b>x.parquet" in text:
        return "markup of the data is markup of the page"
    if POLICY not in text:
        return "no content security policy"
    outside = re.findall(r"(?:src|href|action)=[\"']?(?:https?:)?//[^\"'> ]+", text)
    return f"names what is elsewhere: {outside[0]}" if outside else None


def links(tally: Tally) -> None:
    """Links in the places of our files are not written through, and nothing behind them is changed or removed."""
    for name in ("x.parquet", "st/outputs", "st/timings.json", "st/influence-store", "run2"):
        with copy_of(scene.bare()) as place:
            other = place.with_name("other")
            other.mkdir()
            (other / "mine").write_text("mine")
            link = place / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(other / "mine" if "." in name or name.endswith("store") else other)
            for asked in (
                ("score", *scene.ABOUT, "--method", "ip", "-o", "x.parquet"),
                ("cache", "gc", "--store", "st"),
                (*scene.TRAIN, "-o", "run2"),
            ):
                cli(*asked, cwd=place)
            kept = (other / "mine").exists() and (other / "mine").read_text() == "mine"
            tally.count("links", name, None if kept else "a file behind a link is changed")
