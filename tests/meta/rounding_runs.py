"""``python -m tests.meta.rounding_runs``: a thousand varied clean runs, judged by rounding, across kernels.

Thirty requests are drawn; the draws of each serve every engine of ``rounding_bench``. ``--first N --count M`` runs a
part.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from rounding_bench import ENGINES, WIDE, Steps

from verify.request import DenoiseRequest
from verify.rounding.decide import Word

CONFIGURATIONS = 30


def request_of(number: int) -> tuple[DenoiseRequest, str, list[int]]:
    """The request, dtype and steps of one configuration."""
    drawn = random.Random(number)
    image = drawn.random() < 0.3
    request = DenoiseRequest(
        height=16 * drawn.randint(2, 8),
        width=16 * drawn.randint(2, 8),
        num_timesteps=drawn.randint(3, 12),
        timestep_shift=drawn.choice([1.0, 3.0, 5.0]),
        cfg_interval=drawn.choice([(0.0, 1.0), (0.4, 1.0)]),
        cfg_text_scale=drawn.choice([1.5, 4.0, 8.0]),
        cfg_img_scale=1.5 if image else 1.0,
        cfg_renorm_type=drawn.choice(("global", "channel", "text_channel")),
        cfg_renorm_min=drawn.choice([0.0, 0.5, 1.0]),
        seed=drawn.randrange(2**31),
    )
    dtype = drawn.choice(["bfloat16", "bfloat16", "float32", "float16"])
    return request, dtype, sorted({0, drawn.randrange(min(4, request.num_timesteps - 1))})


def clean_runs(first: int, count: int) -> list[tuple[int, str, str, str]]:
    """Configuration, dtype, engine and what was said, for each run."""
    found = []
    for number in range(first, first + count):
        request, dtype, steps = request_of(number)
        bench = Steps(request, dtype, steps)
        for name, arithmetic in (ENGINES | (WIDE if dtype == "bfloat16" else {})).items():
            decision = bench.judged(bench.under(arithmetic))
            found.append((number, dtype, name, str(decision.word)))
            print(*found[-1], sep="\t", flush=True)
    return found


def main() -> None:
    """Prints each run, and how often each word was said of each engine."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=CONFIGURATIONS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    runs = clean_runs(asked.first, asked.count)
    said = Counter((name, word) for _, _, name, word in runs)
    for (name, word), times in sorted(said.items()):
        print(f"{name:42} {word:22} {times}")
    print(f"{len(runs)} runs, {sum(r[3] == Word.NOT_EXPLAINED for r in runs)} false alarms, "
          f"{sum(r[3] == Word.UNKNOWN for r in runs)} unknown, in {time.monotonic() - began:.0f} s")  # fmt: skip


if __name__ == "__main__":
    main()
