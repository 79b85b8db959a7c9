"""Reports as runs make them, with known content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from traces import clean as clean_traces
from traces import small_request

from verify.bits import first_difference
from verify.checks.ranks_agree import ranks_agree
from verify.request import DenoiseRequest
from verify.runner.run_report import RunReport
from verify.schedule import ALL_GATHER, BROADCAST
from verify.verdict import Compared, Divergence, Finding, Verdict, merge

COMMAND = "verify run --loops broadcast,local --target builtin --world-size 2 --device cpu --preset tiny"
TOKENS, CHANNELS, STEPS, GUIDED_STEPS = 64, 16, 49, 41
COLLECTIVES = {"broadcast": {ALL_GATHER: 41, BROADCAST: 50}, "local": {ALL_GATHER: 41, BROADCAST: 1}}


def report(findings: Sequence[Finding], **changes: Any) -> RunReport:
    """A run of both loops on two ranks that found ``findings``."""
    fields: dict[str, Any] = {
        "verdict": merge(finding.verdict for finding in findings),
        "target": "builtin",
        "request": DenoiseRequest().to_dict() | {"preset": "tiny", "dtype": "bfloat16"},
        "steps": STEPS,
        "guided_steps": GUIDED_STEPS,
        "world_size": 2,
        "backend": "gloo",
        "device": "cpu",
        "environment": [{"rank": rank, "torch": "2.13.0", "variables": {}} for rank in range(2)],
        "findings": findings,
        "collectives": COLLECTIVES,
        "timings": {"reference": 0.33, "broadcast": 0.39, "local": 0.26, "judging": 0.04, "total": 3.46},
        "command": COMMAND,
    }
    return RunReport(**fields | changes)


def passing(name: str, loop: str, elements: int = 52224) -> Finding:
    """A check that compared ``elements`` and found nothing."""
    return Finding(name, loop, Verdict.PASS, "every byte agrees", Compared(STEPS, elements))


def ranks_differ(right: float, other: float | torch.Tensor, step: int, loop: str = "local") -> Finding:
    """Element (3, 5) of ``x_t`` is ``right`` on rank 0 and ``other`` on rank 1."""
    a = torch.zeros(TOKENS, CHANNELS)
    b = a.clone()
    a[3, 5], b[3, 5] = right, other
    divergence = Divergence(step, (0, 1), "x_t", difference=first_difference(a, b))
    summary = f"rank 0 of {loop} and rank 1 of {loop} differ in x_t after step {step}"
    return Finding("ranks_agree", loop, Verdict.FAIL, summary, Compared(STEPS, 52224), divergence)


def one_bit() -> RunReport:
    """One mantissa bit on rank 1 at step 7."""
    flipped = torch.tensor(-0.4375).view(torch.int32).bitwise_xor(1).view(torch.float32)
    return report([passing("ranks_agree", "broadcast"), ranks_differ(-0.4375, flipped, 7), passing("finite", "local")])


def sign_of_zero() -> RunReport:
    """+0.0 on rank 0, -0.0 on rank 1."""
    return report([ranks_differ(0.0, -0.0, 48)])


def nan_payload() -> RunReport:
    """NaNs that differ in their payload."""
    payloads = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    a, b = torch.zeros(2, TOKENS, CHANNELS)
    # Copied as integers: not every copy of a float keeps a NaN's payload.
    a.view(torch.int32)[1, 1], b.view(torch.int32)[1, 1] = payloads.view(torch.int32)
    divergence = Divergence(48, (0, 1), "x_t", difference=first_difference(a, b))
    summary = "rank 0 of local and rank 1 of local differ in x_t after step 48"
    return report([Finding("ranks_agree", "local", Verdict.FAIL, summary, Compared(STEPS, 52224), divergence)])


def count_mismatch() -> RunReport:
    """A broadcast that the schedule does not call for."""
    finding = Finding(
        "collectives",
        "local",
        Verdict.FAIL,
        "rank 0 called all_gather, broadcast in step 3, expected all_gather",
        Compared(STEPS, 86),
        Divergence(3, (0, 0), "collectives"),
        (
            "in the whole loop, all_gather: 41 on rank 0, 41 on rank 1, expected 41",
            "in the whole loop, broadcast: 2 on rank 0, 2 on rank 1, expected 1",
        ),
    )
    return report([passing("ranks_agree", "local"), finding], collectives={"local": {ALL_GATHER: 41, BROADCAST: 2}})


def cache_write() -> RunReport:
    """A key of the gen context that changed on rank 0 during step 4."""
    before = torch.zeros(14, 2, 16, dtype=torch.bfloat16)
    after = before.clone()
    before[0, 1, 0], after[0, 1, 0] = -0.7734375, 0.2265625
    what = "gen cache, values, layer 1"
    divergence = Divergence(4, (0, 0), what, ("before", "after"), first_difference(before, after))
    summary = f"rank 0 wrote to {what} in step 4"
    return report([Finding("cache_frozen", "local", Verdict.FAIL, summary, Compared(STEPS, 3584), divergence)])


def dead_and_hung() -> RunReport:
    """Rank 2 was killed and rank 0 waits for it for ever; rank 1 had finished."""
    stack = 'Thread 0x1 (most recent call first):\n  File "my_loop.py", line 9 in loop'
    ranks = [
        rank_report(2, "died", "was killed by SIGKILL", 5, output="loading\nout of memory\n"),
        rank_report(0, "hung", "did not finish in time", 5, "all_gather 1 of step 6", stack),
        rank_report(1, "finished", "finished", 48),
    ]
    failure = {
        "task": "my_loop.py:loop",
        "cause": "rank 2 was killed by SIGKILL after step 5",
        "seconds": 20.03,
        "ranks": ranks,
    }
    notes = ("3 ranks share 1 GPU over gloo: times say nothing about separate GPUs",)
    return report(
        [], world_size=3, device="cuda", notes=notes, failure=failure, collectives={}, timings={"total": 20.1}
    )


def rank_report(
    rank: int, state: str, what: str, step: int, activity: str = "", trace: str = "", output: str = ""
) -> dict[str, Any]:
    """What became of one rank."""
    return {
        "rank": rank,
        "state": state,
        "what": what,
        "step": step,
        "activity": activity,
        "trace": trace,
        "output": output,
    }


def clean() -> RunReport:
    """Everything agrees."""
    names = ("ranks_agree", "matches_reference", "collectives", "cache_frozen")
    findings = [passing(name, loop, 1000 + i) for loop in COLLECTIVES for i, name in enumerate(names)]
    return report([*findings, passing("loops_agree", "*", 104448)])


def drifting() -> RunReport:
    """Rank 1 of three leaves the others after step 3: two elements of one token, then all of it."""
    request = small_request(3)
    traces = clean_traces(request)
    traces[1].x_t[3, 2, :2] += 1.0
    traces[1].x_t[4:, 2] += 1.0
    traces[1].final[2] += 1.0
    finding = ranks_agree(traces)
    return report([finding], steps=7, guided_steps=6, world_size=3, request=request.to_dict())


EXAMPLES = {
    "pass": clean,
    "one_bit": one_bit,
    "sign_of_zero": sign_of_zero,
    "nan_payload": nan_payload,
    "count_mismatch": count_mismatch,
    "cache_write": cache_write,
    "dead_and_hung": dead_and_hung,
}
