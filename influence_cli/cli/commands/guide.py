"""``influence guide``: the handbook, topic by topic, as Markdown files of the package."""

from __future__ import annotations

import sys
from importlib.resources import files

from influence_cli.cli.console import terminal
from influence_cli.cli.printing import print_markdown
from influence_cli.cli.settings.settings import Settings
from influence_cli.errors import UsageError, nearest

# in the order in which they are best read
TOPICS = (
    *("start", "found", "manifest", "tables", "text", "methods", "objectives", "trust", "retraining"),
    *("gate", "ci", "store", "processes", "python", "limits", "contributing"),
)
SCHEMAS = ("gate.schema.json",)  # of what commands print as JSON


def guide(settings: Settings) -> None:
    """The handbook: a TOPIC, or without one what topics there are."""
    topic = settings.source
    if topic in SCHEMAS:
        sys.stdout.write(files("influence_cli").joinpath("guide", topic).read_text(encoding="utf-8"))
        return
    if topic is not None and topic not in TOPICS:
        raise UsageError(f"the guide has no topic {topic!r}", fix=nearest(topic, [*TOPICS, *SCHEMAS]))
    print_markdown(index() if topic is None else text_of(topic), terminal(), sys.stdout)


def text_of(topic: str) -> str:
    """The Markdown of a topic."""
    return files("influence_cli").joinpath("guide", f"{topic}.md").read_text(encoding="utf-8")


def about(topic: str) -> str:
    """What a topic is about, in a line: its title, which begins with its name."""
    return text_of(topic).partition("\n")[0].partition(": ")[2]


def index() -> str:
    """The Markdown of the list of topics."""
    lines = [f"- `{topic}`: {about(topic)}" for topic in TOPICS]
    schemas = f"`influence guide {SCHEMAS[0]}` prints the JSON Schema of what `curate --check --format json` prints."
    return "\n".join(
        ["# The guide to influence", "", *lines, "", "Read one with `influence guide TOPIC`.", schemas, ""]
    )
