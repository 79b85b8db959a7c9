"""What ``--reference rounding`` takes beside it."""

from __future__ import annotations

from verify.options.option import Option

ROUNDING = (
    Option("--false-alarm", "of --reference rounding: the probability of one", "false_alarm", default=1e-6, type=float,
           metavar="P"),
    Option("--draws", "of --reference rounding: how often each step is repeated", "draws", default=16, type=int,
           metavar="K"),
)  # fmt: skip
