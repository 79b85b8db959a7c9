"""``verify doctor``."""

from __future__ import annotations

import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """It takes no options."""
    del parser


def execute(arguments: argparse.Namespace) -> int:
    """Prints what this machine can run."""
    del arguments
    from verify.report.doctor import main

    return main()
