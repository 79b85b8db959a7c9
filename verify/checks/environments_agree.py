"""Claim: nothing that can change bits differs between the ranks' environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verify.trace.recorder import PRIVATE_ENVIRONMENT, Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

NAME = "environments_agree"


def environments_agree(traces: Sequence[Trace]) -> Finding:
    """Compares versions, hardware, flags and variables of every rank with rank 0's."""
    loop, first = traces[0].loop, traces[0]
    if len(traces) < 2:
        return Finding(NAME, loop, Verdict.UNKNOWN, "one rank has nobody to agree with")
    keys = sorted({key for trace in traces for key in trace.environment} - PRIVATE_ENVIRONMENT)
    compared = Compared(first.steps, len(keys) * (len(traces) - 1))
    found = [
        (trace.rank, key, first.environment.get(key), trace.environment.get(key))
        for trace in traces[1:]
        for key in differing(first.environment, trace.environment)
    ]
    if not found:
        if not compared.elements:
            return Finding(NAME, loop, Verdict.UNKNOWN, "no rank said what it runs on", compared)
        return Finding(NAME, loop, Verdict.PASS, f"{len(keys)} properties equal on every rank", compared)
    details = [
        line
        for rank, key, ours, theirs in found
        for line in difference_lines(key, ours, theirs, ("on rank 0", f"on rank {rank}"))
    ]
    rank, key, _, _ = found[0]
    return Finding(
        NAME,
        loop,
        Verdict.FAIL,
        f"rank 0 and rank {rank} differ in {key}",
        compared,
        Divergence(None, (0, rank), f"environment, {key}"),
        tuple(details),
    )


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The properties that are not the same in both, in alphabetical order; what is a rank's own does not count."""
    return [name for name in _unequal(ours, theirs) if name not in PRIVATE_ENVIRONMENT]


def _unequal(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


def difference_lines(name: str, ours: Any, theirs: Any, where: tuple[str, str]) -> list[str]:
    """One line for each entry that differs; of flags and variables, not the many that agree."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        entries = _unequal(ours, theirs)
        return [line for e in entries for line in difference_lines(f"{name}, {e}", ours.get(e), theirs.get(e), where)]
    return [f"{name}: {ours!r} {where[0]}, {theirs!r} {where[1]}"]
