"""Whole messages, as the checks and the ranks' reports word them: what, where, how much, what it usually means, again.

``PYTHONPATH=.:tests/helpers python tests/unit/report/test_messages.py`` writes the texts anew. Read every change as one
who has never seen the suite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from example_reports import COMMAND
from traces import changed, clean, evidence, extended, flip, reference, small_request, swapped

from verify.bits import first_difference
from verify.checks.each_step import each_step
from verify.checks.judging import LoopRun, judge
from verify.ranks.failure.calls import Calls, entry
from verify.ranks.failure.failure import RankFailure
from verify.ranks.failure.report import RankReport, RankState
from verify.report.documents.parts import Failure
from verify.report.message import failure_text, rank_failure_text
from verify.runner.locate import Location
from verify.schedule import ALL_GATHER, BROADCAST
from verify.trace.trace import Collective, Trace
from verify.verdict import Finding

MESSAGES = Path(__file__).with_name("messages")
LOOP = "my_loop.py:loop"
REQUEST = small_request()


def _right() -> Trace:
    """The reference, its ``x_t`` such that its bits are known everywhere."""
    right = reference(REQUEST)
    assert right.start is not None
    right.start.fill_(1.0)
    right.x_t.fill_(-0.4375)
    right.final.fill_(-0.4375)
    return right


def traces() -> list[Trace]:
    """A clean run of a user's loop with the same ``x_t``."""
    made = clean(REQUEST, loop=LOOP)
    for trace in made:
        assert trace.start is not None
        trace.start.fill_(1.0)
        trace.x_t.fill_(-0.4375)
        trace.final.fill_(-0.4375)
    return made


def found(name: str, made: list[Trace]) -> Finding:
    """What check ``name`` finds in these traces."""
    (finding,) = [f for f in judge(REQUEST, {LOOP: LoopRun(made, "local")}, evidence(_right())) if f.name == name]
    return finding


def say(name: str, made: list[Trace]) -> str:
    """How it says that."""
    return failure_text(found(name, made), COMMAND)


def one_bit() -> str:
    made = traces()
    flip(made[1].x_t, (3, 2, 1))
    return say("ranks_agree", made)


def sign_of_zero() -> str:
    made = traces()
    for trace in made:
        trace.x_t[6, 0, 0] = trace.final[0, 0] = -0.0 if trace.rank else 0.0
    return say("ranks_agree", made)


def nan_payload() -> str:
    made = traces()
    for trace in made:
        trace.x_t[6].view(torch.int32)[1, 1] = trace.final.view(torch.int32)[1, 1] = 0x7FC00000 + trace.rank
    return say("ranks_agree", made)


def not_shared() -> str:
    made = traces()
    start = made[0].start
    assert start is not None
    start.fill_(0.5)
    return say("ranks_agree", changed(made, 1, start=torch.full_like(start, 0.25)))


def located() -> str:
    """Every rank was handed a velocity that rank 1 got wrong, and its step was run again."""
    made = traces()
    for trace in made:
        trace.x_t[2:] += 0.5
        trace.final.copy_(trace.x_t[-1])
    place = Location(2, 1, "velocity of text", "aten::mm", "layers.1.gen.mlp.down_proj", 1)
    finding = found("matches_reference", made)
    return failure_text(replace(finding, details=(str(place), *finding.details)), COMMAND)


def other_noise() -> str:
    made = traces()
    for trace in made:
        assert trace.start is not None
        trace.start.fill_(0.5)
    return say("matches_reference", made)


def each_step_alone() -> str:
    """Two steps wrong, each by itself."""
    made = traces()
    start = made[0].start
    assert start is not None
    recomputed = [(step, (0, 1), made[0].x_t[step] + (0.0625 if step in (2, 5) else 0.0)) for step in range(7)]
    return failure_text(each_step(made, start, recomputed), COMMAND)


def loops_differ() -> str:
    made = {"broadcast": clean(REQUEST, "broadcast"), "local": clean(REQUEST)}
    for each in made.values():
        for trace in each:
            trace.x_t.fill_(-0.4375)
    for trace in made["local"]:
        flip(trace.x_t, (4, 0, 0), 31)
    runs = {name: LoopRun(each, name) for name, each in made.items()}
    (finding,) = [f for f in judge(REQUEST, runs, evidence()) if f.name == "loops_agree"]
    return failure_text(finding, COMMAND)


def step_too_many() -> str:
    return say("schedule", [extended(trace) for trace in traces()])


def bound_rule() -> str:
    schedule = REQUEST.schedule
    other = replace(schedule, guided=swapped(schedule.guided, 6, True))
    return say("schedule", [replace(trace, followed=other) for trace in traces()])


def broadcast_added() -> str:
    made = traces()
    again = Collective(BROADCAST, "float32", (4, 3), 0)
    more = [swapped(t.collectives, 3, (*t.collectives[3], again)) for t in made]
    return say("collectives", [replace(t, collectives=c) for t, c in zip(made, more, strict=True)])


def gather_missing() -> str:
    made = traces()
    return say("collectives", changed(made, 1, collectives=swapped(made[1].collectives, 3, ())))


def dtypes_differ() -> str:
    made = traces()
    halved = (Collective(ALL_GATHER, "float16", (4, 3)),)
    return say("collectives", changed(made, 1, collectives=swapped(made[1].collectives, 3, halved)))


