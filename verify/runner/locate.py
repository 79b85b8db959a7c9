"""After a fail: the first tensor and operator that differ, from probes of the step in question. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any

from torch import Tensor

from verify.bits import same_bits
from verify.tasks.probe_step import Operator, StepProbe, hash_of

# Seconds for running a step again.
LOCATE_TIMEOUT = 120.0
NOISE = "noise drawn by the rank for itself"
AFTER_THE_COMBINE = "x_t after the combine"
_RANDOM = re.compile(r"aten::(rand|normal|uniform|bernoulli|native_dropout|dropout|multinomial|exponential|poisson)")
_TIED = (
    "the reference ran in rank 0's process, so that of two ranks it cannot be told whether rank 0's network is the one "
    "at fault"
)


@dataclass(frozen=True)
class Location:
    """Where a divergence begins.

    Attributes:
        step: the step.
        rank: the rank at fault.
        tensor: the first tensor that differs: ``x_t before the step``, ``velocity of text``, ``velocity of text as sent
            into all_gather``, ``gathered slot 1 (text)``, ``combined velocity``, ``step size``, ``x_t after the
            combine``, ``noise drawn by the rank for itself``, ``x_t``.
        operator: the first operator whose inputs agree and whose output does not; empty if none was logged.
        module: the module it runs in, as the model names it.
        layer: the decoder layer, where there is one.
        caveat: what the probes cannot tell.
    """

    step: int
    rank: int
    tensor: str
    operator: str = ""
    module: str = ""
    layer: int | None = None
    caveat: str = ""

    def __str__(self) -> str:
        where = f"located: the first tensor that differs in step {self.step} is {self.tensor}, on rank {self.rank}"
        if self.operator:
            where += f"; the first operator is {self.operator}"
        if self.module:
            where += f" in {self.module}"
        return f"{where}; {self.caveat}" if self.caveat else where

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {name: value for name, value in asdict(self).items() if name != "caveat"}


def locate(
    step: int, rank: int, reference: StepProbe, probes: Sequence[StepProbe], branches: Sequence[str]
) -> Location:
    """Compares what the ranks did in ``step`` with what the reference did, in the order in which it happened.

    The reference ran in rank 0's process. With three ranks or more, a network that is wrong on rank 0 alone is
    outvoted. With two it cannot be told from one that is wrong on rank 1, and the location says so.

    Args:
        step: where ``rank`` was first seen to hold another ``x_t`` than the reference.
        rank: the rank seen.
        reference: the step in the reference loop, every branch evaluated.
        probes: the step in the loop under test, one a rank.
        branches: the request's branches in rank order.

    Raises:
        AssertionError: nothing differs, although the ``x_t`` after the step was seen to.
    """
    found = _first(step, rank, reference, probes, branches)
    if len(probes) == 2 and found.rank == 1 and found.tensor.startswith("velocity of"):
        return replace(found, caveat=_TIED)
    return found


def _first(
    step: int, rank: int, reference: StepProbe, probes: Sequence[StepProbe], branches: Sequence[str]
) -> Location:
    seen = probes[rank]
    if seen.x_t is not None and reference.x_t is not None and not same_bits(seen.x_t, reference.x_t):
        return Location(step, rank, "x_t before the step")
    # Whoever's velocity is wrong, the gather has handed it to all: ask its owners first.
    order = sorted(range(len(probes)), key=lambda r: (r != rank, r))
    outvoted = _outvoted(step, reference, probes)
    if outvoted is not None:
        return outvoted
    for owned_only in (True, False):
        for r in order:
            for branch, velocity in probes[r].velocities.items():
                if owned_only and branch not in probes[r].own:
                    continue
                if branch in reference.velocities and not same_bits(velocity, reference.velocities[branch]):
                    return forward_location(step, r, branch, probes[r].operators[branch], reference.operators[branch])
    for r in order:
        for sent, branch in zip(probes[r].sent, probes[r].own, strict=False):
            # A part of a velocity of several is gathered by itself.
            whole = sent.numel() == probes[r].velocities[branch].numel()
            if whole and not same_bits(sent, probes[r].velocities[branch]):
                return Location(step, r, f"velocity of {branch} as sent into all_gather")
    for round_, slots in enumerate(seen.gathered):
        for source, slot in enumerate(slots):
            owner = round_ * len(probes) + source
            known = owner < len(branches) and round_ < len(probes[source].sent)
            if known and not same_bits(slot, probes[source].sent[round_]):
                return Location(step, rank, f"gathered slot {source} ({branches[owner]})")
    if seen.received is not None and seen.received[0] != rank:
        return _after_broadcast(step, rank, *seen.received, reference, probes, branches)
    if seen.rest and reference.rest and first_difference(seen.rest, reference.rest)[0] is not None:
        return combine_location(step, rank, seen, reference, branches)
    if seen.after is not None and reference.after is not None and not same_bits(seen.after, reference.after):
        return Location(step, rank, "x_t")
    raise AssertionError(f"rank {rank} held another x_t after step {step}, and the step run again shows no difference")


def _outvoted(step: int, reference: StepProbe, probes: Sequence[StepProbe]) -> Location | None:
    """Rank 0, where a majority of at least three ranks has one velocity and rank 0 and its reference another."""
    for branch, right in reference.velocities.items():
        asked = [r for r, probe in enumerate(probes) if branch in probe.velocities]
        if len(asked) < 3 or 0 not in asked or not same_bits(probes[0].velocities[branch], right):
            continue
        others = [r for r in asked if not same_bits(probes[r].velocities[branch], right)]
        agree = all(same_bits(probes[r].velocities[branch], probes[others[0]].velocities[branch]) for r in others)
        if agree and 2 * len(others) > len(asked):
            return forward_location(step, 0, branch, probes[0].operators[branch], probes[others[0]].operators[branch])
    return None


def _after_broadcast(
    step: int,
    rank: int,
    source: int,
    received: Tensor,
    reference: StepProbe,
    probes: Sequence[StepProbe],
    branches: Sequence[str],
) -> Location:
    """For a rank that is given its ``x_t`` instead of computing it."""
    sent = probes[source].received
    if sent is not None and not same_bits(sent[1], received):
        return Location(step, rank, f"x_t as received by broadcast from rank {source}")
    after = probes[rank].after
    if after is not None and not same_bits(after, received):
        return Location(step, rank, "x_t")
    return _first(step, source, reference, probes, branches)


def combine_location(step: int, rank: int, seen: StepProbe, reference: StepProbe, branches: Sequence[str]) -> Location:
    """The first operator after the last evaluation or gather that is no longer the reference's."""
    found, counterpart = first_difference(seen.rest, reference.rest)
    assert found is not None
    foreign = ", which the reference does not call" if counterpart is None else ""
    tensor = NOISE if _RANDOM.match(found.name) else _in_combine(seen, reference, branches)
    return Location(step, rank, tensor, found.name + foreign)


