"""The first operator that rounding does not explain, from sketches made by hand and of a real network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from verify.rounding.culprits import first_unexplained
from verify.rounding.operators import REST, Call, Sketches, StepSketches

CALLS = [
    Call("velocity of gen", "layers.0", "aten::mm", (4, 4), 0),
    Call("velocity of gen", "layers.1", "aten::mm", (4, 4), 0),
    Call("velocity of text", "layers.0", "aten::mm", (4, 4), 0),
    Call(REST, "", "aten::sub", (4, 4), 0),
]


def noise(seed: int, size: float = 1.0) -> Sketches:
    generator = torch.Generator().manual_seed(seed)
    return {call: size * torch.randn(64, generator=generator, dtype=torch.float64) for call in CALLS}


ZERO = {call: torch.zeros(64, dtype=torch.float64) for call in CALLS}
REFERENCE = StepSketches(ZERO, [noise(seed) for seed in range(1, 17)])


def with_fault(call: Call, seed: int = 30) -> Sketches:
    return noise(seed, 0.5) | {call: torch.full((64,), 9.0, dtype=torch.float64)}


def test_nothing_is_named_where_rounding_explains_all() -> None:
    assert first_unexplained([noise(30, 0.5), noise(31, 0.5)], REFERENCE, 0) is None
    assert first_unexplained([ZERO, ZERO], REFERENCE, 0) is None


def test_the_first_in_the_order_of_the_reference_and_its_rank() -> None:
    found = first_unexplained([noise(30, 0.5), with_fault(CALLS[1]) | {CALLS[2]: ZERO[CALLS[2]]}], REFERENCE, 0)
    assert found is not None
    assert (found.rank, found.call) == (1, CALLS[1])
    assert found.seen > 3 > found.allowed > 1


def test_the_combine_is_the_deviating_rank_s_own() -> None:
    assert first_unexplained([ZERO, with_fault(CALLS[3])], REFERENCE, 0) is None
    found = first_unexplained([ZERO, with_fault(CALLS[3])], REFERENCE, 1)
    assert found is not None and found.call.part == REST


def test_a_rank_compares_what_it_evaluated() -> None:
    own = {call: sketch for call, sketch in with_fault(CALLS[2]).items() if call.part != "velocity of gen"}
    found = first_unexplained([None, own], REFERENCE, 1)
    assert found is not None and found.call == CALLS[2]


def test_a_module_that_computes_in_another_way_is_compared_by_what_it_ends_with() -> None:
    parts = [Call("velocity of gen", "layers.1", "aten::mm", (4, 4), n) for n in range(2)]
    ended = Call("velocity of gen", "layers.1", "aten::add", (4, 4), 0)
    far = torch.full((64,), 9.0, dtype=torch.float64)
    halves: dict[Call, Tensor] = {CALLS[0]: ZERO[CALLS[0]], parts[0]: far, parts[1]: far}
    assert first_unexplained([halves | {ended: ZERO[CALLS[1]]}], REFERENCE, 0) is None
    found = first_unexplained([halves | {ended: far}], REFERENCE, 0)
    assert found is not None and found.call == CALLS[1]


def test_sketches_keep_distances() -> None:
    from verify.rounding.operators import _Sketching

    network = nn.Linear(32, 500, bias=False)
    x = torch.randn(7, 32)
    with torch.no_grad():
        results, sketches = [], []
        for shift in (0.0, 0.1):
            with _Sketching() as sketching:
                results.append(network(x + shift))
            sketches.append(next(s for call, s in sketching.found.items() if call.name == "aten::mm"))
    apart = (sketches[1] - sketches[0]).norm() / (results[1] - results[0]).norm().double()
    assert 0.6 < apart < 1.5
