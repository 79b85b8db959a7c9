"""Whose doing an exchange was: a call of the handed group, an evaluation, or neither."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from verify.schedule import ALL_GATHER, BROADCAST
from verify.trace.exchange_log import ExchangeLog, Heard
from verify.trace.exchanges import Exchange

X = torch.zeros(4, 3)
GATHER = Exchange(ALL_GATHER, "float32", (4, 3), X.nbytes, "0", (0, 1))
SHARE = Exchange(BROADCAST, "float32", (4, 3), X.nbytes, "0", (2, 5), src=5)


class Group:
    rank, world_size = 0, 2

    def __init__(self, exchanges: Any = None, world_size: int = 2) -> None:
        self.world_size = world_size
        if exchanges is not None:
            self.exchanges = exchanges

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def broadcast(self, tensor: Tensor, src: int = 0) -> Tensor:
        raise NotImplementedError


def log(exchanges: Any = None, step: Callable[[], int] = lambda: 0, world_size: int = 2) -> ExchangeLog:
    return ExchangeLog(Group(exchanges, world_size), step)


def in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def heard(log: ExchangeLog) -> list[Heard]:
    return log.heard[0]


def test_one_exchange_stands_for_a_call() -> None:
    one = log()
    with one.call(ALL_GATHER, 2, 0, X):
        one._hear(GATHER)
    one._hear(GATHER)
    assert heard(one) == [Heard(GATHER, 2, "all_gather 2 of step 0", "", True), Heard(GATHER, before_evaluating=True)]
    assert one.unheard == ()


@pytest.mark.parametrize(
    "other",
    [
        GATHER._replace(name="all_reduce"),
        GATHER._replace(size=X.nbytes // 2),
        GATHER._replace(ranks=(0, 1, 2)),
    ],
    ids=["another name", "fewer bytes", "another group"],
)
def test_another_exchange_does_not(other: Exchange) -> None:
    one = log()
    with one.call(ALL_GATHER, 1, 0, X):
        one._hear(other)
    assert [h.call for h in heard(one)] == [None]
    assert one.unheard == ("all_gather 1 of step 0",)


def test_a_second_one_does_not_either() -> None:
    one = log()
    with one.call(ALL_GATHER, 1, 0, X):
        one._hear(GATHER)
        one._hear(GATHER)
    assert [h.call for h in heard(one)] == [1, None]
    assert heard(one)[1].within == "all_gather 1 of step 0"


def test_the_source_is_a_rank_of_the_group() -> None:
    for src, call in ((1, 1), (0, None)):
        one = log()
        with one.call(BROADCAST, 1, 0, X, src):
            one._hear(SHARE)
        assert [h.call for h in heard(one)] == [call]


def test_a_group_may_exchange_in_a_thread_of_its_own() -> None:
    one = log()
    with one.call(ALL_GATHER, 1, 0, X):
        in_a_thread(lambda: one._hear(GATHER))
        in_a_thread(lambda: one._hear(SHARE))
    assert [h.call for h in heard(one)] == [1, None]
    with one.call(ALL_GATHER, 2, 0, X):
        one._hear(GATHER)
        in_a_thread(lambda: one._hear(GATHER))
    assert [h.call for h in heard(one)] == [1, None, 2, None]


def test_calls_from_several_threads_at_once() -> None:
    one = log()

    def call() -> None:
        with one.call(BROADCAST, 2, 0, X, 1):
            one._hear(SHARE)

    with one.call(ALL_GATHER, 1, 0, X):
        in_a_thread(call)
        one._hear(GATHER)
    assert [h.call for h in heard(one)] == [2, 1]


def test_what_an_evaluation_exchanges_is_its_own() -> None:
    one = log()
    with one.evaluating("gen"):
        one._hear(GATHER)
    with one.call(ALL_GATHER, 1, 0, X):

        def evaluate() -> None:
            with one.evaluating("text"):
                one._hear(GATHER)

        in_a_thread(evaluate)
        one._hear(GATHER)
    assert [(h.call, h.evaluating, h.before_evaluating) for h in heard(one)] == [
        (None, "gen", False),
        (None, "text", False),
        (1, "", False),
    ]


def test_a_group_says_what_its_calls_are_made_of() -> None:
    one = log({ALL_GATHER: (BROADCAST, BROADCAST), BROADCAST: ()})
    with one.call(ALL_GATHER, 1, 0, X):
        one._hear(SHARE)
        one._hear(SHARE._replace(src=2))
    with one.call(BROADCAST, 2, 0, X, 0):
        pass
    assert [h.call for h in heard(one)] == [1, 1]
    assert one.unheard == ()
    with one.call(ALL_GATHER, 3, 0, X):
        one._hear(SHARE)
    with one.call(BROADCAST, 4, 0, X, 0):
        one._hear(SHARE)
    assert [h.call for h in heard(one)] == [1, 1, 3, None]
    assert list(one.unheard) == ["all_gather 3 of step 0"]


def test_a_group_of_one_need_not_exchange() -> None:
    one = log(world_size=1)
    with one.call(ALL_GATHER, 1, 0, X):
        pass
    assert one.unheard == ()


def test_steps() -> None:
    now = [0]
    one = log(step=lambda: now[0])
    one._hear(GATHER)
    now[0] = 1
    with one.call(ALL_GATHER, 1, 2, X):  # Of a velocity that was computed ahead of time.
        one._hear(GATHER)
    one._hear(GATHER)
    now[0] = 3
    one._hear(SHARE)
    found = {step: [h.exchange.name for h in heard] for step, heard in one.heard.items()}
    assert found == {0: [ALL_GATHER], 1: [ALL_GATHER], 2: [ALL_GATHER], 3: [BROADCAST]}
