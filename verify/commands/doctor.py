"""``verify doctor``: what this machine can run."""

from __future__ import annotations

import argparse

from verify.commands.report import check_outputs, show


def execute(arguments: argparse.Namespace) -> int:
    """Prints what this machine can run and returns 0: it judges nothing."""
    from verify.commands.machine import inspect_machine

    check_outputs(arguments)
    show(inspect_machine(), arguments)
    return 0
