"""Which of two steps' tensors differs first, from probes made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from verify.runner.locate import NOISE, Location, locate
from verify.tasks.probe_step import Operator, StepProbe, hash_of

BRANCHES = ("gen", "text")
X_T, GEN, TEXT, DT = torch.zeros(2, 2), torch.ones(2, 2), torch.full((2, 2), 2.0), torch.tensor(0.25)
NAMES = ("aten::sub.Tensor", "aten::norm", "aten::mul.Tensor", "aten::sub.Tensor")


def forward(output: int = 7) -> list[Operator]:
    """Two operators of a network."""
    return [Operator("aten::mm", "layers.3.mlp", (1,), (5,)), Operator("aten::mm", "layers.3.mlp.up", (5,), (output,))]


def rest(
    first: Tensor = GEN, second: Tensor = TEXT, dt: Tensor = DT, combined: int = 20, after: int = 40
) -> list[Operator]:
    """Combine and Euler step: each operator reads what the one before has made."""
    gap = 10 + (hash_of(first) != hash_of(GEN)) + (hash_of(second) != hash_of(TEXT))
    return [
        Operator("aten::sub.Tensor", "", (hash_of(first), hash_of(second)), (gap,)),
        Operator("aten::norm", "", (gap,), (combined,)),
        Operator("aten::mul.Tensor", "", (combined, hash_of(dt)), (30 + (hash_of(dt) != hash_of(DT)),)),
        Operator("aten::sub.Tensor", "", (hash_of(X_T), 30), (after,)),
    ]


def reference() -> StepProbe:
    both = {"gen": GEN, "text": TEXT}
    operators = {branch: forward() for branch in both}
    return StepProbe(X_T, [*both], both, operators, dt=DT, rest=rest(), after=torch.full((2, 2), 3.0))


def rank(number: int) -> StepProbe:
    """A rank that did right."""
    own = BRANCHES[number]
    right = reference()
    return replace(right, own=[own], sent=[right.velocities[own]], gathered=[[GEN, TEXT]])


def where(probe: StepProbe, at: int = 1, other: StepProbe | None = None) -> Location:
    """Where rank ``at`` departs, its peer being ``other`` or right."""
    probes = [rank(0), rank(1)]
    probes[at] = probe
    if other is not None:
        probes[1 - at] = other
    return locate(4, at, reference(), probes, BRANCHES)


CLAMP, LAST = Operator("aten::clamp", "", (40,), (41,)), Operator("aten::add.Tensor", "", (41,), (42,))
DRAWN = Operator("aten::randn", "", (), (77,))
ELSE = torch.full((2, 2), 9.0)
ZEROED = Operator("aten::zero_", "", (hash_of(TEXT),), (1,))


def test_the_step_before() -> None:
    assert where(replace(rank(1), x_t=ELSE)).tensor == "x_t before the step"


def test_a_velocity_is_blamed_on_its_owner() -> None:
    """Rank 0 is seen to differ, because it was handed what rank 1 got wrong."""
    wrong = replace(rank(1), velocities={"gen": GEN, "text": ELSE}, operators={"gen": forward(), "text": forward(8)})
    found = where(rank(0), 0, wrong)
    assert replace(found, caveat="") == Location(4, 1, "velocity of text", "aten::mm", "layers.3.mlp.up", 3)
    assert str(found).endswith("of two ranks it cannot be told whether rank 0's network is the one at fault")


def test_three_ranks_outvote_the_one_that_the_reference_ran_on() -> None:
    """Rank 0's network is wrong, and so is the reference, which ran in its process."""
    wrong = {"gen": GEN, "text": ELSE}
    operators = {"gen": forward(), "text": forward(8)}
    right = rank(1)
    probes = [replace(rank(0), velocities=wrong, operators=operators), right, replace(right, own=["gen"], sent=[GEN])]
    judged_by = replace(reference(), velocities=wrong, operators=operators)
    for seen in range(3):
        found = locate(4, seen, judged_by, probes, BRANCHES)
        assert found == Location(4, 0, "velocity of text", "aten::mm", "layers.3.mlp.up", 3)


