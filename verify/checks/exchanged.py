"""What a loop exchanged beside the group that it was handed, judged by which ranks took part. For ``collectives``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from verify.expected import BRANCHES, EVERYBODY, SHARDS, Call, Expected
from verify.layout import Layout
from verify.trace.exchange_log import Heard
from verify.trace.exchanges import RECEIVE, SEND
from verify.trace.trace import Trace

# A rank has nothing to hide in so few bytes before it has evaluated anything.
WARM_UP_BYTES = 16


class Wrong(NamedTuple):
    """Something found, in a step, on a rank."""

    step: int
    trace: Trace
    summary: str
    details: tuple[str, ...] = ()


class Made(NamedTuple):
    """One exchange that counts, as a rank made it.

    Attributes:
        name, dtype, shape: as in :class:`verify.trace.exchanges.Exchange`.
        src, dst: numbers among the ranks that take part.
        ranks: the ranks of the run that take part; None where the group that the loop was handed says it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    src: int | None = None
    dst: int | None = None
    ranks: tuple[int, ...] | None = None

    def __str__(self) -> str:
        what = f" of {self.dtype} {self.shape}" if self.dtype else ""
        source = "" if self.src is None else f" from rank {self._named(self.src)}"
        goal = "" if self.dst is None else f" to rank {self._named(self.dst)}"
        return f"{self.name}{what}{source}{goal}" + ("" if self.ranks is None else f" over ranks {_listed(self.ranks)}")

    @property
    def is_between_two(self) -> bool:
        """Whether it need not look alike on all ranks."""
        return self.name in (SEND, RECEIVE)

    @property
    def alike(self) -> tuple[object, ...]:
        """What must be the same on every rank with which it is compared."""
        return self.name, self.dtype, self.shape, self.src

    def _named(self, number: int) -> int:
        return number if self.ranks is None else self.ranks[number]


def is_warm_up(heard: Heard) -> bool:
    """Whether an exchange may set up a communicator and do nothing else."""
    exchange = heard.exchange
    return heard.before_evaluating and exchange.size <= WARM_UP_BYTES and exchange.name not in (SEND, RECEIVE)


def within_branch(heard: Heard, trace: Trace, layout: Layout | None) -> bool:
    """Whether an evaluation made it among the shards of its branch."""
    own = {trace.rank} if layout is None else {*layout.branch_group(trace.rank)}
    return bool(heard.evaluating) and {*_of_run(heard, trace)} <= own


def directly(trace: Trace, layout: Layout | None) -> tuple[tuple[Made, ...], ...]:
    """Every exchange of a rank in each step, wherever it was made, but warm-ups and what evaluations made."""
    return tuple(
        tuple(_made(h, trace) for h in of_step if not h.evaluating and not (step == 0 and is_warm_up(h)))
        for step, of_step in enumerate(trace.exchanges or ())
    )


def _made(heard: Heard, trace: Trace) -> Made:
    exchange, ranks = heard.exchange, _of_run(heard, trace)
    src, dst = (
        None if rank is None or rank not in exchange.ranks else exchange.ranks.index(rank)
        for rank in (exchange.src, exchange.dst)
    )
    return Made(exchange.name, exchange.dtype, exchange.shape, src, dst, ranks)


def _of_run(heard: Heard, trace: Trace) -> tuple[int, ...]:
    """The ranks of the run that take part in an exchange, in the order of its group."""
    world = trace.world or tuple(range(trace.world_size))
    numbers = {of_world: rank for rank, of_world in enumerate(world)}
    return tuple(numbers[rank] for rank in heard.exchange.ranks if rank in numbers)


def unwaited(traces: Sequence[Trace]) -> Iterator[Wrong]:
    """The first exchange of each rank whose handle nobody waited for."""
    for trace in traces:
        found = ((step, h) for step, of_step in enumerate(trace.exchanges or ()) for h in of_step if h.unwaited)
        step, heard = next(found, (0, None))
        if heard is not None:
            what = f"began an asynchronous {heard.exchange} in step {step} and never waited for it"
            yield Wrong(step, trace, f"rank {trace.rank} {what}")


def astray(traces: Sequence[Trace], layout: Layout | None) -> Iterator[Wrong]:
    """The first exchange of each rank that an evaluation made with ranks of other branches."""
    for trace in traces:
        found = (
            (step, h)
            for step, of_step in enumerate(trace.exchanges or ())
            for h in of_step
            if h.evaluating and not within_branch(h, trace, layout)
        )
        step, heard = next(found, (0, None))
        if heard is None:
            continue
        own = (trace.rank,) if layout is None else layout.branch_group(trace.rank)
        what = f"called {_made(heard, trace)} while {heard.evaluating} was evaluated, in step {step}"
        yield Wrong(
            step, trace, f"rank {trace.rank} {what}, expected it among ranks {_listed(own)}, which share the branch"
        )


def misdirected(
    traces: Sequence[Trace],
    called: Sequence[Sequence[tuple[Made, ...]]],
    expected: Expected,
    layout: Layout | None,
    steps: int,
) -> Iterator[Wrong]:
    """Exchanges over other ranks than they should be, or from or to another one."""
    for step in range(steps):
        for trace, own in zip(traces, called, strict=True):
            laid = layout or Layout(trace.world_size)
            seen = own[step] if step < len(own) else ()
            for call, made in zip(expected.of(trace.rank, step), seen, strict=False):
                if call.name != made.name:
                    break
                meant = _meant(call, made, trace.rank, laid)
                if meant:
                    yield Wrong(step, trace, f"rank {trace.rank} called {made} in step {step}, expected it {meant}")
                    break


def _meant(call: Call, made: Made, rank: int, layout: Layout) -> str:
    everybody = tuple(range(layout.ranks))
    allowed = {
        BRANCHES: (layout.peers(rank), everybody),
        SHARDS: (layout.branch_group(rank),),
        EVERYBODY: (everybody,),
    }.get(call.over, (layout.peers(rank), layout.branch_group(rank), everybody))
    # An exchange of two may run over a larger group.
    if made.ranks not in allowed and not (made.is_between_two and made.ranks == everybody):
        return f"over ranks {' or '.join(_listed(ranks) for ranks in dict.fromkeys(allowed))}"
    for word, number, is_so in (("from", call.src, made.src), ("to", call.dst, made.dst)):
        if number is None:
            continue
        group = allowed[0] if call.over else made.ranks or ()
        right = group[number] if number < len(group) else None
        seen = None if is_so is None or made.ranks is None else made.ranks[is_so]
        if seen != right:
            return f"{word} rank {right}"
    return ""


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))
