"""Measuring one condition inside a rank: the computations, and how far results lie apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from verify.bagel.config import preset
from verify.bagel.denoiser import BagelDenoiser
from verify.bits import describe, first_difference, same_bits
from verify.combine import combine_cfg
from verify.envelope.conditions import CONDITIONS, Computation, Inapplicable, compiled_layers
from verify.fuzz.case import FLOATS, Case, Values
from verify.fuzz.layouts import dense
from verify.ranks.rank import Rank
from verify.request import RENORM_TYPES, DenoiseRequest
from verify.targets.builtin import BuiltinTarget
from verify.targets.protocol import ModelOptions

BITWISE, WITHIN, DIFFERS, UNKNOWN = "bitwise", "within", "differs", "unknown"
_ORDER = (BITWISE, WITHIN, DIFFERS)
# 1024 x 1024 pixels, and an odd shape whose rows are no multiple of a vector.
_SHAPES = ((4096, 64), (1001, 37))


@dataclass(frozen=True)
class Measured:
    """What one condition does to one computation.

    Attributes:
        subject: ``combine`` or ``forward``.
        condition: one of ``CONDITIONS``.
        dtype: of the velocities, or of the network.
        verdict: ``bitwise``; ``within`` (``max_ulp`` units in the last place, less than a binade); ``differs`` (more,
            or another dtype, or a NaN); ``unknown``. The worst over all settings and variants.
        worst: the setting and variant with that verdict; the other fields are about it.
        affected: the variants that are not bitwise, each with its settings.
        variants: how many were measured.
        max_ulp: the greatest distance in ULPs; None where such a distance means nothing.
        mismatched: how many elements differ.
        of: how many elements there are.
        max_abs: the greatest absolute difference.
        relative: ``max_abs`` over the greatest element of the baseline.
        note: why the verdict is ``unknown``, or what else to know.
        applies: False where the machine lacks what the condition needs.
        seconds: how long it took.
    """

    subject: str
    condition: str
    dtype: str
    verdict: str
    worst: str = ""
    affected: tuple[str, ...] = ()
    variants: int = 0
    max_ulp: int | None = None
    mismatched: int = 0
    of: int = 0
    max_abs: float | None = None
    relative: float | None = None
    note: str = ""
    applies: bool = True
    seconds: float = 0.0

    @property
    def badness(self) -> tuple[int, int]:
        """For sorting: the verdict, then the distance."""
        return _ORDER.index(self.verdict), self.max_ulp or 0


def measure(rank: Rank, condition: str, subject: str, dtype: str, preset_name: str) -> Measured | None:
    """Measures on rank 0 every setting of a condition on every variant of a subject. It never raises."""
    if rank.rank:
        return None
    blank = Measured(subject, condition, dtype, UNKNOWN)
    worst: Measured | None = None
    affected: dict[str, list[str]] = {}
    variants = 0
    try:
        with torch.no_grad():
            for variant, computation in _computations(rank, subject, dtype, preset_name, condition):
                for setting, result, baseline in CONDITIONS[condition](computation):
                    variants += 1
                    found = compare(blank, result, baseline)
                    if found.verdict != BITWISE:
                        affected.setdefault(variant, []).append(setting)
                    if worst is None or found.badness > worst.badness:
                        worst = replace(found, worst=f"{setting}, {variant}")
    except Inapplicable as lacking:
        return replace(blank, note=str(lacking), applies=False)
    except Exception as error:  # One condition that cannot be brought about must not end the others.
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
        if worst is None:
            return replace(blank, note=reason)
        worst = replace(worst, note=f"stopped early: {reason}")
    if worst is None:
        return replace(blank, note="no setting of it could be measured")
    names = tuple(f"{variant}: {', '.join(settings)}" for variant, settings in affected.items())
    return replace(worst, affected=names, variants=variants)


def compare(blank: Measured, result: Tensor, baseline: Tensor) -> Measured:
    """How far two results lie apart."""
    if (result.shape, result.dtype) != (baseline.shape, baseline.dtype):
        note = f"{describe(result)} instead of {describe(baseline)}"
        gap = _gap(result, baseline) if result.shape == baseline.shape else (None, None)
        return replace(blank, verdict=DIFFERS, note=note, of=baseline.numel(), max_abs=gap[0], relative=gap[1])
    if same_bits(result, baseline):
        return replace(blank, verdict=BITWISE, of=baseline.numel(), max_ulp=0)
    difference = first_difference(result, baseline)
    assert difference is not None
    max_abs, relative = _gap(result, baseline)
    binade = 1 << FLOATS[str(baseline.dtype).removeprefix("torch.")].mantissa
    within = difference.max_ulp is not None and difference.max_ulp < binade
    return replace(
        blank,
        verdict=WITHIN if within else DIFFERS,
        max_ulp=difference.max_ulp,
        mismatched=difference.mismatched,
        of=difference.of,
        max_abs=max_abs,
        relative=relative,
    )


def _gap(result: Tensor, baseline: Tensor) -> tuple[float | None, float | None]:
    a, b = result.double().cpu(), baseline.double().cpu()
    gap = (a - b).abs()
    gap = gap[gap.isfinite()]
    most = b.abs()[b.isfinite()].max().item() if b.numel() else 0.0
    if not len(gap):
        return None, None
    return gap.max().item(), gap.max().item() / most if most else None


def _computations(
    rank: Rank, subject: str, dtype: str, preset_name: str, condition: str
) -> Iterator[tuple[str, Computation]]:
    if subject == "forward":
        yield "gen branch", _forward(rank, dtype, preset_name, rank.device)
        return
    # Compiling takes seconds a variant; one shape shows it.
    for shape in _SHAPES[: 1 if condition.startswith("compile") else None]:
        for renorm_type in RENORM_TYPES:
            yield f"{renorm_type} {shape[0]} x {shape[1]}", _combine(dtype, renorm_type, shape, rank.device)


def _combine(dtype: str, renorm_type: str, shape: tuple[int, int], device: torch.device) -> Computation:
    form = FLOATS[dtype]
    spread = ((form.one - (1 << form.mantissa), form.sign | ((2 << form.mantissa) - 1)),)
    tiny = ((0, form.sign | ((1 << form.mantissa) - 1)), (form.one, form.sign))

    def tensors(patterns: tuple[tuple[int, int], ...]) -> list[Tensor]:
        branches = tuple(Values(patterns=patterns, seed=branch) for branch in range(3))
        return dense(Case(dtype, *shape, branches), device)

    def combine(gen: Tensor, text: Tensor, img: Tensor) -> Tensor:
        return combine_cfg(gen, text, img, 4.0, 1.5, renorm_type, 0.0)

    return Computation(
        "combine",
        combine,
        tensors(spread),
        device,
        partial(_combine, dtype, renorm_type, shape),
        tensors(tiny),
    )


def _forward(rank: Rank, dtype: str, preset_name: str, device: torch.device) -> Computation:
    key = ("envelope", dtype, preset_name, device)
    if key not in rank.memo:
        for old in [k for k in rank.memo if isinstance(k, tuple) and k[0] == "envelope" and k[3] == device]:
            del rank.memo[old]  # Two large models need not fit.
        side = preset(preset_name).side
        request = DenoiseRequest(height=side, width=side)
        rank.memo[key] = BuiltinTarget().prepare(request, ModelOptions(preset_name, dtype), 0, device)
    prepared = rank.memo[key]
    denoiser = prepared.denoiser
    assert isinstance(denoiser, BagelDenoiser)
    tiny = prepared.x_0.clone()
    tiny[::2] *= 2.0**-140
    return Computation(
        "forward",
        lambda x_t: denoiser.velocity(x_t, 0, "gen"),
        [prepared.x_0],
        device,
        # A large network takes minutes on a CPU; where devices are compared, the tiny one stands in on both.
        lambda other: _forward(rank, dtype, "tiny", other),
        [tiny],
        lambda mode: compiled_layers(list(denoiser.model.layers), mode),
    )
