"""``verify fuzz``: the combine in every dtype, layout and setting, on every rank."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verify.commands.report import add_outputs, check_outputs, write_outputs
from verify.errors import BadInput
from verify.ranks.local.forkserver import fork_server

if TYPE_CHECKING:
    from rich.console import Console


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    what = parser.add_argument_group("what is done")
    what.add_argument("--profile", default="fast", help="fast, ci or nightly: how many cases (default fast)")
    what.add_argument("--cases", type=int, metavar="N", help="another number of cases")
    what.add_argument("--seed", type=int, default=0, metavar="N", help="of everything drawn (default 0)")
    what.add_argument("--combine", metavar="FILE_OR_MODULE:FUNCTION", help="a combine of your own instead")
    what.add_argument(
        "--replay", metavar="FILE", help="evaluate one saved case again, in the setting it was saved with"
    )
    what.add_argument(
        "--mutants", action="store_true", help="fuzz combines with one thing wrong, and show what sees it"
    )
    what.add_argument("--envelope", action="store_true", help="measure which settings must match across ranks")
    where = parser.add_argument_group("where")
    where.add_argument("--world-size", type=int, metavar="N", help="ranks (default 2)")
    where.add_argument("--device", help="cpu or cuda (default cpu)")
    where.add_argument("--backend", help="gloo or nccl, default what fits")
    where.add_argument("--preset", default="tiny", help="the envelope's model: tiny, small or 7b (default tiny)")
    out = parser.add_argument_group("what comes out")
    out.add_argument("--json", metavar="FILE", help="write the findings to FILE")
    add_outputs(out)
    out.add_argument("--save", default="fuzz-failures", metavar="DIR", help="for failing cases (default fuzz-failures)")
    out.add_argument("--timeout", type=float, default=540.0, metavar="S", help="seconds for --envelope (default 540)")


def execute(arguments: argparse.Namespace) -> int:
    """Does what was asked and returns the exit status."""
    began = time.monotonic()
    fork_server()  # Starts importing torch in the process that ranks are forked from, while this one imports it too.
    chosen = [name for name in ("replay", "mutants", "envelope") if getattr(arguments, name)]
    if len(chosen) > 1:
        raise BadInput(
            f"{' and '.join('--' + name for name in chosen)} were given, expected one of them; leave one out"
        )
    check_outputs(arguments)
    with _nothing_kept():
        return _execute(arguments, began)


def _execute(arguments: argparse.Namespace, began: float) -> int:
    if arguments.envelope:
        return _envelope(arguments)
    if arguments.mutants:
        return _mutants(arguments)
    from rich.console import Console

    from verify.fuzz.console import print_fuzz
    from verify.fuzz.session import FuzzJob, run_fuzz, run_replay
    from verify.report.progress import ProgressReport

    given: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("combine", "world_size", "device", "backend")
        if getattr(arguments, name) is not None
    }
    if arguments.replay:
        report = run_replay(arguments.replay, **given)
    else:
        settings = {"profile": arguments.profile, "cases": arguments.cases, "seed": arguments.seed}
        with ProgressReport(Console(stderr=True)) as progress:
            report = run_fuzz(FuzzJob(**settings, save=Path(arguments.save), **given), progress, began)
    print_fuzz(report, _console(arguments))
    _write(report.to_dict(), arguments)
    return report.exit_status


@contextmanager
def _nothing_kept() -> Iterator[None]:
    """Cases follow from the seed alone, and the folder that a command is called in stays as it is."""
    from hypothesis.configuration import set_hypothesis_home_dir

    set_hypothesis_home_dir(os.devnull)
    try:
        yield
    finally:
        set_hypothesis_home_dir(None)


def _mutants(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from verify.fuzz.mutation import print_mutants, run_mutants
    from verify.report.progress import ProgressReport

    with ProgressReport(Console(stderr=True)) as progress:
        report = run_mutants(arguments.profile, arguments.seed, arguments.device or "cpu", arguments.backend, progress)
    print_mutants(report, _console(arguments))
    _write(report.to_dict(), arguments)
    return report.exit_status


def _envelope(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from verify.envelope.envelope import EnvelopeJob, print_envelope, run_envelope
    from verify.report.progress import ProgressReport

    job = EnvelopeJob(arguments.device or "cpu", arguments.preset, arguments.backend, arguments.timeout)
    with ProgressReport(Console(stderr=True)) as progress:
        report = run_envelope(job, progress)
    print_envelope(report, _console(arguments))
    _write(report.to_dict(), arguments)
    return report.exit_status


def _console(arguments: argparse.Namespace) -> Console:
    """A page or summary on standard output has it to itself."""
    from rich.console import Console

    return Console(stderr="-" in (arguments.html, arguments.markdown))


def _write(document: dict[str, Any], arguments: argparse.Namespace) -> None:
    if arguments.json:
        from verify.report.document import write_document

        write_document(document, arguments.json)
    write_outputs(document, arguments)