def in_parallel_no_more() -> str:
    made = traces()
    every = tuple(("gen", "text") if step < 6 else ("gen",) for step in range(7))
    return say("parallelism_engaged", [replace(trace, branches=every) for trace in made])


def cache_written() -> str:
    made = traces()
    before = torch.zeros(2, 3, 4, dtype=torch.bfloat16)
    after = before.clone()
    after[1, 0, 2] = 0.25
    record = replace(made[0].caches[1], after="00" * 32, written_at=4, difference=first_difference(before, after))
    return say("cache_frozen", changed(made, 0, caches=swapped(made[0].caches, 1, record)))


def another_x_t() -> str:
    made = traces()
    return say("observed", [replace(trace, foreign=swapped(trace.foreign, 5, 12)) for trace in made])


def not_finite() -> str:
    made = traces()
    for trace in made:
        trace.x_t[5, 2, 1] = float("inf")
    return say("finite", made)


def environments_differ() -> str:
    made = traces()
    flags = {"backends.cuda.matmul.allow_tf32": False, "backends.cudnn.benchmark": False}
    ours = made[0].environment | {"flags": flags, "threads": 1}
    theirs = ours | {"flags": flags | {"backends.cuda.matmul.allow_tf32": True}}
    return say("environments_agree", [replace(made[0], environment=ours), replace(made[1], environment=theirs)])


STACK = 'Thread 0x1 (most recent call first):\n  File "my_loop.py", line 9 in loop'


def ended(*ranks: RankReport) -> str:
    """The report of a run that ended as these ranks did."""
    return rank_failure_text(msgspec.convert(RankFailure(LOOP, list(ranks), 20.0).to_dict(), Failure), COMMAND)


def rank_died() -> str:
    what = "was killed by SIGKILL: out of memory, or somebody killed it"
    killed = RankReport(1, RankState.DIED, what, 5, "velocity of text", output="loading\n")
    return ended(killed, RankReport(0, RankState.WAITING, "was still waiting", 5, "all_gather 1 of step 6", STACK))


def dtype_in_a_broadcast() -> str:
    aborted = RankReport(1, RankState.DIED, "was killed by SIGABRT", 7, "broadcast 2 of step 8", output="512 vs 256\n")
    lost = "raised RuntimeError: Connection closed by peer [127.0.0.1]:1"
    return ended(aborted, RankReport(0, RankState.RAISED, lost, 8, "all_gather 1 of step 9", STACK))


def rank_skips_a_collective() -> str:
    return ended(
        RankReport(0, RankState.HUNG, "did not finish in time", 39, "all_gather 1 of step 40", STACK),
        RankReport(1, RankState.FINISHED, "finished its part", 48, "finishing"),
        RankReport(2, RankState.HUNG, "did not finish in time", 39, "all_gather 1 of step 40", STACK),
    )


def process_ran_ahead() -> str:
    """Over NCCL calls return before they are over: the process of rank 0 went on for seven steps."""
    made = [entry("all_gather", 1, step) for step in range(29)]
    return ended(
        RankReport(0, RankState.HUNG, "did not finish in time", 27, "all_gather 1 of step 28", STACK,
                   calls=Calls(29, b"".join(made))),
        RankReport(1, RankState.FINISHED, "finished its part", 20, "finishing", calls=Calls(21, b"".join(made[:21]))),
    )  # fmt: skip


def rank_is_busy() -> str:
    busy = RankReport(1, RankState.HUNG, "did not finish in time", 2, "velocity of text", STACK)
    return ended(busy, RankReport(0, RankState.HUNG, "did not finish in time", 2, "all_gather 1 of step 3", STACK))


def loop_raised() -> str:
    trace = 'Traceback (most recent call last):\n  File "my_loop.py", line 9, in loop\nRuntimeError: no more steps'
    raised = RankReport(1, RankState.RAISED, "raised RuntimeError: no more steps", 5, "", trace)
    return ended(raised, RankReport(0, RankState.WAITING, "was still waiting", 5, "all_gather 1 of step 6", STACK))


CASES: dict[str, Callable[[], str]] = {
    case.__name__: case
    for case in (
        *(one_bit, sign_of_zero, nan_payload, not_shared, other_noise, located, each_step_alone, loops_differ),
        *(step_too_many, bound_rule, broadcast_added, gather_missing, dtypes_differ, in_parallel_no_more),
        *(cache_written, another_x_t, not_finite, environments_differ, rank_died, dtype_in_a_broadcast),
        *(rank_skips_a_collective, process_ran_ahead, rank_is_busy, loop_raised),
    )
}


@pytest.mark.parametrize("name", CASES)
def test_whole_message(name: str) -> None:
    assert CASES[name]() + "\n" == (MESSAGES / f"{name}.txt").read_text(encoding="utf-8")


def test_every_message_is_compared() -> None:
    assert {path.stem for path in MESSAGES.glob("*.txt")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_message_says_what_to_do(name: str) -> None:
    """What it usually means, unless an exception says it; and always how to see it again."""
    lines = CASES[name]().splitlines()
    assert lines[-1] == f"  reproduce: {COMMAND}"
    says_itself = ("loop_raised", "rank_died")
    assert any(line.startswith("  usually: ") for line in lines) or name in says_itself
    assert max(map(len, lines)) <= 240


if __name__ == "__main__":
    for name, case in CASES.items():
        (MESSAGES / f"{name}.txt").write_text(case() + "\n", encoding="utf-8")
