"""``python -m tests.meta.rounding_power``: which faults are seen where the reference cannot be equal in bits.

``faults``: those that nothing but the comparison with the reference shows, in each engine of ``inexact_targets``; each
is put into the engine's own loop, on threads. ``sizes``: how small a fault may be and still be seen. ``catalogue
TARGET [FIRST COUNT]``: the whole catalogue on real ranks; what reads no reference is judged without draws.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from in_threads import on_every_rank
from inexact_targets import TARGETS, Inexact
from rounding_bench import ENGINES, Steps

from verify.bits import bits_of, same_bits
from verify.faults import FAULTS, Fault
from verify.faults.runner import job_of
from verify.loops import guidance
from verify.request import DenoiseRequest
from verify.rounding.decide import Word
from verify.runner.job import Job
from verify.runner.run import run_job
from verify.verdict import Verdict

STEPS, DRAWS = (0, 10, 25, 45), 16
BY_REFERENCE = ("matches_reference",)


def of_the_reference(fault: Fault) -> bool:
    """Whether nothing but the comparison with the reference shows it, on two ranks."""
    return fault.caught_by in BY_REFERENCE and fault.least_ranks == 2


class Faulty:
    """A fault in an engine's loop: two ranks as threads, each with a network of its own, over one step."""

    def __init__(self, steps: Steps, engine: Inexact, fault: Fault) -> None:
        self._steps, self._fault, self.begins = steps, fault, False
        module, _, name = fault.loop_reference.partition(":")
        self._loop = getattr(sys.modules[module], name).in_loops_of(engine)
        self._denoisers = [copy.deepcopy(steps.denoiser) for _ in range(2)]

    def __call__(self, x_t: Tensor, step: int) -> Tensor:
        request = self._steps.request.resolved(self._steps.request.schedule.of_step(step))
        combine = vars(guidance)["combine_cfg"]

        def on_rank(group: Any) -> Tensor:
            start = x_t if group.rank == 0 else x_t + 1.0
            denoiser = _Noting(self._denoisers[group.rank], step)
            taken: Tensor = self._loop(denoiser, request, start.clone(), group, lambda at, x_t, state=None: None)
            # Noise is judged in bits, before any step.
            self.begins = self.begins or not same_bits(denoiser.first, x_t)
            return taken

        try:
            return on_every_rank(2, on_rank)[0]
        finally:
            setattr(guidance, "combine_cfg", combine)  # noqa: B010  (two threads patch it and put it back in any order)


