"""What each version of the loop must exchange and evaluate, computed from the schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from verify.errors import BadInput
from verify.layout import Layout
from verify.schedule import ALL_GATHER, ALL_REDUCE, BROADCAST, Schedule

LOOP_KINDS = ("reference", "broadcast", "local", "round_robin", "reduce")
ANY = "any"
# The versions in which branch group ``i`` evaluates branch ``i``, so that there are as many groups as branches.
ONE_BRANCH_A_RANK = ("broadcast", "local")
X_T, VELOCITY = "x_t", "velocity"
BRANCHES, SHARDS, EVERYBODY = OVER = ("branches", "shards", "everybody")


class Call(NamedTuple):
    """One exchange that a step must make on a rank.

    Attributes:
        name: all_gather, all_reduce, broadcast, send, recv and so on, as the field calls it.
        of: what it carries, where that is judged: ``x_t``, which has its bytes at least; or ``velocity``, which has as
            many elements, or a multiple of them. Empty for anything.
        over: the ranks that take part: ``branches``, those of this rank's shard in every branch group, or all ranks;
            ``shards``, those of this rank's branch group; ``everybody``, all ranks. Empty for any of these.
        src: whose tensor a broadcast or recv brings, by its number among those ranks.
        dst: who is given a sent tensor, likewise.
    """

    name: str
    of: str = ""
    over: str = ""
    src: int | None = None
    dst: int | None = None

    def __str__(self) -> str:
        what = f" of {self.of}" if self.of else ""
        source = "" if self.src is None else f" from {self.src}"
        goal = "" if self.dst is None else f" to {self.dst}"
        return f"{self.name}{what}{source}{goal}" + (f" over {self.over}" if self.over else "")


# Alike on every rank, or made from the rank's branch group and shard.
Calls = tuple[Call, ...] | Callable[[int, int], Sequence[Call]]
_NOISE = Call(BROADCAST, X_T, src=0)


@dataclass(frozen=True)
class Exchanges:
    """What a loop exchanges, where a target says it: ``expects = {"parallel": Exchanges(...)}``.

    Attributes:
        kind: the version whose branch evaluations the loop is held to: broadcast, local, round_robin or reduce.
        start: before step 0. Left out where each rank draws the same noise, see ``Prepared.equal_noise``.
        guided: with each evaluation of a guided step.
        unguided: with each evaluation of another step.
        each_step: after that, in every step.
        end: after the last step.
        direct: the loop exchanges over groups of the engine's own, with ``torch.distributed`` itself. Every exchange of
            the loop is then compared with this, wherever it was made. Without it, only those count that pass through
            the group that the loop is handed, and any other fails.
    """

    kind: str = "local"
    start: Calls = (_NOISE,)
    guided: Calls = (Call(ALL_GATHER),)
    unguided: Calls = ()
    each_step: Calls = ()
    end: Calls = ()
    direct: bool = False

    def __post_init__(self) -> None:
        if self.kind not in LOOP_KINDS:
            raise BadInput.of("kind of Exchanges", self.kind, f"one of {', '.join(LOOP_KINDS[1:])}", "choose one")

    @classmethod
    def of(cls, kind: str, **changes: Any) -> Exchanges:
        """What the version of that name exchanges, with ``changes``.

        Raises:
            BadInput: no version has that name.
        """
        if kind not in _VERSIONS:
            raise BadInput.of("kind of Exchanges", kind, f"one of {', '.join(_VERSIONS)}", "choose one")
        return replace(_VERSIONS[kind], **changes)


_VERSIONS = {
    "reference": Exchanges("reference", start=(), guided=()),
    "broadcast": Exchanges("broadcast", each_step=(_NOISE,)),
    "local": Exchanges("local"),
    "round_robin": Exchanges("round_robin"),
    "reduce": Exchanges("reduce", guided=(Call(ALL_REDUCE, VELOCITY),)),
}


def kind_of(expects: str | Exchanges) -> str:
    """The name of the version that a loop is held to."""
    return expects if isinstance(expects, str) else expects.kind


@dataclass(frozen=True)
class Expected:
    """What one loop must do on each rank, step by step.

    Attributes:
        exchanges: for each rank and step, the exchanges in order; those before the loop count to step 0, those after
            it to the last step.
        branches: for each rank and step, the branches that rank evaluates, in order.
        direct: whether exchanges count that were made beside the handed group.
    """

    exchanges: tuple[tuple[tuple[Call, ...], ...], ...]
    branches: tuple[tuple[tuple[str, ...], ...], ...]
    direct: bool = False

    @property
    def collectives(self) -> tuple[tuple[str, ...], ...]:
        """The names of rank 0's exchanges in each step."""
        return tuple(tuple(each.name for each in step) for step in self.exchanges[0])

    def names(self, rank: int, step: int) -> tuple[str, ...]:
        """The names of a rank's exchanges in a step; none after the last."""
        return tuple(each.name for each in self.of(rank, step))

    def of(self, rank: int, step: int) -> tuple[Call, ...]:
        """A rank's exchanges in a step; none after the last."""
        return self.exchanges[rank][step] if step < len(self.exchanges[rank]) else ()

    def total(self, name: str, rank: int = 0) -> int:
        """How often collective ``name`` occurs in the whole loop, on a rank."""
        return sum(each.name == name for step in self.exchanges[rank] for each in step)


