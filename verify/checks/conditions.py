"""What two ranks ran on and how, compared: code, hardware, variables, and settings before, during and after a loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from verify.environment.conditions import Conditions
from verify.environment.identity import Identity
from verify.environment.properties import BY_NAME, MIXED, Kind
from verify.environment.variables import is_own
from verify.environment.watch import AFTER, BEFORE, OBSERVE, THREAD, VELOCITY, Look, Seen, kind_of
from verify.trace.trace import PRIVATE_ENVIRONMENT

C = TypeVar("C", bound=Conditions)

# Of nested properties, each is compared by itself.
_NESTED = ("settings", "flags", "variables")
# The likeliest causes first: a host with another GPU differs in its driver and its number of cores as well.
_TELLING = ("gpu", "cpu", "driver", "torch", "cuda", "nccl", "cudnn", "libc", "threads")
_MOMENTS = {VELOCITY: "asking for a velocity", OBSERVE: "showing x_t", AFTER: "after the loop"}


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same on two ranks.

    Attributes:
        name: of it.
        ours: on the one rank.
        theirs: on the other.
        step: in which it was seen; None where it held before the loop, and for code and hardware.
        moment: when in that step.
        predicate: what is to be said of the two ranks.
    """

    name: str
    ours: Any
    theirs: Any
    step: int | None = None
    moment: str = BEFORE
    predicate: str = ""

    def line(self, ours: str, theirs: str) -> str:
        """Both values, and where they were found: ``threads: 1 on rank 0, 2 on rank 1``."""
        when = "" if self.step is None else f" in step {self.step}, {_MOMENTS[self.moment]}"
        if self.moment == AFTER:
            when = " after the loop"
        return f"{self.name}{when}: {self.ours!r} {ours}, {self.theirs!r} {theirs}"


def differences(ours: Conditions, theirs: Conditions) -> list[Difference]:
    """All that can change bits and is not the same: code first, then the environment, then settings while running."""
    return [*of_code(ours, theirs), *of_environment(ours, theirs), *of_steps(ours, theirs)]


def compared(trace: Conditions) -> int:
    """How many properties of a rank there are to compare."""
    identity = trace.identity or Identity()
    parts = identity.sources, identity.distributions, identity.libraries
    return len(_environment(trace)) + sum(map(len, parts))


def of_code(ours: Conditions, theirs: Conditions) -> Iterator[Difference]:
    """Sources, versions and libraries that both have loaded and that are not the same."""
    a, b = ours.identity or Identity(), theirs.identity or Identity()
    for mine, other, of, predicate in (
        (a.sources, b.sources, "source of", "run different sources of"),
        (a.distributions, b.distributions, "version of", "run different versions of"),
        (a.libraries, b.libraries, "size of", "have loaded different builds of"),
    ):
        # A file is the loop's or the target's own, so it comes first.
        for name in sorted(mine.keys() & other.keys(), key=lambda name: (not name.endswith(".py"), name)):
            if mine[name] != other[name]:
                yield Difference(f"{of} {name}", mine[name], other[name], predicate=f"{predicate} {name}")


def of_environment(ours: Conditions, theirs: Conditions) -> Iterator[Difference]:
    """Hardware, versions, variables and settings that differed before the loop."""
    a, b = _environment(ours), _environment(theirs)
    for name in sorted({*a, *b}, key=lambda name: (_TELLING.index(name) if name in _TELLING else len(_TELLING), name)):
        if a.get(name) != b.get(name):
            yield Difference(name, a.get(name), b.get(name))


def _environment(trace: Conditions) -> dict[str, Any]:
    """Everything that must be equal, of a flat list; settings as they were seen in the loop's own thread."""
    found: dict[str, Any] = {}
    for name, value in sorted(trace.environment.items()):
        if name in _NESTED and isinstance(value, Mapping):
            found |= value
        elif name not in PRIVATE_ENVIRONMENT:
            found[name] = value
    if trace.settings is not None:
        found |= trace.settings.before
    return {name: value for name, value in found.items() if not is_own(name) and kind_of(name) is not Kind.SHOWN}


