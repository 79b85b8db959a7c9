"""The benchmark's documents for people: loop versions against each other, and what verifying costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verify.report.headed import headed, listed
from verify.report.tables import Bars, Section, Table

Document = Mapping[str, Any]

_PARTS = {
    "forward": "forward",
    "all_gather": "gather",
    "broadcast": "broadcast",
    "combine": "combine",
    "idle": "idle",
    "rest": "rest",
}


def bench_section(d: Document) -> Section:
    """Two tables a point, seconds of each loop and where they go on each rank; then what may be said."""
    points = listed(d, "points")
    tables = []
    for p in points:
        tables += [_seconds(p), _parts(p)] if p["loops"] else []
    # What may be said of the loops first, then what it rests on.
    sentences = [f"{_size(p)}: {said}" for tell in (_verdicts, _said) for p in points for said in tell(p)]
    notes = [*_incomplete(d), *_notes(points)]
    bars = [_bars(p) for p in points if p["loops"]]
    return headed(d, "Loop versions against each other", tables, sentences, notes, bars)


def overhead_section(d: Document) -> Section:
    """A row for each point and loop: bare, recorded and verified; then how often the host waits inside the loop."""
    rows, sentences, added = [], [], []
    points = listed(d, "overhead")
    for p in points:
        for name, loop in p["loops"].items():
            seconds = [f"{loop[key]['p50']:.3f}" for key in ("bare_s", "recorded_s", "verified_s")]
            ratios = [_percent(loop.get(key)) for key in ("recorded_over_bare", "verified_over_bare")]
            setting = [str(p.get(key, "-")) for key in ("tokens", "steps", "world_size")]
            pairs = str(loop["verified_over_bare"]["pairs"])
            added_ms = f"{1e3 * loop['added_s']['p50']:.1f}" if "added_s" in loop else "-"
            rows.append([f"{p['preset']} {p['height']}", *setting, name, *seconds, *ratios, added_ms, pairs])
            ratio = loop["verified_over_bare"]
            low, middle, high = (100 * (ratio[key] - 1) for key in ("low", "ratio", "high"))
            ranks = f", {p['world_size']} ranks" if "world_size" in p else ""
            steps = f", {p['steps']} steps" if "steps" in p else ""
            added.append((f"{p['preset']} {p['height']}{steps}{ranks}, {name}", low, middle, high))
            sentences += _waits(f"{p['preset']} {p['height']}, {name}", loop.get("syncs"))
    headings = ["size", "tokens", "steps", "ranks", "loop", "bare s", "recorded s", "verified s",
                "recording adds", "verifying adds", "that is, ms", "pairs"]  # fmt: skip
    notes = [*_incomplete(d), *_notes(points)]
    bars = [Bars("what verifying adds to a loop, with its interval", "%", added)] if added else []
    return headed(d, "What verifying costs", [Table(headings, rows)], sentences, notes, bars)


def forwards_section(d: Document) -> Section:
    """A row for each network; the seconds of the target's over the built-in one's with their interval."""
    rows = []
    for row in listed(d, "forwards"):
        ratio = row.get("over_builtin")
        said = ["-"] * 2 if ratio is None else [f"{ratio['ratio']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})",
                                                f"{row['velocities_apart']:.2e}"]  # fmt: skip
        times = [f"{row[key]:.2f}" for key in ("p50_ms", "min_ms", "p100_ms")]
        rows.append([row["network"], f"{row['preset']} {row['pixels']}", row["dtype"], *times, *said])
    headings = ["network", "size", "dtype", "P50 ms", "min ms", "P100 ms", "over builtin", "velocities apart"]
    return headed(d, "One forward pass in turn with the built-in network's", [Table(headings, rows)], [], d["notes"])


def _seconds(p: Document) -> Table:
    asked = p.get("alternations_asked", p["alternations"])
    made = f"{p['alternations']} alternation{'s' * (p['alternations'] != 1)}"
    made += f" of {asked} asked for" if asked > p["alternations"] else ""
    caption = (
        f"{_size(p)}, {p['world_size']} ranks over {p['backend']} on {p['device']}, {p['steps']} steps "
        f"({p['guided_steps']} guided), interval {p['cfg_interval']}, {made}"
    )
    rows = []
    for name, loop in p["loops"].items():
        seconds = [f"{loop['seconds'][key]:.3f}" for key in ("p50", "min", "p100")]
        limit = [f"{loop['limit_s']:.3f}", f"{loop['over_limit']:.2f}"] if "limit_s" in loop else ["-", "-"]
        rows.append([name, *seconds, *limit])
    return Table(["loop", "P50 s", "min s", "P100 s", "limit s", "times the limit"], rows, caption)


def _bars(p: Document) -> Bars:
    spreads = {name: loop["seconds"] for name, loop in p["loops"].items()}
    rows = [(name, s["min"], s["p50"], s["p100"]) for name, s in spreads.items()]
    return Bars(f"{_size(p)}: seconds of a loop, median with least and greatest", "s", rows)


def _parts(p: Document) -> Table:
    rows = []
    there = [part for part in _PARTS if all(part in loop["parts"] for loop in p["loops"].values())]
    for name, loop in p["loops"].items():
        for rank in range(len(loop["parts"]["forward"])):
            rows.append([name, str(rank), *(f"{loop['parts'][part][rank]:.4f}" for part in there)])
    caption = f"{_size(p)}: seconds of each part, medians"
    return Table(["loop", "rank", *(_PARTS[part] for part in there)], rows, caption)


def _verdicts(p: Document) -> list[str]:
    return list(p["sentences"])


def _said(p: Document) -> list[str]:
    said = []
    f = p.get("forward")
    if f:
        said.append(
            f"a forward pass takes {1e3 * f['forward_s']:.2f} ms, {f['ratio']:.2f} times its operations at the "
            f"{_rate(f['matmul_flops_per_s'])} of a large product"
        )
    shares = {name: loop["broadcast_share_of_step"] for name, loop in p["loops"].items()}
    told = ", ".join(f"{name} {100 * share:.3f} %" for name, share in shares.items() if share)
    if told:
        said.append(f"share of one step that a broadcast takes: {told}")
    said += _sharing(p)
    limits = {name: loop["forwards_in_turn"] for name, loop in p["loops"].items() if "forwards_in_turn" in loop}
    if limits:
        counted = ", ".join(f"{count} for {name}" for name, count in limits.items())
        shared = " (ranks that share a GPU take turns, and all their passes count)" if _shared(p) else ""
        said.append(
            f"the limit counts forward passes one after another{shared}: {counted}; the gathers as they were measured"
        )
    beaten = [name for name, loop in p["loops"].items() if loop.get("over_limit", 1) < 1]
    if beaten:
        said.append(f"{' and '.join(beaten)} took less than the limit: a large product is not the fastest here")
    return said


def _rate(operations: float) -> str:
    """Operations a second."""
    return f"{operations / 1e12:.1f} TFLOP/s" if operations >= 1e12 else f"{operations / 1e9:.1f} GFLOP/s"


def _sharing(p: Document) -> list[str]:
    """What sharing a GPU makes of two loops by itself, from the forward passes that must take turns on it."""
    turns = {name: loop.get("forwards_in_turn") for name, loop in p["loops"].items()}
    broadcast, local = turns.get("broadcast"), turns.get("local")
    if not _shared(p) or not broadcast or not local or broadcast == local:
        return []
    return [
        f"sharing alone makes local {100 * (local / broadcast - 1):.1f} % longer than broadcast where forward passes "
        f"are all that counts: {local} in turn against {broadcast}, as outside the interval every rank evaluates gen; "
        "with a GPU for each rank these run side by side"
    ]


def _shared(p: Document) -> bool:
    return p["device"] == "cuda" and len(set(p.get("devices", ()))) < p["world_size"]


def _waits(whose: str, syncs: Document | None) -> list[str]:
    """On each rank, calls that make the host wait for the GPU between the loop's first operation and its last."""
    if not syncs:
        return []
    bare, recorded = ([sum(rank.values()) for rank in syncs[key]] for key in ("bare", "recorded"))
    return [
        f"{whose}: in {syncs['steps']} steps the host waits for the GPU {_listed(bare)} times bare and "
        f"{_listed(recorded)} times recorded, rank by rank"
    ]


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))


def _percent(ratio: Mapping[str, float] | None) -> str:
    """``0.89 % (0.65 to 1.23)``."""
    if ratio is None:
        return "-"
    middle, low, high = (100 * (ratio[key] - 1) for key in ("ratio", "low", "high"))
    return f"{middle:.2f} % ({low:.2f} to {high:.2f})"


def _size(p: Document) -> str:
    return f"{p['preset']} {p['height']}x{p['width']}"


def _incomplete(d: Document) -> list[str]:
    return [f"incomplete: {d['incomplete']}"] if d.get("incomplete") else []


def _notes(points: Sequence[Document]) -> list[str]:
    return list(dict.fromkeys(note for point in points for note in point["notes"]))