def expected_work(
    expects: str | Exchanges,
    schedule: Schedule,
    branches: Sequence[str],
    layout: int | Layout,
    equal_noise: bool = False,
) -> Expected:
    """The exchanges and branch evaluations of a loop, computed from the schedule.

    ==============  ===================================  =====================================================
    kind            a guided step                        a step outside the interval
    ==============  ===================================  =====================================================
    ``reference``   every branch in turn, alone          gen, alone
    ``broadcast``   own branch, all_gather, broadcast    gen on rank 0 only, broadcast
    ``local``       own branch, all_gather               gen on every rank, nothing sent
    ``round_robin`` branches ``rank``, ``rank + world    gen on every rank, nothing sent
                    size``, ... (gen for a rank without
                    one); an all_gather for each round
    ``reduce``      as ``round_robin``, weighted and     gen on every rank, nothing sent
                    summed; one all_reduce
    ==============  ===================================  =====================================================

    A step of several evaluations does so several times, one of none not at all.

    Every version but ``reference`` begins with one broadcast of the initial noise. ``gen`` stands for the first branch,
    whatever a target calls it. A rank stands here for its branch group: all ranks of one evaluate the same.

    Args:
        expects: the name of a version, or what a target says its loop exchanges.
        schedule: the schedule that the loop follows.
        branches: the request's branches.
        layout: of the ranks, or their number where each is a branch group of its own.
        equal_noise: every rank draws the same noise, so that nothing is exchanged before step 0.

    Raises:
        ValueError: there is no such version, or it gives each group one branch and the numbers do not match.
    """
    kind = kind_of(expects)
    if kind not in LOOP_KINDS:
        raise ValueError(f"no loop version is called {kind!r}")
    laid = Layout(layout) if isinstance(layout, int) else layout
    groups = laid.branch_groups
    if kind in ONE_BRANCH_A_RANK and groups != len(branches):
        raise ValueError(f"{kind} gives each rank one branch: {groups} ranks cannot take {len(branches)} branches")
    version = _VERSIONS[kind] if isinstance(expects, str) else expects
    rounds = -(-len(branches) // groups) if version.guided == _VERSIONS["round_robin"].guided else 1
    first = branches[0]

    def evaluated(rank: int, guided: bool) -> tuple[str, ...]:
        group = laid.of(rank).branch_group
        if not guided:
            return (first,) if group == 0 or kind != "broadcast" else ()
        if kind == "reference":
            return tuple(branches)
        return tuple(branches[group::groups]) or (first,)

    def exchanged(rank: int, step: int) -> tuple[Call, ...]:
        def on_rank(steps: Calls) -> tuple[Call, ...]:
            return tuple(steps(*laid.of(rank))) if callable(steps) else steps

        found = on_rank(version.guided) * rounds if schedule.guided[step] else on_rank(version.unguided)
        found = found * schedule.evaluations_of(step) + on_rank(version.each_step)
        if step == 0 and not equal_noise:
            found = on_rank(version.start) + found
        return found + (on_rank(version.end) if step == steps - 1 else ())

    ranks, steps = range(laid.ranks), len(schedule.guided)
    return Expected(
        exchanges=tuple(tuple(exchanged(rank, step) for step in range(steps)) for rank in ranks),
        branches=tuple(
            tuple(evaluated(rank, of) * schedule.evaluations_of(step) for step, of in enumerate(schedule.guided))
            for rank in ranks
        ),
        direct=version.direct,
    )
