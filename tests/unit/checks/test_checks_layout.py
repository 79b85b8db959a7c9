"""Checks on traces of ranks that are laid out: shards, noise that is not shared, exchanges that a target declares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from traces import changed, clean, reference, small_request

from verify.checks.collectives import collectives
from verify.checks.matches_reference import matches_reference
from verify.checks.not_vacuous import not_vacuous
from verify.checks.observed import observed
from verify.checks.ranks_agree import ranks_agree
from verify.checks.sent_as_computed import sent_as_computed
from verify.checks.state_frozen import state_frozen
from verify.expected import BRANCHES, EVERYBODY, VELOCITY, X_T, Call, Exchanges, expected_work
from verify.layout import Layout
from verify.schedule import ALL_GATHER, ALL_REDUCE, BROADCAST
from verify.trace.exchange_log import Heard
from verify.trace.exchanges import Exchange
from verify.trace.payloads import PayloadWatch, Sent
from verify.trace.trace import Trace
from verify.verdict import Divergence, Finding, Verdict

TWO = small_request(2)
LAYOUT = Layout(2, 2, cut=0)
STEPS = TWO.schedule.steps
DIRECT = Exchanges(
    start=(Call(BROADCAST, X_T, EVERYBODY, src=0),), guided=(Call(ALL_GATHER, VELOCITY, BRANCHES),), direct=True
)


def exchange(name: str, ranks: tuple[int, ...], shape: tuple[int, ...] = (2, 3), src: int | None = None) -> Exchange:
    size = 4 * torch.Size(shape).numel()
    return Exchange(name, "float32", shape, size, "1", ranks, src)


def sharded() -> list[Trace]:
    """Four ranks of which each holds half of the tokens."""
    whole = clean(TWO)

    def on(rank: int) -> Trace:
        of = whole[LAYOUT.of(rank).branch_group]
        shard = LAYOUT.of(rank).shard

        def part(x_t: Tensor) -> Tensor:
            return LAYOUT.part(x_t, shard).clone()

        heard = [
            ((Heard(exchange(BROADCAST, (0, 1, 2, 3), (4, 3), 0)),) if step == 0 else ())
            + ((Heard(exchange(ALL_GATHER, LAYOUT.peers(rank))),) if guided else ())
            for step, guided in enumerate(TWO.schedule.guided)
        ]
        return replace(
            of,
            rank=rank,
            world_size=4,
            start=None if of.start is None else part(of.start),
            x_t=torch.stack([part(x_t) for x_t in of.x_t]),
            final=part(of.final),
            collectives=((),) * STEPS,
            exchanges=tuple(heard),
            noise=f"noise of rank {rank}",
            sent=Sent(velocity=("float32", (2, 3))),
        )

    return [on(rank) for rank in range(4)]


def judged(traces: Sequence[Trace], expects: Exchanges = DIRECT) -> Finding:
    return collectives(traces, expected_work(expects, TWO.schedule, TWO.branches, LAYOUT), LAYOUT)


def heard(traces: Sequence[Trace], rank: int, step: int, *exchanges: Heard) -> list[Trace]:
    of = traces[rank].exchanges
    assert of is not None
    return changed(traces, rank, exchanges=(*of[:step], exchanges, *of[step + 1 :]))


def test_shards_are_compared_across_branch_groups_and_with_the_reference() -> None:
    traces = sharded()
    agree = ranks_agree(traces, LAYOUT)
    assert agree.summary == "2 branch groups hold the same bytes of 2 shards after every step"
    assert matches_reference(traces, reference(TWO), LAYOUT).verdict is Verdict.PASS
    assert observed(traces, LAYOUT).verdict is Verdict.PASS
    x_t = traces[3].x_t.clone()
    x_t[4, 1, 2] += 1
    wrong = changed(traces, 3, x_t=x_t)
    for finding, ranks in (
        (ranks_agree(wrong, LAYOUT), (1, 3)),
        (matches_reference(wrong, reference(TWO), LAYOUT), (0, 3)),
    ):
        assert finding.first_divergence is not None
        assert (finding.first_divergence.step, finding.first_divergence.ranks) == (4, ranks)


def test_a_loop_may_return_all_of_x_t() -> None:
    whole = reference(TWO).final
    traces = [replace(trace, final=whole.clone()) for trace in sharded()]
    assert observed(traces, LAYOUT).verdict is Verdict.PASS
    assert matches_reference(traces, reference(TWO), LAYOUT).verdict is Verdict.PASS
    rolled = changed(traces, 2, final=whole.roll(2, 0))
    assert observed(rolled, LAYOUT).summary.startswith("rank 2 returned another latent")


def test_noise_that_is_not_shared_must_be_equal() -> None:
    equal = [replace(trace, equal_noise=True, noise="one") for trace in clean(TWO)]
    assert "each drew the same noise" in ranks_agree(equal).summary
    assert not any("initial noise" in line for line in not_vacuous(TWO, {"local": equal}, None, None).details)
    finding = ranks_agree(changed(equal, 1, noise="another"))
    assert finding.first_divergence == Divergence(-1, (0, 1), "x_0")


def test_weights_of_shards() -> None:
    traces = sharded()
    for rank in (1, 3):
        state = traces[rank].state
        assert state is not None
        traces = changed(traces, rank, state=replace(state, before={**state.before, "weights": "of shard 1"}))
    assert state_frozen(traces, LAYOUT).summary == "rank 0 and rank 1 hold different weights"
    assert state_frozen(traces, replace(LAYOUT, splits_weights=True)).verdict is Verdict.PASS


def test_declared_exchanges_pass_wherever_they_are_made() -> None:
    finding = judged(sharded())
    assert finding.summary == "6 all_gather, 1 broadcast on each rank, as computed from the schedule"


BROKEN = [
    ((), "rank 2 called none in step 3, expected all_gather"),
    (
        (Heard(exchange(ALL_GATHER, (2, 3))),),
        "rank 2 called all_gather of float32 (2, 3) over ranks 2, 3 in step 3, expected it over ranks 0, 2 "
        "or 0, 1, 2, 3",
    ),
    (
        (Heard(exchange(ALL_GATHER, (0, 2), (1, 3))),),
        "rank 2 called all_gather of float32 (1, 3) over ranks 0, 2 in step 3, expected a velocity, float32 (2, 3)",
    ),
    (
        (Heard(exchange(ALL_GATHER, (0, 2))), Heard(exchange(BROADCAST, (2, 3), src=2))),
        "rank 2 called all_gather, broadcast in step 3, expected all_gather",
    ),
    (
        (Heard(exchange(ALL_GATHER, (0, 2)), evaluating="text"), Heard(exchange(ALL_GATHER, (0, 2)))),
        "rank 2 called all_gather of float32 (2, 3) over ranks 0, 2 while text was evaluated, in step 3, expected it "
        "among ranks 2, 3, which share the branch",
    ),
    (
        (Heard(exchange(ALL_GATHER, (0, 2)), unwaited=True),),
        "rank 2 began an asynchronous all_gather of float32 (2, 3) in step 3 and never waited for it",
    ),
]


@pytest.mark.parametrize(("made", "summary"), BROKEN, ids=["missing", "group", "shape", "more", "astray", "unwaited"])
def test_an_exchange_that_is_not_as_declared(made: tuple[Heard, ...], summary: str) -> None:
    finding = judged(heard(sharded(), 2, 3, *made))
    assert finding.summary == summary
    assert finding.first_divergence == Divergence(3, (0, 2), "collectives")


def test_what_an_evaluation_exchanges_among_its_shards_is_its_own() -> None:
    traces = heard(
        sharded(), 2, 3, Heard(exchange(ALL_GATHER, (2, 3)), evaluating="text"), Heard(exchange(ALL_GATHER, (0, 2)))
    )
    assert judged(traces).verdict is Verdict.PASS


@pytest.mark.parametrize(("src", "passes"), [(0, True), (2, False)])
def test_the_source_of_a_broadcast(src: int, passes: bool) -> None:
    traces = sharded()
    of = traces[0].exchanges
    assert of is not None
    shared = Heard(exchange(BROADCAST, (0, 1, 2, 3), (4, 3), src))
    for rank in range(4):
        traces = heard(traces, rank, 0, shared, Heard(exchange(ALL_GATHER, LAYOUT.peers(rank))))
    assert (judged(traces).verdict is Verdict.PASS) is passes


def test_send_and_recv_by_rank() -> None:
    def between(branch_group: int, shard: int) -> Sequence[Call]:
        return (
            [Call("recv", VELOCITY, BRANCHES, src=1)]
            if branch_group == 0
            else [Call("send", VELOCITY, BRANCHES, dst=0)]
        )

    expects = replace(DIRECT, guided=between)
    traces = sharded()
    for rank in range(4):
        name = "recv" if rank < 2 else "send"
        one = Exchange(
            name, "float32", (2, 3), 24, "0", (0, 1, 2, 3), *((rank + 2, None) if rank < 2 else (None, rank - 2))
        )
        of = traces[rank].exchanges
        assert of is not None
        traces = changed(traces, rank, exchanges=tuple(
            tuple(Heard(one) if h.exchange.name == ALL_GATHER else h for h in step) for step in of
        ))  # fmt: skip
    assert judged(traces, expects).verdict is Verdict.PASS
    of = traces[2].exchanges
    assert of is not None
    astray = Heard(of[1][0].exchange._replace(dst=1))
    assert judged(heard(traces, 2, 1, astray), expects).summary == (
        "rank 2 called send of float32 (2, 3) to rank 1 over ranks 0, 1, 2, 3 in step 1, expected it to rank 0"
    )


def summed(*given: Tensor, velocity: Tensor, sends: float | None = None) -> Sent:
    watch = PayloadWatch(None if sends is None else lambda v: sends * v)
    for step, tensor in enumerate(given):
        watch.computed(step, "text", velocity)
        watch.gathered(step, tensor, ALL_REDUCE)
    return watch.record()


VELOCITY_OF_TEXT = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("weight", [4.0, -3.0, 0.0, 1 / 3, 1e-3])
def test_a_velocity_times_one_number(weight: float, dtype: torch.dtype) -> None:
    velocity = VELOCITY_OF_TEXT.to(dtype)
    sent = summed(weight * velocity, velocity=velocity)
    assert (sent.unlike, sent.sums, sent.gathers) == (0, 1, 1)
    assert sent.weight == pytest.approx(weight, rel=1e-2)


def test_what_is_no_velocity_times_a_number() -> None:
    velocity = VELOCITY_OF_TEXT
    off = 4 * velocity
    off[2, 1] *= 1 + 2**-20
    for given in (off, 4 * velocity + 0.1, (4 * velocity).flip(0), 4 * velocity[:2], (4 * velocity).long()):
        sent = summed(4 * velocity, given, velocity=velocity)
        assert (sent.unlike, sent.step) == (1, 1)


def test_weights_that_the_target_says() -> None:
    velocity = VELOCITY_OF_TEXT
    assert summed(4.0 * velocity, velocity=velocity, sends=4.0).unlike == 0
    sent = summed(4.0 * velocity, 5.0 * velocity, velocity=velocity, sends=4.0)
    assert (sent.unlike, sent.step, sent.weight) == (1, 1, None)


def test_sums_in_words() -> None:
    traces = [replace(t, sent=Sent(6, 72, sums=6, weight=w)) for t, w in zip(clean(TWO), (4.0, -3.0), strict=True)]
    assert sent_as_computed(traces).summary == (
        "6 sums on each rank were given what the network had returned times one number, first 4 on rank 0, -3 on "
        "rank 1; whether these are right, the sum shows in matches_reference"
    )
