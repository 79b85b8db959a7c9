"""``verify doctor``: what this machine can run."""

from __future__ import annotations

import argparse


def execute(arguments: argparse.Namespace) -> int:
    """Prints what this machine can run and returns 0: it judges nothing."""
    from rich.console import Console

    from verify.commands.machine import PACKAGES, inspect_machine
    from verify.report.doctor import print_machine
    from verify.report.document import check_writable, write_document

    if arguments.json:
        check_writable(arguments.json)
    machine = inspect_machine() | {"command": "verify doctor"}
    print_machine(machine, PACKAGES, Console())
    if arguments.json:
        write_document(machine, arguments.json)
    return 0
