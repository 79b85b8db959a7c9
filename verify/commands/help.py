"""``verify help``: the guides, one for each reader."""

from __future__ import annotations

import argparse
from pathlib import Path

from verify.errors import BadInput

GUIDES = Path(__file__).parents[1] / "guides"
TOPICS = {
    "gate": "put my engine under a test",
    "failure": "read a failure",
    "target": "write a target",
    "layout": "shards, sums, and exchanges of an engine's own",
    "rounding": "judge a loop that cannot have the reference's bits",
    "check": "add a check to this project",
}


def execute(arguments: argparse.Namespace) -> int:
    """Prints a guide, or the list of them, and returns 0."""
    if arguments.topic is None:
        for name, summary in TOPICS.items():
            print(f"verify help {name:<10}{summary}")
        print("verify COMMAND --help   the options of a command, with examples")
        return 0
    if arguments.topic not in TOPICS:
        raise BadInput.of("the topic", arguments.topic, f"one of {', '.join(TOPICS)}", "choose one")
    print((GUIDES / f"{arguments.topic}.md").read_text(encoding="utf-8"), end="")
    return 0