def _in_combine(seen: StepProbe, reference: StepProbe, branches: Sequence[str]) -> str:
    """What differs where the operators between the gather and ``x_t`` are no longer the reference's."""
    inputs = _known_inputs(reference, branches)
    velocities = {hash_of(velocity): branch for branch, velocity in reference.velocities.items()}
    ours, theirs = list(seen.rest), list(reference.rest)
    while True:
        found, counterpart = first_difference(ours, theirs)
        if found is None:
            return "x_t"
        if counterpart is None:
            break
        alike = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if (a, b) == (found, counterpart))
        # What came between may have changed what the reference's operator reads: look at that one, not at this.
        reader = next((i for i in range(alike, len(ours)) if ours[i].name == counterpart.name), None)
        if reader is None or len(ours[reader].inputs) != len(counterpart.inputs):
            break
        if (ours[reader].inputs, ours[reader].outputs) == (counterpart.inputs, counterpart.outputs):
            ours, theirs = ours[reader + 1 :], theirs[alike + 1 :]
            continue
        pairs = list(zip(ours[reader].inputs, counterpart.inputs, strict=True))
        agree = any(mine == right for mine, right in pairs)
        for mine, right in pairs:
            # Where nothing agrees and the operator is a later one, it is another call of the same name.
            if mine != right and right in inputs and (agree or reader == alike):
                holds = f", which holds the velocity of {velocities[mine]}" if mine in velocities else ""
                return inputs[right] + holds
        break
    if found is seen.rest[-1]:
        return "x_t"
    # Whatever comes after the operator that reads the step size works on x_t, not on the velocity.
    steps = [
        i
        for i, operator in enumerate(seen.rest)
        if reference.dt is not None and hash_of(reference.dt) in operator.inputs
    ]
    stepped = counterpart is None or (steps and seen.rest.index(found) > steps[0])
    return AFTER_THE_COMBINE if stepped else "combined velocity"


def _known_inputs(reference: StepProbe, branches: Sequence[str]) -> dict[int, str]:
    """What the combine and the Euler step are given, by hash."""
    known = {} if reference.dt is None else {hash_of(reference.dt): "step size"}
    for slot, branch in enumerate(branches):
        if branch in reference.velocities:
            known[hash_of(reference.velocities[branch])] = f"gathered slot {slot} ({branch})"
    return known


def forward_location(step: int, rank: int, branch: str, ours: list[Operator], theirs: list[Operator]) -> Location:
    """The first operator of an evaluation that is not the reference's."""
    found, _ = first_difference(ours, theirs)
    tensor = f"velocity of {branch}"
    if found is not None and _RANDOM.match(found.name):
        tensor += f", in which there is {NOISE}"
    if found is None:
        return Location(step, rank, tensor)
    return operator_location(step, rank, tensor, found.name, found.module)


def operator_location(step: int, rank: int, tensor: str, operator: str, module: str) -> Location:
    """The location of an operator that is known, with the decoder layer that its module's name holds."""
    layer = re.search(r"layers\.(\d+)", module)
    return Location(step, rank, tensor, operator, module, int(layer[1]) if layer else None)


def first_difference(ours: list[Operator], theirs: list[Operator]) -> tuple[Operator | None, Operator | None]:
    """The first operator whose output is not its counterpart's, and the counterpart; None for one that is missing.

    Where a constant (a weight, a cached row) is what differs, the operator that reads it is the first to show it.
    """
    for a, b in zip_longest(ours, theirs):
        if a is None or b is None or a.name != b.name or a.outputs != b.outputs:
            return a, b
    return None, None