def test_a_velocity_changed_on_its_way() -> None:
    found = where(replace(rank(1), sent=[ELSE]))
    assert replace(found, caveat="") == Location(4, 1, "velocity of text as sent into all_gather")


def test_a_slot_that_is_not_what_was_sent() -> None:
    assert where(replace(rank(1), gathered=[[ELSE, TEXT]])) == Location(4, 1, "gathered slot 0 (gen)")


@pytest.mark.parametrize(
    ("ours", "tensor", "operator"),
    [
        (rest(second=ELSE), "gathered slot 1 (text)", "aten::sub.Tensor"),
        (rest(TEXT, GEN), "gathered slot 0 (gen), which holds the velocity of text", "aten::sub.Tensor"),
        (rest(GEN, GEN), "gathered slot 1 (text), which holds the velocity of gen", "aten::sub.Tensor"),
        ([ZEROED, *rest(second=ELSE)], "gathered slot 1 (text)", "aten::zero_"),
        (rest(combined=21), "combined velocity", "aten::norm"),
        (rest()[2:], "combined velocity", "aten::mul.Tensor"),
        (rest(dt=ELSE), "step size", "aten::mul.Tensor"),
        (rest(after=41), "x_t", "aten::sub.Tensor"),
        ([*rest(), Operator("aten::clone", "", (40,), (41,))], "x_t", "aten::clone, which the reference does not call"),
        ([*rest(), CLAMP, LAST], "x_t after the combine", "aten::clamp, which the reference does not call"),
        ([*rest()[:3], CLAMP, LAST], "x_t after the combine", "aten::clamp"),
        ([*rest(), DRAWN, LAST], NOISE, "aten::randn, which the reference does not call"),
    ],
)  # fmt: skip
def test_what_happens_after_the_gather(ours: list[Operator], tensor: str, operator: str) -> None:
    assert where(replace(rank(1), rest=ours)) == Location(4, 1, tensor, operator)


def test_a_slot_that_is_read_later() -> None:
    """What is put in img's place is made before gen and text are read, rightly."""
    img = torch.full((2, 2), 4.0)
    guided = Operator("aten::sub.Tensor", "", (20, hash_of(img)), (25,))
    right = replace(reference(), velocities={**reference().velocities, "img": img})
    right.rest.insert(2, guided)
    lost = replace(guided, inputs=(20, hash_of(ELSE)), outputs=(26,))
    ours = [Operator("aten::zeros_like", "", (hash_of(img),), (hash_of(ELSE),)), *rest()[:2], lost, *rest()[2:]]
    probes = [replace(rank(0), rest=list(right.rest)), replace(rank(1), rest=ours)]
    found = locate(4, 1, right, probes, (*BRANCHES, "img"))
    assert found == Location(4, 1, "gathered slot 2 (img)", "aten::zeros_like")


def test_an_x_t_that_comes_by_broadcast() -> None:
    right = reference().after
    assert right is not None
    source = replace(rank(0), received=(0, right))
    lost = replace(rank(1), received=(0, ELSE), after=ELSE, rest=[])
    assert where(lost, 1, source).tensor == "x_t as received by broadcast from rank 0"
    changed = replace(rank(1), received=(0, right), after=ELSE, rest=[])
    assert where(changed, 1, source) == Location(4, 1, "x_t")
    wrong = replace(rank(0), received=(0, ELSE), after=ELSE, rest=rest(after=41))
    assert where(lost, 1, wrong) == Location(4, 0, "x_t", "aten::sub.Tensor")


def test_nothing_that_differs_is_an_error() -> None:
    with pytest.raises(AssertionError, match="rank 1 held another x_t after step 4, and the step run again shows no"):
        where(rank(1))
