"""``verify fuzz``: the combine in every dtype, layout and setting, on every rank."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from verify.commands.report import check_outputs, progress_for, show
from verify.errors import BadInput
from verify.options.targets import with_options
from verify.ranks.local.forkserver import fork_server


def execute(arguments: argparse.Namespace) -> int:
    """Does what was asked and returns the exit status."""
    began = time.monotonic()
    fork_server()  # Starts importing torch in the process that ranks are forked from, while this one imports it too.
    chosen = [name for name in ("replay", "mutants", "envelope") if getattr(arguments, name)]
    if len(chosen) > 1:
        raise BadInput(
            f"{' and '.join('--' + name for name in chosen)} were given, expected one of them; leave one out"
        )
    if chosen in (["mutants"], ["envelope"]) and (arguments.target or arguments.combine):
        other = "--target" if arguments.target else "--combine"
        raise BadInput(
            f"{other} and --{chosen[0]} were both given, expected one of them, since --{chosen[0]} looks at the "
            "built-in combine alone; leave one out"
        )
    check_outputs(arguments)
    with _nothing_kept():
        return _execute(arguments, began)


def _execute(arguments: argparse.Namespace, began: float) -> int:
    if arguments.envelope:
        return _envelope(arguments)
    if arguments.mutants:
        return _mutants(arguments)
    from verify.fuzz.session import FuzzJob, run_fuzz, run_replay
    from verify.fuzz.tasks import OF_TARGET

    given: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("combine", "world_size", "device", "backend")
        if getattr(arguments, name) is not None
    }
    if arguments.target:
        if arguments.combine:
            raise BadInput("--target and --combine were both given, expected one of them; leave one out")
        given["combine"] = OF_TARGET + with_options(arguments.target, arguments.target_option or ())
    if arguments.replay:
        document = run_replay(arguments.replay, **given)
    else:
        settings = {"profile": arguments.profile, "cases": arguments.cases, "seed": arguments.seed}
        with progress_for(arguments) as progress:
            document = run_fuzz(FuzzJob(**settings, save=Path(arguments.save), **given), progress, began)
    return show(document, arguments)


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
    from verify.fuzz.mutation import run_mutants

    with progress_for(arguments) as progress:
        device = arguments.device or "cpu"
        document = run_mutants(arguments.profile, arguments.seed, device, arguments.backend, progress)
    return show(document, arguments)


def _envelope(arguments: argparse.Namespace) -> int:
    from verify.envelope.envelope import EnvelopeJob, run_envelope

    job = EnvelopeJob(arguments.device or "cpu", arguments.preset, arguments.backend, arguments.timeout)
    with progress_for(arguments) as progress:
        document = run_envelope(job, progress)
    return show(document, arguments)
