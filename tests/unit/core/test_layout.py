"""Layouts of ranks: coordinates, groups, and the cut of x_t."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from verify.errors import BadInput
from verify.layout import Coordinates, Layout

BRANCHES = ("cond", "uncond")


def test_neighbours_share_a_branch() -> None:
    layout = Layout(2, 3)
    assert layout.ranks == 6
    assert [layout.of(rank) for rank in range(6)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert layout.of(4) == Coordinates(branch_group=1, shard=1)
    assert layout.peers(4) == (1, 4)
    assert layout.branch_group(4) == (3, 4, 5)


def test_neighbours_share_a_shard() -> None:
    layout = Layout(2, 3, shards_adjacent=False)
    assert [layout.of(rank) for rank in range(6)] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert layout.peers(3) == (2, 3)
    assert layout.branch_group(3) == (1, 3, 5)


@given(st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_groups_part_the_ranks(groups: int, shards: int, adjacent: bool) -> None:
    layout = Layout(groups, shards, shards_adjacent=adjacent)
    ranks = range(layout.ranks)
    assert {layout.of(rank) for rank in ranks} == {(g, s) for g in range(groups) for s in range(shards)}
    for rank in ranks:
        group, shard = layout.of(rank)
        assert layout.peers(rank)[group] == layout.branch_group(rank)[shard] == rank


@pytest.mark.parametrize(("field", "value"), [("branch_groups", 0), ("shards", 1.5), ("shards", True)])
def test_numbers_of_groups(field: str, value: Any) -> None:
    with pytest.raises(BadInput, match=f"{field} of a layout is {value}, expected an integer from 1; correct it"):
        Layout(**{"branch_groups": 2, field: value})


@pytest.mark.parametrize("cut", ["rows", True, 1.0])
def test_what_cuts(cut: Any) -> None:
    with pytest.raises(BadInput, match="expected None, a dimension or a function"):
        Layout(2, 2, cut)


def test_parts() -> None:
    whole = torch.arange(24.0).view(8, 3)
    assert Layout(2, 2).part(whole, 1) is whole
    assert torch.equal(Layout(2, 2, cut=0).part(whole, 1), whole[4:])
    assert torch.equal(Layout(2, 3, cut=1).part(whole, 2), whole[:, 2:])
    by_turns = Layout(2, 2, cut=lambda x_t, shard, shards: x_t[shard::shards])
    assert torch.equal(by_turns.part(whole, 1), whole[1::2])
    for layout in (Layout(2, 2), Layout(2, 3, cut=0), Layout(2, 3, cut=1), by_turns):
        layout.require_parts(whole)


@pytest.mark.parametrize(
    ("cut", "told"),
    [
        (lambda x, shard, shards: x[:4], r"leaves 12 elements of an x_t of \(8, 3\) in no shard and 12 in several"),
        (lambda x, shard, shards: x[4 * shard : 4 * shard + 3], "leaves 6 elements .* in no shard and 0 in several"),
        (lambda x, shard, shards: x[3 * shard : 3 * shard + 5], "leaves 0 elements .* in no shard and 6 in several"),
        (lambda x, shard, shards: x[:0], "leaves 24 elements .* in no shard and 0 in several"),
        (2, "raised IndexError: .* expected a shard of it; mend the layout of the target"),
    ],
)
def test_the_shards_together_must_be_the_whole(cut: Any, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        Layout(2, 2, cut).require_parts(torch.zeros(8, 3))


def test_fewer_chunks_than_shards() -> None:
    def rows(whole: Tensor, shard: int, shards: int) -> Tensor:
        return whole.tensor_split(shards)[shard]

    with pytest.raises(BadInput, match="expected a shard of it"):
        Layout(2, 4, cut=0).require_parts(torch.zeros(2, 3))  # torch.chunk makes two.
    Layout(2, 4, cut=rows).require_parts(torch.zeros(2, 3))


def test_words() -> None:
    assert [Layout(2, 2).told(rank, BRANCHES) for rank in range(4)] == [
        "branch cond, shard 0",
        "branch cond, shard 1",
        "branch uncond, shard 0",
        "branch uncond, shard 1",
    ]
    assert Layout(2).told(1, BRANCHES) == ""
    assert [Layout(3).told(rank, BRANCHES) for rank in (1, 2)] == ["branch uncond", "padding group 2"]
    assert Layout(3, 2).told(5, BRANCHES) == "padding group 2, shard 1"


def test_padding_and_weights() -> None:
    layout = Layout(3, 2)
    assert [layout.pads(rank, 2) for rank in range(6)] == [False] * 4 + [True] * 2
    assert [layout.like(rank) for rank in range(6)] == [0] * 6
    assert [Layout(3, 2, splits_weights=True).like(rank) for rank in range(6)] == [0, 1, 0, 1, 0, 1]
