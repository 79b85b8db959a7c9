"""The benchmark for people: loop versions against each other, what verifying costs, one forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from verify.report.documents.bench import Bench, Forwards, Overhead, Point, Ratio, VerifiedPoint, Waits
from verify.report.sections.blocks import Bars, Block, Bullets, Presentation, Section, Table
from verify.report.sections.plain import present

_PARTS = {"forward": "forward", "all_gather": "gather", "broadcast": "broadcast", "combine": "combine", "idle": "idle",
          "rest": "rest"}  # fmt: skip
# So many points are told in the head of the page; more are counted there.
_MOST_ANSWERS = 3


def present_bench(d: Bench) -> Presentation:
    """What may be said of the loops, then one section a point: seconds of each loop, and where they go on each rank."""
    told = [f"{_size(p)}: {said}" for p in d.points for said in p.sentences]
    sections = [Section("Result", [Bullets(told)])] if len(told) > 1 else []
    for p in d.points:
        blocks: list[Block] = [_bars(p), _seconds(p), _parts(p)] if p.loops else []
        basis = _basis(p)
        blocks += [Bullets(basis)] if basis else []
        sections += [Section(f"{_size(p)}, {p.world_size} ranks", blocks)] if blocks else []
    # The first sentence of a point compares its loops.
    answers = [f"{_size(p)}: {p.sentences[0]}" for p in d.points if p.sentences]
    short = told[0] if len(told) == 1 else "; ".join(answers)
    said = _incomplete(d.incomplete, short if 0 < len(answers) <= _MOST_ANSWERS else f"{len(d.points)} points measured")
    subject = _notes(d.points)
    return present(d, "Loop versions against each other", said, sections, subject=subject, timings=d.timings)


def present_overhead(d: Overhead) -> Presentation:
    """One row for each point and loop: bare, recorded and verified; then how often the host waits inside the loop."""
    rows, waits, added = [], [], []
    for p in d.overhead:
        for name, loop in p.loops.items():
            seconds = [f"{s.p50:.3f}" for s in (loop.bare_s, loop.recorded_s, loop.verified_s)]
            setting = ["-" if value is None else str(value) for value in (p.tokens, p.steps, p.world_size)]
            added_ms = "-" if loop.added_s is None else f"{1e3 * loop.added_s.p50:.1f}"
            ratio = loop.verified_over_bare
            rows.append([f"{p.preset} {p.height}", *setting, name, *seconds, _percent(loop.recorded_over_bare),
                         _percent(ratio), added_ms, str(ratio.pairs)])  # fmt: skip
            added.append((_setting(p, name), *ratio.percent))
            waits += _waits(f"{p.preset} {p.height}, {name}", loop.syncs)
    headings = ["size", "tokens", "steps", "ranks", "loop", "bare s", "recorded s", "verified s",
                "recording adds", "verifying adds", "that is, ms", "pairs"]  # fmt: skip
    blocks: list[Block] = [Bars("what verifying adds to a loop, with its interval", "%", added)] if added else []
    blocks += [Table(headings, rows, minor=headings[1:4] + headings[5:9] + headings[10:])]
    blocks += [Bullets(waits)] if waits else []
    most = max(added, key=lambda row: row[2], default=None)
    said = "nothing was measured" if most is None else f"verifying adds at most {most[2]:.2f} %, to {most[0]}"
    return present(d, "What verifying costs", _incomplete(d.incomplete, said), [Section("Cost", blocks)],
                   subject=_notes(d.overhead), timings=d.timings)  # fmt: skip


def present_forwards(d: Forwards) -> Presentation:
    """One row for each network; the seconds of the target's over the built-in one's with their interval."""
    rows, said = [], []
    for n in d.forwards:
        ratio, apart = n.over_builtin, n.velocities_apart
        over = "-" if ratio is None else f"{ratio.ratio:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
        times = [f"{value:.2f}" for value in (n.p50_ms, n.min_ms, n.p100_ms)]
        rows.append(
            [n.network, f"{n.preset} {n.pixels}", n.dtype, *times, over, "-" if apart is None else f"{apart:.2e}"]
        )
        said += [] if ratio is None else [f"{n.network} takes {ratio.ratio:.2f} times as long as the built-in network"]
    headings = ["network", "size", "dtype", "P50 ms", "min ms", "P100 ms", "over builtin", "velocities apart"]
    section = Section("Forward passes", [Table(headings, rows, minor=("dtype", "min ms", "P100 ms"))])
    return present(d, "One forward pass, in turn with the built-in network's", "; ".join(said), [section])


def _seconds(p: Point) -> Table:
    asked = p.alternations if p.alternations_asked is None else p.alternations_asked
    made = f"{p.alternations} alternation{'s' * (p.alternations != 1)}"
    made += f" of {asked} asked for" if asked > p.alternations else ""
    low, high = p.cfg_interval
    caption = (
        f"{_size(p)}, {p.world_size} ranks over {p.backend} on {p.device}, {p.steps} steps "
        f"({p.guided_steps} guided), interval ({low}, {high}], {made}"
    )
    rows = []
    for name, loop in p.loops.items():
        seconds = [f"{value:.3f}" for value in (loop.seconds.p50, loop.seconds.min, loop.seconds.p100)]
        limit = ["-" if loop.limit_s is None else f"{loop.limit_s:.3f}",
                 "-" if loop.over_limit is None else f"{loop.over_limit:.2f}"]  # fmt: skip
        rows.append([name, *seconds, *limit])
    return Table(["loop", "P50 s", "min s", "P100 s", "limit s", "times the limit"], rows, caption)


def _bars(p: Point) -> Bars:
    rows = [(name, loop.seconds.min, loop.seconds.p50, loop.seconds.p100) for name, loop in p.loops.items()]
    return Bars(f"{_size(p)}: seconds of a loop, median with least and greatest", "s", rows)


def _parts(p: Point) -> Table:
    there = [part for part in _PARTS if all(part in loop.parts for loop in p.loops.values())]
    rows = [
        [name, str(rank), *(f"{loop.parts[part][rank]:.4f}" for part in there)]
        for name, loop in p.loops.items()
        for rank in range(len(loop.parts.get("forward", ())))
    ]
    return Table(
        ["loop", "rank", *(_PARTS[part] for part in there)], rows, f"{_size(p)}: seconds of each part, medians"
    )


def _basis(p: Point) -> list[str]:
    """What the result of a point rests on."""
    said = []
    if p.forward:
        said.append(
            f"a forward pass takes {1e3 * p.forward.forward_s:.2f} ms, {p.forward.ratio:.2f} times as long as its "
            f"operations take at the {_rate(p.forward.matmul_flops_per_s)} of a large product"
        )
    shares = {name: loop.broadcast_share_of_step for name, loop in p.loops.items()}
    told = ", ".join(f"{name} {100 * share:.3f} %" for name, share in shares.items() if share)
    said += [f"share of one step that a broadcast takes: {told}"] if told else []
    said += _sharing(p)
    in_turn = {name: loop.forwards_in_turn for name, loop in p.loops.items() if loop.forwards_in_turn is not None}
    if in_turn:
        counted = ", ".join(f"{count} for {name}" for name, count in in_turn.items())
        shared = " (ranks that share a GPU take turns, and all their passes count)" if _shared(p) else ""
        said.append(
            f"the limit counts forward passes one after another{shared}: {counted}; the gathers count as measured"
        )
    beaten = [name for name, loop in p.loops.items() if loop.over_limit is not None and loop.over_limit < 1]
    if beaten:
        said.append(
            f"{' and '.join(beaten)} took less than the limit: a large product is not the fastest operation here"
        )
    return said


def _rate(operations: float) -> str:
    """Operations a second."""
    return f"{operations / 1e12:.1f} TFLOP/s" if operations >= 1e12 else f"{operations / 1e9:.1f} GFLOP/s"


def _sharing(p: Point) -> list[str]:
    """What sharing a GPU makes of two loops by itself, from the forward passes that must take turns on it."""
    turns = {name: loop.forwards_in_turn for name, loop in p.loops.items()}
    broadcast, local = turns.get("broadcast"), turns.get("local")
    if not _shared(p) or not broadcast or not local or broadcast == local:
        return []
    return [
        f"sharing a GPU alone makes local {100 * (local / broadcast - 1):.1f} % longer than broadcast, where forward "
        f"passes are all that counts: {local} in turn against {broadcast}, since outside the interval every rank "
        "evaluates gen; with a GPU for each rank these run side by side"
    ]


def _shared(p: Point) -> bool:
    return p.device == "cuda" and len(set(p.devices)) < p.world_size


def _waits(whose: str, waits: Waits | None) -> list[str]:
    """On each rank, calls that make the host wait for the GPU between the loop's first operation and its last."""
    if waits is None:
        return []
    bare, recorded = (", ".join(str(sum(rank.values())) for rank in ranks) for ranks in (waits.bare, waits.recorded))
    return [f"{whose}: in {waits.steps} steps the host waits for the GPU {bare} times bare and {recorded} times "
            "recorded, rank by rank"]  # fmt: skip


def _percent(ratio: Ratio | None) -> str:
    """``0.89 % (0.65 to 1.23)``."""
    if ratio is None:
        return "-"
    low, middle, high = ratio.percent
    return f"{middle:.2f} % ({low:.2f} to {high:.2f})"


def _setting(p: VerifiedPoint, loop: str) -> str:
    steps = "" if p.steps is None else f", {p.steps} steps"
    ranks = "" if p.world_size is None else f", {p.world_size} ranks"
    return f"{p.preset} {p.height}{steps}{ranks}, {loop}"


def _size(p: Point) -> str:
    return f"{p.preset} {p.height}x{p.width}"


def _incomplete(incomplete: str, said: str) -> str:
    return f"{said}; incomplete: {incomplete}" if incomplete else said


def _notes(points: Iterable[Point] | Iterable[VerifiedPoint]) -> Sequence[str]:
    return list(dict.fromkeys(note for point in points for note in point.notes))
