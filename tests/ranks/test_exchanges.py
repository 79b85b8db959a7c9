"""What a process exchanges is heard, however it is done; nothing that it does changes by being heard."""

from __future__ import annotations

import pickle

import exchange_tasks
import pytest
from exchange_tasks import WAYS
from pools import shared_pool

from verify.trace.exchanges import Exchange

PICKLED = len(pickle.dumps({"step": 1}))
# What rank 0 hears of each way on two ranks, in words.
HEARD = {
    "broadcast": ["broadcast of float32 (4,) from rank 1"],
    "all_gather": ["all_gather of float32 (4,)"],
    "all_gather, async": ["all_gather of float32 (4,)"],
    "all_gather_into_tensor": ["all_gather of float32 (4,)"],
    "all_reduce": ["all_reduce of float32 (4,)"],
    "reduce": ["reduce of float32 (4,) to rank 1"],
    "gather": ["gather of float32 (4,) to rank 1"],
    "scatter": ["scatter of float32 (4,) from rank 1"],
    "reduce_scatter": ["reduce_scatter of float32 (8,)"],
    "all_to_all": ["all_to_all of float32 (4,)"],
    "send": ["send of float32 (4,) to rank 1"],
    "recv from anybody": ["send of float32 (4,) to rank 1"],
    "batch_isend_irecv": ["send of float32 (4,) to rank 1", "recv of float32 (4,) from rank 1"],
    "coalesced": ["all_reduce of float32 (4,)"],
    "barrier": ["barrier"],
    "monitored_barrier": ["barrier"],
    "broadcast_object_list": ["broadcast of int64 (1,) from rank 0", f"broadcast of uint8 ({PICKLED},) from rank 0"],
    "all_gather_object": ["all_gather of int64 (1,)", "all_gather of uint8 (5,)"],
    "own group": ["broadcast of float32 (4,) from rank 1"],
    "in a thread": ["all_reduce of float32 (4,)"],
    "in inference mode": ["all_reduce of float32 (4,)"],
    "functional": ["all_reduce of float32 (4,)"],
    "functional, gather": ["all_gather of float32 (4,)"],
    "DTensor": ["all_gather of float32 (4,)"],
    "backend": ["all_reduce of float32 (4,)"],
}


def test_every_way_is_heard() -> None:
    on_0, on_1 = shared_pool(2).run(exchange_tasks.heard)
    assert list(HEARD) == list(WAYS)
    assert {way: [str(exchange) for exchange in heard] for way, heard in on_0.items()} == HEARD
    for way in WAYS:
        assert all(exchange.ranks == (0, 1) for exchange in (*on_0[way], *on_1[way]))
    assert [str(exchange) for exchange in on_1["recv from anybody"]] == ["recv of float32 (4,)"]
    assert on_0["all_gather, async"][0].asynchronous and not on_0["all_gather"][0].asynchronous
    assert on_0["coalesced"][0].size == 32
    (own,), (world,) = on_0["own group"], on_0["broadcast"]
    assert own.group != world.group


def test_what_is_exchanged_and_what_fails_is_the_same() -> None:
    pool = shared_pool(2)
    assert pool.run(exchange_tasks.results, True) == pool.run(exchange_tasks.results, False)


def test_other_threads_run_while_one_waits_within_an_exchange() -> None:
    waiting, _ = shared_pool(2).run(exchange_tasks.others_run_meanwhile)
    assert waiting > 20


def test_ordinary_operators_cost_what_they_did() -> None:
    """The bound is wide, since this machine may be busy; a mode in front of every operator takes ten times as long."""
    pool = shared_pool(2)
    without, listening = (max(pool.run(exchange_tasks.seconds_of_an_operator, listen)) for listen in (False, True))
    assert listening < 3 * without


@pytest.mark.parametrize("name", ["send", "barrier"])
def test_an_exchange_in_words(name: str) -> None:
    exchange = Exchange(name, "float32", (1,), 4, "0", (0, 1), dst=1 if name == "send" else None)
    assert str(exchange) == {"send": "send of float32 (1,) to rank 1", "barrier": "barrier"}[name]
