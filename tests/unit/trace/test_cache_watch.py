"""Writes to contexts: noticed, placed at their step, and put right."""

from __future__ import annotations

import torch
from recording import Bench
from traces import STEPS

from verify.trace.caches import CacheWatch
from verify.trace.digest import digest


def test_a_write_is_noticed_with_its_step() -> None:
    bench = Bench()
    text = bench.inner.contexts["text"]
    before = text.clone()
    for step in range(STEPS):
        if step == 4:
            text[1, 2] += 1.0
        bench.observe(step, bench.x_0)
    gen, written = bench.trace().caches
    assert (gen.written_at, gen.difference, gen.before) == (None, None, gen.after)
    assert written.written_at == 4
    assert written.before == digest(before) != written.after
    assert written.difference is not None
    assert (written.difference.index, written.difference.mismatched) == ((1, 2), 1)
    assert written.difference.values == (float(before[1, 2]), float(before[1, 2] + 1.0))


def test_a_write_that_no_counter_sees_is_noticed_by_its_bytes() -> None:
    bench = Bench()
    gen = bench.inner.contexts["gen"]
    bench.observe(0, bench.x_0)
    gen.data[0, 0] = 7.0
    bench.rest(1)
    (written, _) = bench.trace().caches
    assert written.before != written.after
    assert written.written_at == 1
    assert written.difference is not None and written.difference.values == (-1.0, 7.0)


def test_a_write_after_the_last_step_has_no_step() -> None:
    bench = Bench()
    bench.rest(0)
    bench.inner.contexts["gen"].add_(1.0)
    assert [(c.before != c.after, c.written_at) for c in bench.trace().caches] == [(True, None), (False, None)]


def test_a_write_that_changes_nothing_in_the_end_is_told_with_its_step() -> None:
    bench = Bench()
    gen = bench.inner.contexts["gen"]
    for step in range(STEPS):
        if step == 3:
            kept = gen.clone()
            gen.zero_()
            gen.copy_(kept)
        bench.observe(step, bench.x_0)
    records = bench.trace().caches
    assert [(c.before == c.after, c.written_at, c.touched_at) for c in records] == [(True, None, 3), (True, None, None)]


def test_a_write_of_the_other_zero_is_one() -> None:
    tensor = torch.zeros(3)
    watch = CacheWatch({"gen": {"keys": tensor}})
    watch.begin()
    tensor.neg_()
    watch.look(0)
    (record,) = watch.records()
    assert (record.before != record.after, record.written_at) == (True, 0)


def test_layers_that_share_memory_each_have_their_own_step() -> None:
    """Views count each other's writes; a context keeps the keys of all layers in one tensor."""
    keys = torch.zeros(3, 4)
    watch = CacheWatch({"gen": {f"keys, layer {layer}": keys[layer] for layer in range(3)}})
    watch.begin()
    for step in range(STEPS):
        if step in (2, 5):
            keys[{2: 1, 5: 0}[step], 0] += 1.0
        watch.look(step)
    assert [record.written_at for record in watch.records()] == [5, 2, None]


def test_a_cache_put_in_the_place_of_another_is_noticed() -> None:
    """As an append to a cache does it."""
    first = torch.zeros(3)
    contexts = {"gen": {"keys": first}}
    watch = CacheWatch(contexts)
    watch.begin()
    watch.look(0)
    contexts["gen"]["keys"] = torch.ones(4)
    first[0] = 1.0
    watch.look(1)
    (record,) = watch.records()
    assert (record.written_at, record.difference, record.elements) == (1, None, 3)
    assert (record.before, record.after) == (digest(torch.zeros(3)), digest(torch.ones(4)))


def test_a_cache_replaced_by_one_with_its_bytes_is_told_with_its_step() -> None:
    first = torch.zeros(3)
    contexts = {"gen": {"keys": first}}
    watch = CacheWatch(contexts)
    watch.begin()
    contexts["gen"]["keys"] = torch.zeros(3)
    first[0] = 1.0
    watch.look(0)
    (record,) = watch.records()
    assert (record.before == record.after, record.written_at, record.touched_at) == (True, None, 0)


def test_no_contexts_no_records() -> None:
    watch = CacheWatch({})
    watch.begin()
    watch.look(0)
    assert watch.records() == ()


def test_digests_are_of_bytes_in_row_major_order() -> None:
    a = torch.arange(6.0).view(2, 3)
    assert digest(a) == digest(a.t().contiguous().t()) == digest(a.view(6))
    assert digest(a) != digest(a.t())
    assert digest(torch.tensor([0.0])) != digest(torch.tensor([-0.0]))
    assert len({digest(torch.zeros(4, dtype=d)) for d in (torch.float32, torch.bfloat16, torch.float64)}) == 3
    assert digest(torch.zeros(0)) == digest(torch.zeros(0, 3))
