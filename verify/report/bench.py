"""Tables of the benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_bench(points: Sequence[Mapping[str, Any]], console: Console) -> None:
    """One table a point: each loop's seconds and where they go on its slowest rank; then what may be said."""
    for point in points:
        console.print(
            f"{point['preset']} {point['height']}x{point['width']}, {point['world_size']} ranks "
            f"over {point['backend']} on "
            f"{point['device']}, {point['steps']} steps ({point['guided_steps']} guided), "
            f"{point['alternations']} alternations",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        for note in point["notes"]:
            console.print(Text(f"note: {note}"), soft_wrap=True)
        table = Table(show_edge=False, pad_edge=False)
        for heading in ("loop", "P50 s", "min", "P100", "forward", "gather", "broadcast", "idle", "rest", "x limit"):
            table.add_column(heading, justify="left" if heading == "loop" else "right")
        for name, loop in point["loops"].items():
            parts = loop["parts"]
            cells = [max(parts[p]) for p in ("forward", "all_gather", "broadcast", "idle", "rest")]
            seconds = [loop["seconds"][key] for key in ("p50", "min", "p100")]
            table.add_row(Text(name), *(f"{value:.3f}" for value in (*seconds, *cells)), f"{loop['over_limit']:.2f}")
        console.print(table)
        forward = point["forward"]
        console.print(
            f"forward pass {1e3 * forward['forward_s']:.2f} ms, {forward['ratio']:.2f} times its operations at "
            f"{forward['matmul_flops_per_s'] / 1e12:.1f} TFLOP/s",
            highlight=False,
        )
        for said in point["sentences"]:
            console.print(Text(said))


def print_overhead(points: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Bare against verified, for each size and loop."""
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("size", "loop", "bare P50 s", "recorded P50 s", "verified P50 s", "verified / bare", "95 %"):
        table.add_column(heading, justify="left" if heading in ("size", "loop") else "right")
    for point in points:
        for name, loop in point["loops"].items():
            ratio = loop["verified_over_bare"]
            seconds = (f"{loop[key]['p50']:.3f}" for key in ("bare_s", "recorded_s", "verified_s"))
            interval = f"{ratio['low']:.4f} to {ratio['high']:.4f}"
            table.add_row(
                f"{point['preset']} {point['height']}", Text(name), *seconds, f"{ratio['ratio']:.4f}", interval
            )
    console.print(table)
