"""``verify doctor``: what this machine can run."""

from __future__ import annotations

import argparse

from verify.commands.report import check_outputs, show
from verify.options.targets import with_options


def execute(arguments: argparse.Namespace) -> int:
    """Prints what this machine can run and returns 0: it judges nothing.

    Raises:
        BadInput: the target that was named cannot be loaded.
    """
    from verify.commands.machine import inspect_machine

    check_outputs(arguments)
    target = with_options(arguments.target, arguments.target_option or ()) if arguments.target else None
    return show(inspect_machine(target), arguments)
