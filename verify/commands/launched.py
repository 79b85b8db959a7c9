"""``verify run`` in processes that a launcher started: who judges, who follows, and how all of them end alike."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import fcntl
import functools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from verify.errors import BadInput, Unjudged
from verify.ranks.launched.launch import Launch

if TYPE_CHECKING:
    from verify.ranks.launched.launched_ranks import LaunchedRanks
    from verify.ranks.local.anonymous import AnonymousFile
    from verify.runner.job import Job
    from verify.runner.replay import References
    from verify.runner.run_report import RunReport
    from verify.runner.tracing import Progress, Traces
    from verify.trace.trace import Trace

_BAD_INPUT, _UNKNOWN, _INTERRUPTED = 2, 3, 128
# Beyond the command's own limit: starting, locating a divergence and writing the report.
_ALLOWANCE = 300.0

Runner = Callable[["Job", "Progress"], "RunReport"]
JobOf = Callable[[argparse.Namespace], "Job"]


def execute(
    launch: Launch,
    arguments: argparse.Namespace,
    job_of: JobOf,
    show: Callable[[argparse.Namespace, Job, Runner], int],
) -> NoReturn:
    """Runs this process's part and ends it; every process of the launch ends with the same status.

    Args:
        launch: what the launcher says of this process.
        arguments: of the command.
        job_of: the job that they describe.
        show: runs the job, prints and writes what is found, and returns the status; on global rank 0 only.
    """
    from verify.ranks.launched.launched_ranks import LaunchedRanks

    # The kernel ends this process if native code keeps the interpreter's lock, so that no thread of ours can.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(arguments.timeout + 2 * _ALLOWANCE) if 0 < arguments.timeout <= 86400 else 86400)
    spoken, output = _redirect_output(launch.rank == 0)
    ranks: LaunchedRanks | None = None
    status, said = _UNKNOWN, ""
    try:
        ranks = LaunchedRanks(launch, output)
        if launch.rank == 0:
            job = _prepared(job_of(arguments), ranks)
            status = show(arguments, job, lambda job, progress: _run(job, ranks, progress))
        else:
            status, said = _follow(ranks, arguments, job_of)
    except BadInput as error:
        status, said = _BAD_INPUT, str(error)
    except Unjudged as reason:
        said = str(reason)
    except KeyboardInterrupt:
        by = signal.SIGTERM if ranks is not None and ranks.terminated else signal.SIGINT
        status, said = _INTERRUPTED + by, "" if launch.rank else "interrupted"
    except BrokenPipeError:
        pass  # Whoever read our output has gone.
    except BaseException:
        said = traceback.format_exc()
    if said:
        with contextlib.suppress(OSError):
            os.write(spoken, f"verify: {said}\n".encode(errors="replace"))
    if ranks is not None and launch.rank == 0:
        ranks.end(status)
    _leave(status)


def _prepared(job: Job, ranks: LaunchedRanks) -> Job:
    """The job, once it can be run, with this process's rank on its way."""
    from verify.ranks.plan import require_fitting
    from verify.targets.finding import find_target
    from verify.targets.protocol import fits_any_world

    job = job.checked()
    require_fitting(job.device, job.backend)
    one_world = job.larger_world or fits_any_world(find_target(job.target))
    ranks.start(job.ranks, job.device, job.backend, one_world=one_world)
    return job


def _run(job: Job, ranks: LaunchedRanks, progress: Progress) -> RunReport:
    from verify.runner.sequence import run_requests

    ranks.wait_for_groups()
    # Nobody can start more processes: every request must have the world size of the first.
    job = replace(job, world_size=job.ranks)
    report = run_requests(job, _Launched(ranks, progress, time.monotonic()))
    command = ranks.launch.command(job.command)
    return replace(
        report,
        command=command,
        backend=ranks.backend,
        notes=(*ranks.notes, *report.notes),
        replicas=ranks.described(),
    )


@dataclass(frozen=True)
class _Launched:
    """Judges one request at a time in launched processes, which cannot be replaced."""

    ranks: LaunchedRanks
    progress: Progress
    began: float

    def judge(self, job: Job, name: str) -> tuple[RunReport, Traces]:
        from verify.runner.one_request import blank_report, run_on
        from verify.runner.pools import Within

        report = replace(blank_report(job), command=self.ranks.launch.command(job.command))
        progress = Within(self.progress, name) if name else self.progress
        return run_on(job, self.ranks, report, self.began, progress, self.kept)

    def reference(self, job: Job, name: str) -> Trace:
        from verify.runner.one_request import reference_on

        return reference_on(job, self.ranks, self.began, name)

    def afresh(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    @functools.cached_property
    def kept(self) -> References:
        """What the reference did for an earlier request."""
        from verify.runner.replay import References

        return References()


def _follow(
    ranks: LaunchedRanks, arguments: argparse.Namespace, job_of: Callable[[argparse.Namespace], Job]
) -> tuple[int, str]:
    from verify.ranks.failure.answer import Answer

    try:
        _prepared(job_of(arguments), ranks)
    except (BadInput, Unjudged) as error:
        ranks.answer(Answer.of_error(error))
    status, why = ranks.follow(arguments.timeout + _ALLOWANCE)
    return (_UNKNOWN if status is None else status), why


def _redirect_output(keeps: bool) -> tuple[int, AnonymousFile]:
    """Sends what loops and libraries print to memory, for the report; returns where stderr went, and that memory.

    ``keeps``: whether what Python prints in this process still goes where it should.
    """
    from verify.ranks.local.anonymous import AnonymousFile

    output = AnonymousFile("verify-output")
    fcntl.fcntl(output.descriptor, fcntl.F_SETFL, fcntl.fcntl(output.descriptor, fcntl.F_GETFL) | os.O_APPEND)
    kept = [os.dup(1), os.dup(2)]
    for name, descriptor, was in zip(("stdout", "stderr"), (1, 2), kept, strict=True):
        stream = getattr(sys, name)
        stream.flush()
        os.dup2(output.descriptor, descriptor)
        if keeps:
            setattr(sys, name, os.fdopen(was, "w", 1, encoding=stream.encoding, errors=stream.errors))
    faulthandler.enable(kept[1])  # A crash is told at once: nobody may be left to ask.
    return kept[1], output


def _leave(status: int) -> NoReturn:
    """Ends the process without waiting for a rank that may be stuck in a collective."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