def of_steps(ours: Conditions, theirs: Conditions) -> Iterator[Difference]:
    """Settings that differed in a step or after the loop and not before; each once, where it was first seen."""
    a, b = ours.settings, theirs.settings
    if a is None or b is None:
        return
    told = {name for name in {*a.before, *b.before} if a.before.get(name) != b.before.get(name)}
    mine, other = _by_moment(a), _by_moment(b)
    for step, moment in sorted(mine.keys() & other.keys(), key=lambda key: (key[0], list(_MOMENTS).index(key[1]))):
        for one, two in _pairs(mine[step, moment], other[step, moment]):
            if one == two:
                continue
            # What is told as mixed is the older name of something else that differs.
            for name in sorted(dict.fromkeys((*one, *two)), key=lambda name: MIXED in (one.get(name), two.get(name))):
                if name not in told and one.get(name) != two.get(name) and kind_of(name) is not Kind.SHOWN:
                    told.add(name)
                    yield Difference(name, one.get(name), two.get(name), step, moment)


def _by_moment(seen: Seen) -> dict[tuple[int, str], list[Mapping[str, Any]]]:
    found: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    last = max((look.step for look in seen.looks if look.moment == OBSERVE), default=-1)
    for look in seen.looks:
        if look.moment != BEFORE:
            # The end counts to no step: ranks may end after a different number of them.
            step = last + 1 if look.moment == AFTER else look.step
            found.setdefault((step, look.moment), []).append(seen.samples[look.sample])
    return found


def _pairs(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Looks of one moment side by side. A rank that evaluates more branches than another is compared by its last."""
    yield from zip(ours, theirs, strict=True) if len(ours) == len(theirs) else ((ours[-1], theirs[-1]),)


@dataclass(frozen=True)
class Change:
    """A setting that a loop changed while running.

    Attributes:
        name: of the setting.
        before: what it was before the loop.
        now: what it became.
        look: where that was first seen.
    """

    name: str
    before: Any
    now: Any
    look: Look

    def __str__(self) -> str:
        where = "after the loop" if self.look.moment == AFTER else f"from step {self.look.step} on"
        return f"{self.name}: {self.before!r} before the loop, {self.now!r} {where}"

    @property
    def kind(self) -> Kind:
        """What it means."""
        return kind_of(self.name)


def changes(trace: Conditions) -> list[Change]:
    """What the loop changed while running, each setting once."""
    seen = trace.settings
    found: dict[str, Change] = {}
    compared: set[int] = set()
    for look in () if seen is None else seen.looks:
        assert seen is not None
        if look.sample in compared:
            continue
        compared.add(look.sample)
        sample = seen.samples[look.sample]
        for name in dict.fromkeys((*seen.before, *sample)):
            if name not in found and sample.get(name) != seen.before.get(name):
                found[name] = Change(name, seen.before.get(name), sample.get(name), look)
    return [*found.values()]


def unexplained(traces: Sequence[Conditions]) -> list[str]:
    """Variables that differ between ranks and of which it is not known whether they matter; names only."""
    others = [(trace.identity or Identity()).others for trace in traces]
    names = sorted({name for each in others for name in each})
    return [name for name in names if len({each.get(name) for each in others}) > 1]


# The controller among launched ranks shows progress and writes pages.
_SHOWS_RESULTS = {"msgspec", "rich", "Pygments", "markdown-it-py", "mdurl", "Jinja2", "MarkupSafe", "jsonschema"}


def loaded_by_some(traces: Sequence[Conditions]) -> list[str]:
    """Installed packages and sources that are loaded on some ranks only: what is optional may be missing on a host."""
    found: list[set[str]] = []
    for trace in traces:
        ran = trace.identity or Identity()
        sources = {name for name in ran.sources if not name.startswith("verify")}
        found.append(sources | (ran.distributions.keys() - _SHOWS_RESULTS))
    return sorted(set[str]().union(*found) - found[0].intersection(*found))


def shown(traces: Sequence[Conditions]) -> list[str]:
    """Settings that differ between ranks, before the loop or in it, and are harmless by themselves."""
    seen = [trace.settings.samples for trace in traces if trace.settings is not None]
    harmless = [name for name in (*BY_NAME, THREAD) if kind_of(name) is Kind.SHOWN]
    return [name for name in harmless if len({frozenset(str(s.get(name)) for s in samples) for samples in seen}) > 1]


def most_alike(traces: Sequence[C]) -> C:
    """The first of the traces that agree with the greatest number of others: with three, the odd one is the culprit."""
    signatures = [repr(_signature(trace)) for trace in traces]
    counts = Counter(signatures)
    return traces[max(range(len(traces)), key=lambda number: (counts[signatures[number]], -number))]


def _signature(trace: Conditions) -> tuple[Any, ...]:
    identity = trace.identity or Identity()
    samples = () if trace.settings is None else trace.settings.samples
    kept = [{n: v for n, v in sample.items() if kind_of(n) is not Kind.SHOWN} for sample in samples]
    return identity.sources, identity.distributions, identity.libraries, sorted(_environment(trace).items()), kept
