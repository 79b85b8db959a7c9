"""What is expected of loops that are laid out in shards, that reduce, or whose exchanges a target declares."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from verify.errors import BadInput
from verify.expected import ANY, LOOP_KINDS, SHARDS, VELOCITY, X_T, Call, Exchanges, expected_work, kind_of
from verify.layout import Layout
from verify.schedule import ALL_GATHER, ALL_REDUCE, BROADCAST, Schedule

BRANCHES = ("cond", "uncond")
SCHEDULE = Schedule((1.0, 0.75, 0.5), torch.full((3,), 0.25), (True, False, True))
NOISE = Call(BROADCAST, X_T, src=0)


def test_a_reducing_loop() -> None:
    work = expected_work("reduce", SCHEDULE, BRANCHES, 2)
    total = Call(ALL_REDUCE, VELOCITY)
    assert work.exchanges == (((NOISE, total), (), (total,)),) * 2
    assert work.branches == ((("cond",),) * 3, (("uncond",), ("cond",), ("uncond",)))
    assert (work.total(ALL_REDUCE), work.total(ALL_GATHER), work.direct) == (2, 0, False)
    padded = expected_work("reduce", SCHEDULE, BRANCHES, 3)
    assert padded.branches[2] == (("cond",),) * 3


def test_shards_evaluate_the_branch_of_their_group() -> None:
    work = expected_work("local", SCHEDULE, BRANCHES, Layout(2, 2))
    assert len(work.exchanges) == 4
    assert [of_rank[0] for of_rank in work.branches] == [("cond",), ("cond",), ("uncond",), ("uncond",)]
    apart = expected_work("local", SCHEDULE, BRANCHES, Layout(2, 2, shards_adjacent=False))
    assert [of_rank[0] for of_rank in apart.branches] == [("cond",), ("uncond",), ("cond",), ("uncond",)]
    with pytest.raises(ValueError, match="local gives each rank one branch: 3 ranks cannot take 2 branches"):
        expected_work("local", SCHEDULE, BRANCHES, Layout(3, 2))


def test_equal_noise_is_not_shared() -> None:
    assert expected_work("local", SCHEDULE, BRANCHES, 2, equal_noise=True).collectives == (
        (ALL_GATHER,), (), (ALL_GATHER,),
    )  # fmt: skip


def test_a_declaration_by_rank() -> None:
    def to_rank_0(branch_group: int, shard: int) -> Sequence[Call]:
        return [Call("recv", VELOCITY, src=1)] if branch_group == 0 else [Call("send", VELOCITY, dst=0)]

    declared = Exchanges(
        guided=to_rank_0, unguided=(Call("barrier"),), end=(Call(ALL_GATHER, over=SHARDS),), direct=True
    )
    work = expected_work(declared, SCHEDULE, BRANCHES, Layout(2, 2))
    assert work.direct
    assert [work.names(rank, 0) for rank in range(4)] == [(BROADCAST, "recv")] * 2 + [(BROADCAST, "send")] * 2
    assert work.names(3, 1) == ("barrier",)
    assert work.names(3, 2) == ("send", ALL_GATHER)
    assert work.names(3, 3) == ()
    assert (work.total("recv"), work.total("recv", 2)) == (2, 0)


def test_declarations_of_versions() -> None:
    assert Exchanges.of("local") == Exchanges()
    assert Exchanges.of("round_robin", direct=True).direct
    three = (*BRANCHES, "image")
    assert expected_work(Exchanges.of("round_robin", direct=True), SCHEDULE, three, 2).collectives[0] == (
        BROADCAST, ALL_GATHER, ALL_GATHER,
    )  # fmt: skip
    assert (kind_of(Exchanges.of("reduce")), kind_of("local")) == ("reduce", "local")
    assert ANY not in LOOP_KINDS
    with pytest.raises(BadInput, match="kind of Exchanges is 'ring', expected one of"):
        Exchanges.of("ring")
    with pytest.raises(BadInput, match="kind of Exchanges is 'any', expected one of"):
        Exchanges("any")


def test_calls_in_words() -> None:
    assert str(Call(BROADCAST, X_T, "everybody", 0)) == "broadcast of x_t from 0 over everybody"
    assert str(Call("send", dst=1)) == "send to 1"
