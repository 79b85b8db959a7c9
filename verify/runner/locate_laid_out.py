"""Where a divergence begins among ranks that share branches, that pad, or that sum. Pure.

Less can be said than where each rank has a branch to itself: shards compute a velocity together, by other operators
than one process does, so that neither an operator nor always the rank is known. What is not known is not named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from verify.bits import same_bits
from verify.layout import Layout
from verify.runner.locate import Location, combine_location, first_difference, forward_location
from verify.tasks.probe_step import Operator, StepProbe, hash_of

_TOGETHER = "its branch group computes each velocity together, so that another of its ranks may be at fault"
_EXCHANGES = "c10d::"


def locate_laid_out(
    step: int, rank: int, reference: StepProbe, probes: Sequence[StepProbe], branches: Sequence[str], layout: Layout
) -> Location:
    """As :func:`verify.runner.locate.locate`, for ranks that are laid out as ``layout`` says.

    Raises:
        AssertionError: nothing differs, although the ``x_t`` after the step was seen to.
    """
    for found in _candidates(step, rank, reference, probes, branches, layout):
        return found
    raise AssertionError(f"rank {rank} held another x_t after step {step}, and the step run again shows no difference")


def _candidates(
    step: int, rank: int, reference: StepProbe, probes: Sequence[StepProbe], branches: Sequence[str], layout: Layout
) -> Iterator[Location]:
    seen = probes[rank]

    def unlike(ours: Tensor | None, right: Tensor | None, of: int = rank) -> bool:
        if ours is None or right is None:
            return False
        whole = right if right.shape == ours.shape else layout.part(right, layout.of(of).shard)
        return not same_bits(ours, whole)

    if unlike(seen.x_t, reference.x_t):
        yield Location(step, rank, "x_t before the step")
    order = sorted((r for r in range(len(probes)) if not layout.pads(r, len(branches))), key=lambda r: (r != rank, r))
    for owned_only in (True, False):
        for r in order:
            for branch, velocity in probes[r].velocities.items():
                if (owned_only and branch not in probes[r].own) or branch not in reference.velocities:
                    continue
                if unlike(velocity, reference.velocities[branch], r):
                    if layout.shards > 1:
                        yield Location(step, r, f"velocity of {branch}", caveat=_TOGETHER)
                    yield forward_location(step, r, branch, probes[r].operators[branch], reference.operators[branch])
    yield from _sent(step, order, reference, probes)
    yield from _received(step, rank, reference, probes, branches, layout)
    if seen.after is not None and reference.after is not None and seen.after.shape == reference.after.shape:
        ours, right = _after_exchanges(seen.rest), reference.rest
        if len(ours) < len(right) and _names(ours) == _names(right[len(right) - len(ours) :]):
            right = right[len(right) - len(ours) :]  # What comes before was done before the sum, or by the sum.
        found, _ = first_difference(ours, right) if ours and right else (None, None)
        if found is not None and not seen.summed and len(ours) == len(seen.rest):
            yield combine_location(step, rank, seen, reference, branches)
        elif found is not None:
            yield Location(step, rank, "x_t after the exchanges", found.name)
    if unlike(seen.after, reference.after):
        yield Location(step, rank, "x_t")


def _sent(step: int, order: Sequence[int], reference: StepProbe, probes: Sequence[StepProbe]) -> Iterator[Location]:
    """A rank gave a gather something else than its velocity; or, alone among ranks, a sum no product of it."""
    for r in order:
        for sent, branch in zip(probes[r].sent, probes[r].own, strict=False):
            if not same_bits(sent, probes[r].velocities[branch]):
                yield Location(step, r, f"velocity of {branch} as sent into all_gather")
    # The reference weighs each velocity too, and its products are among what its operators gave.
    made = {output for operator in reference.rest for output in operator.outputs}
    odd = [r for r in order for sent, _ in probes[r].summed[:1] if hash_of(sent) not in made]
    if len(odd) == 1 and len(order) > 1:
        branch = next(iter(probes[odd[0]].own), "its branch")
        yield Location(step, odd[0], f"weighted velocity of {branch} as sent into all_reduce")


def _received(
    step: int, rank: int, reference: StepProbe, probes: Sequence[StepProbe], branches: Sequence[str], layout: Layout
) -> Iterator[Location]:
    seen = probes[rank]
    for round_, slots in enumerate(seen.gathered):
        sources = layout.peers(rank) if len(slots) == layout.branch_groups else range(len(probes))
        for source, slot in zip(sources, slots, strict=False):
            owner = round_ * layout.branch_groups + layout.of(source).branch_group
            known = owner < len(branches) and round_ < len(probes[source].sent)
            if known and not same_bits(slot, probes[source].sent[round_]):
                yield Location(step, rank, f"slot of rank {source} ({branches[owner]}) as gathered")
    for round_, (_, total) in enumerate(seen.summed):
        others = [
            probes[r].summed[round_][1] for r in layout.peers(rank) if r != rank and round_ < len(probes[r].summed)
        ]
        if others and not any(same_bits(total, other) for other in others):
            yield Location(step, rank, "sum as received from all_reduce")


def _after_exchanges(operators: Sequence[Operator]) -> list[Operator]:
    """What a loop computes after the last exchange that it made beside the group."""
    last = max((number for number, each in enumerate(operators) if each.name.startswith(_EXCHANGES)), default=-1)
    return [*operators[last + 1 :]]


def _names(operators: Sequence[Operator]) -> list[str]:
    return [operator.name for operator in operators]
