"""What a decision says: its words, its numbers, and what is judged in bits all the same."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import torch
from traces import CHANNELS, STEPS, TOKENS, clean, reference, small_request

from verify.report.documents.rounding import Rounding
from verify.report.sections.rounding import section
from verify.rounding.deviations import Deviation, Deviations
from verify.rounding.findings import rounding_explains
from verify.trace.trace import Trace
from verify.verdict import Finding, Verdict

TWO, DRAWS = small_request(2), 16


def steps(fault: float = 0.0, at: int = 3, equal: int = 0) -> list[Deviation]:
    """Every step of both ranks; the engine's roundings are as large as the draws'."""
    found = []
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        if step < equal:
            found.append(Deviation(step, (0, 1), True, {}, {}))
            continue
        noise = torch.randn(DRAWS + 1, TOKENS, CHANNELS, generator=generator)
        zero = torch.zeros(TOKENS, CHANNELS)
        deviations = Deviations(zero, noise[0] + (fault if step == at else 0.0))
        for drawn in noise[1:]:
            deviations.add(drawn)
        found.append(deviations.energies(step, (0, 1)))
    return found


def judged(deviations: list[Deviation], traces: list[Trace] | None = None) -> Finding:
    start = reference(TWO).start
    assert start is not None
    return rounding_explains(clean(TWO) if traces is None else traces, start, deviations, 1e-6, DRAWS)


def test_what_rounding_explains_is_called_so_and_never_a_pass() -> None:
    found = judged(steps(equal=2))
    assert found.verdict is Verdict.EXPLAINED
    assert found.summary.startswith("explained by rounding: 5 of 7 steps of local are other bytes")
    assert found.data["rounding"]["decision"] == "explained by rounding"
    assert (found.data["rounding"]["judged"], found.data["rounding"]["equal"]) == (STEPS, 2)
    assert any("false alarm is at most 1e-06" in line for line in found.details)


def test_equal_bytes_pass() -> None:
    found = judged(steps(equal=STEPS))
    assert (found.verdict, found.summary.partition(":")[0]) == (Verdict.PASS, "equal")


def test_a_fault_is_placed_and_measured() -> None:
    found = judged(steps(fault=50.0))
    assert found.verdict is Verdict.FAIL
    assert found.summary.startswith("not explained: ")
    assert "ranks 0, 1 of local after step 3 deviates" in found.summary and "would be explained" in found.summary
    assert found.first_divergence is not None
    assert (found.first_divergence.step, found.first_divergence.ranks) == (3, (0, 0))
    assert "1 of 7 steps are not explained: 3" in found.details


def test_noise_and_what_is_returned_are_judged_in_bits() -> None:
    start = reference(TWO).start
    assert start is not None
    one, two = clean(TWO)
    found = judged(steps(), [one, replace(two, start=start + 1e-7)])
    assert found.verdict is Verdict.FAIL and "rank 1 of local begins with another x_t" in found.summary
    found = judged(steps(), [replace(one, final=one.final * 1.01), two])
    assert found.verdict is Verdict.FAIL and "rank 0 of local returns another latent" in found.summary


def test_a_step_that_was_not_repeated_is_unknown() -> None:
    found = judged(steps()[1:])
    assert (found.verdict, found.summary) == (Verdict.UNKNOWN, "2 of 14 steps were not computed anew")
    alone = [*steps()[:-1], Deviation(STEPS - 1, (0, 1), False, {}, {}, reason="ValueError: no history")]
    assert judged(alone).verdict is Verdict.UNKNOWN


def test_the_document_and_the_page_tell_the_numbers() -> None:
    for fault in (0.0, 50.0):
        told = msgspec.convert({"loop": "local", **judged(steps(fault)).data["rounding"]}, Rounding)
        shown = section([told])
        assert shown.heading == "Rounding" and told.decision in str(shown.blocks[0])
        assert bool(told.exceeding) == bool(fault) == ("not explained" in str(shown.blocks[0]).split(".")[0])
