"""Claim: the same request gives the same bits on every replica, and so on every host.

What replicas run on is compared first: other hardware, versions or flags explain other bits, so they are named before
any byte is blamed. Equal bytes do not excuse them: another request may show what this one did not.
"""

from __future__ import annotations

from collections.abc import Sequence

from verify.checks.agreement import Pair, agreement
from verify.checks.conditions import Difference, differences
from verify.trace.state import WEIGHTS
from verify.trace.trace import Trace
from verify.verdict import Compared, Divergence, Finding, Verdict

NAME = "replicas_agree"


def replicas_agree(replicas: Sequence[Sequence[Trace]]) -> Finding:
    """Compares each rank of every replica with the same rank of the first: environments, then every ``x_t``.

    Args:
        replicas: the traces of one loop, one a rank, in rank order; one sequence a replica.
    """
    base, *others = replicas
    pairs = [Pair(a, b) for traces in others for a, b in zip(base, traces, strict=True)]
    bits = agreement(
        NAME,
        base[0].loop,
        pairs,
        f"{len(replicas)} replicas on {_hosts(replicas)} hold the same bytes on every rank after every step",
        "one replica has no other to agree with; start twice as many processes",
    )
    found = [
        (pair.right, pair.other, difference) for pair in pairs for difference in differences(pair.right, pair.other)
    ]
    found = [*_weights(pairs), *found]
    if not found:
        return bits
    a, b, first = found[0]
    summary = f"{_place(a)} and {_place(b)} {first.predicate or f'run with a different {first.name}'}"
    if bits.verdict is Verdict.FAIL:
        summary += f", which can explain that {bits.summary}"
        of_bits = bits.details
    else:
        summary += "; their bytes agree in this request" if bits.verdict is Verdict.PASS else ""
        of_bits = ()
    details = [d.line(f"in {_place(one)}", f"in {_place(other)}") for one, other, d in found]
    assert a.replica is not None and b.replica is not None
    divergence = Divergence(None, (a.rank, b.rank), f"environment, {first.name}", replicas=(a.replica, b.replica))
    compared = Compared(bits.compared.steps, bits.compared.elements)
    return Finding(NAME, a.loop, Verdict.FAIL, summary, compared, divergence, (*details, *of_bits), bits.data)


def _weights(pairs: Sequence[Pair]) -> list[tuple[Trace, Trace, Difference]]:
    """Pairs of ranks that began with other weights: another checkpoint, or one that was read wrongly."""
    found = []
    for a, b in ((pair.right, pair.other) for pair in pairs):
        ours, theirs = (None if trace.state is None else trace.state.before.get(WEIGHTS) for trace in (a, b))
        if None not in (ours, theirs) and ours != theirs:
            difference = Difference("digest of the weights", ours, theirs, predicate="hold different weights")
            found.append((a, b, difference))
    return found


def _place(trace: Trace) -> str:
    host = trace.environment.get("host")
    return f"rank {trace.rank} of replica {trace.replica}" + (f" (on {host})" if host else "")


def _hosts(replicas: Sequence[Sequence[Trace]]) -> str:
    count = len({trace.environment.get("host") for traces in replicas for trace in traces})
    return f"{count} host{'s' * (count != 1)}"
