"""What a run means for its cell."""

from __future__ import annotations

import shlex

from verify.matrix.plan import Planned
from verify.report.documents.matrix import MatrixCell, Outcome
from verify.report.documents.run import Run
from verify.verdict import Verdict

# Of a run in which nothing is sent, these two say so.
_PARALLEL = ("parallelism_engaged", "collectives")
_BAD_INPUT = 2
# What engines raise for what they do not serve; any other exception is a fault of somebody's.
_REFUSALS = ("raised NotImplementedError", "raised ValueError", "raised BadInput")


def cell_of(planned: Planned, run: Run, seconds: float) -> MatrixCell:
    """The cell of a run that was judged."""
    failed = tuple(dict.fromkeys(check.name for check in run.checks if check.verdict is Verdict.FAIL))
    unknown = [check for check in run.checks if check.verdict is Verdict.UNKNOWN]
    outcome: Outcome
    if run.verdict is Verdict.PASS:
        outcome, said = "pass", _compared(run)
    elif failed or run.verdict is Verdict.FAIL:
        first = next((check for check in run.checks if check.verdict is Verdict.FAIL), None)
        outcome, said = "fail", f"{first.name}: {first.summary}" if first else "the loop did not end"
    elif run.checks and any(check.name in _PARALLEL for check in unknown):
        parallel = next(check for check in unknown if check.name in _PARALLEL)
        outcome, said = "vacuous", f"{parallel.summary}; {_compared(run)}"
    elif refused := _refused(run):
        outcome, said = "refused", refused
    else:
        outcome, said = "unknown", _why_unknown(run)
    return _made(planned, outcome, said, run.command, failed, seconds)


def cell_without_run(planned: Planned, command: str, status: int, words: str, seconds: float) -> MatrixCell:
    """The cell of a run that wrote no document: refused as bad input, or not to be judged."""
    return _made(planned, "refused" if status == _BAD_INPUT else "unknown", words, command, (), seconds)


def cell_not_run(planned: Planned, why: str, command: str = "") -> MatrixCell:
    """A cell that nothing was run for."""
    return _made(planned, "unknown", why, command, (), None)


def command_of(planned: Planned) -> str:
    """What runs a cell."""
    return shlex.join(["verify", "run", *planned.options])


def _made(
    planned: Planned, outcome: Outcome, said: str, command: str, checks: tuple[str, ...], seconds: float | None
) -> MatrixCell:
    return MatrixCell(
        row=planned.row,
        column=planned.column,
        release=planned.release,
        outcome=outcome,
        said=said,
        checks=checks,
        command=command,
        seconds=None if seconds is None else round(seconds, 1),
    )


def _compared(run: Run) -> str:
    found = next((check.compared for check in run.checks if check.name == "ranks_agree"), None)
    return "nothing was compared" if found is None else f"{found.steps} steps, {found.elements} elements compared"


def _why_unknown(run: Run) -> str:
    if run.failure is not None:
        return run.failure.cause
    first = next((check for check in run.checks if check.verdict is Verdict.UNKNOWN), None)
    return f"{first.name}: {first.summary}" if first else "; ".join(run.notes[-1:]) or "no reason was given"


def _refused(run: Run) -> str:
    """The engine's own words, where it raised; empty where something else stood in the way."""
    if run.failure is None:
        return ""
    return next((rank.what for rank in run.failure.ranks if rank.what.startswith(_REFUSALS)), "")