class _Noting:
    """A denoiser of one step, with what it was first given; the rest is the inner one's own."""

    def __init__(self, inner: Any, first: int) -> None:
        self.__dict__.update(_inner=inner, _first=first, first=None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def velocity(self, x_t: Tensor, step: int, branch: str) -> Tensor:
        if self.first is None:
            self.__dict__["first"] = x_t.clone()
        velocity: Tensor = self._inner.velocity(x_t, step + self._first, branch)
        return velocity


def faults() -> None:
    """A row for each engine: which of the faults that only the reference shows are not explained by rounding."""
    steps = Steps(DenoiseRequest(height=128, width=128), "bfloat16", STEPS, DRAWS)
    chosen = [fault for fault in FAULTS.values() if of_the_reference(fault) and not fault.image]
    for made in TARGETS:
        engine = made()
        row = {}
        for fault in chosen:
            faulty = Faulty(steps, engine, fault)
            decision = steps.judged(faulty)
            row[fault.name] = faulty.begins or decision.word is Word.NOT_EXPLAINED
        clean = steps.judged(steps.under(engine.arithmetic)).word
        print(f"{engine.name}: clean is {clean}; {sum(row.values())} of {len(row)} seen; missed: "
              f"{', '.join(name for name, seen in row.items() if not seen) or 'none'}", flush=True)  # fmt: skip


def sizes() -> None:
    """The least size of each kind of fault that is seen, in factors of four, in bfloat16 and float32."""
    for dtype in ("bfloat16", "float32"):
        steps = Steps(DenoiseRequest(height=128, width=128), dtype, STEPS, DRAWS)
        for name in ("itself", "batched rows, padded caches", "two shards"):
            for kind, fault in _SIZED.items():
                for power in range(-20, 25, 2):
                    engine = _with(steps, name, fault(steps, 2.0**power))
                    if engine is not None and steps.judged(engine).word is Word.NOT_EXPLAINED:
                        print(f"{dtype}, {name}: {kind}: seen from {2.0**power:.3g} on", flush=True)
                        break
                else:
                    print(f"{dtype}, {name}: {kind}: never seen", flush=True)


Sized = Callable[[Callable[[Tensor, int], Tensor], Tensor, int], Tensor]


def _with(steps: Steps, name: str, fault: Sized) -> Callable[[Tensor, int], Tensor]:
    taken = steps.under(ENGINES[name])
    return lambda x_t, step: fault(taken, x_t, step)


def _element(steps: Steps, size: float) -> Sized:
    """One element of x_t off by so many ULP."""

    def fault(taken: Callable[[Tensor, int], Tensor], x_t: Tensor, step: int) -> Tensor:
        after = taken(x_t, step).clone()
        bits_of(after)[3, 5] += max(1, round(size)) if size >= 1 else 0
        return after

    return fault


def _scale(steps: Steps, size: float) -> Sized:
    """The guidance scale off by a share."""

    def fault(taken: Callable[[Tensor, int], Tensor], x_t: Tensor, step: int) -> Tensor:
        request, own = steps.request, steps.request.cfg_text_scale
        steps.request = replace(request, cfg_text_scale=own * (1 + size)).resolved(request.schedule)
        try:
            return taken(x_t, step)
        finally:
            steps.request = request

    return fault


def _row(steps: Steps, size: float) -> Sized:
    """One token's row in gen's cache of values off by a share, in every layer."""

    def fault(taken: Callable[[Tensor, int], Tensor], x_t: Tensor, step: int) -> Tensor:
        contexts: Any = steps.denoiser.contexts
        gen = contexts["gen"]
        values = gen.values.clone()
        values[:, :, 5] *= 1 + size
        contexts["gen"] = replace(gen, values=values)
        try:
            return taken(x_t, step)
        finally:
            contexts["gen"] = gen

    return fault


def _velocity(steps: Steps, size: float) -> Sized:
    """The step off by a share, as a wrong step size makes it."""

    def fault(taken: Callable[[Tensor, int], Tensor], x_t: Tensor, step: int) -> Tensor:
        after = taken(x_t, step)
        return x_t + (after - x_t) * (1 + size)

    return fault


_SIZED: dict[str, Callable[[Steps, float], Sized]] = {
    "ULP (float32) of one element of x_t": _element,
    "guidance scale, relative": _scale,
    "step size, relative": _velocity,
    "one row of gen's cache, relative": _row,
}


def catalogue(target: str, first: int = 0, count: int = 1000) -> None:
    """Faults for two ranks, on real ranks; those that only the reference shows with draws, the others without."""
    where = f"tests/helpers/inexact_targets.py:{target}"
    seen = {}
    fitting = [fault for fault in FAULTS.values() if fault.least_ranks <= 2]
    for fault in fitting[first : first + count]:
        by_reference = of_the_reference(fault)
        timesteps = max(5, (fault.step or 0) + 2) if by_reference else 50
        job = Job(DenoiseRequest(height=128, width=128, num_timesteps=timesteps), target=where, draws=8,
                  reference="rounding" if by_reference else "inductive", timeout=300.0)  # fmt: skip
        report = run_job(job_of(fault, job, 2))
        failed = {f.name for f in report.findings if f.verdict is Verdict.FAIL} - {"matches_reference"}
        expected = fault.expected_if(report.failure is None).caught_by
        expected = "rounding_explains" if expected in BY_REFERENCE else expected
        seen[fault.name] = report.failure is not None if expected == "unknown" else expected in failed
        print(f"{'seen' if seen[fault.name] else 'MISSED':8}{fault.name}: {', '.join(sorted(failed))}", flush=True)
    print(f"{target}: {sum(seen.values())} of {len(seen)} seen")


def main() -> None:
    """Runs what is named."""
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["faults"]:
            faults()
        case ["sizes"]:
            sizes()
        case ["catalogue", target, *part]:
            catalogue(target, *map(int, part))
        case _:
            print(__doc__)


if __name__ == "__main__":
    main()
