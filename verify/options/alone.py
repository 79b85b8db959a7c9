"""The commands that share no option with others."""

from __future__ import annotations

from verify.options.option import Command, Group, Option

INIT = Command(
    "write a target skeleton, a test and a CI job for your own repository",
    (
        Group("what is written, and where", (
            Option("folder", "the repository; the current folder if not given", default=".", nargs="?", metavar="DIR"),
            Option("--ci", "github, buildkite, slurm: the jobs to write", default="github", metavar="NAME,..."),
            Option("--force", "write over files that exist", switch=True),
        )),
    ),
    ("verify init", "verify init --ci github,slurm"),
)  # fmt: skip

HELP = Command(
    "show a guide: how to gate an engine, read a failure, write a target, add a check",
    (Group("which", (Option("topic", "which; their list if not given", nargs="?", metavar="TOPIC"),)),),
    ("verify help", "verify help gate"),
)
COMPLETION = Command(
    "print a script with which bash or zsh completes commands and options",
    (Group("which", (Option("shell", "bash or zsh", metavar="SHELL"),)),),
    ("verify completion bash",),
)
