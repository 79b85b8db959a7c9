"""Measuring one condition inside a rank: the computations, and how far results lie apart."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

import torch
from msgspec.structs import replace
from torch import Tensor

from verify.bagel.config import preset
from verify.bagel.denoiser import BagelDenoiser
from verify.bits import describe, first_difference, same_bits
from verify.combine import combine_cfg
from verify.envelope.conditions import CONDITIONS, Computation, Inapplicable, compiled_layers
from verify.fuzz.case import FLOATS, Case, Values
from verify.fuzz.layouts import dense
from verify.ranks.rank import Rank
from verify.report.documents.fuzz import Condition
from verify.request import RENORM_TYPES, DenoiseRequest
from verify.targets.builtin import BuiltinTarget
from verify.targets.protocol import ModelOptions

BITWISE: Final = "bitwise"
WITHIN: Final = "within"
DIFFERS: Final = "differs"
UNKNOWN: Final = "unknown"
_ORDER = (BITWISE, WITHIN, DIFFERS)
# 1024 x 1024 pixels, and an odd shape whose rows are no multiple of a vector.
_SHAPES = ((4096, 64), (1001, 37))


def blank(subject: str, condition: str, dtype: str, note: str = "") -> Condition:
    """A row about which nothing is known but why."""
    return Condition(
        subject=subject,
        condition=condition,
        dtype=dtype,
        verdict=UNKNOWN,
        worst="",
        affected=(),
        variants=0,
        max_ulp=None,
        mismatched=0,
        of=0,
        max_abs=None,
        relative=None,
        note=note,
        applies=True,
        seconds=0.0,
        explanation="",
    )


def _badness(row: Condition) -> tuple[int, int]:
    return _ORDER.index(row.verdict), row.max_ulp or 0


def measure(rank: Rank, condition: str, subject: str, dtype: str, preset_name: str) -> Condition | None:
    """Measures on rank 0 every setting of a condition on every variant of a subject. It never raises."""
    if rank.rank:
        return None
    nothing = blank(subject, condition, dtype)
    worst: Condition | None = None
    affected: dict[str, list[str]] = {}
    variants = 0
    try:
        with torch.no_grad():
            for variant, computation in _computations(rank, subject, dtype, preset_name, condition):
                for setting, result, baseline in CONDITIONS[condition](computation):
                    variants += 1
                    found = compare(nothing, result, baseline)
                    if found.verdict != BITWISE:
                        affected.setdefault(variant, []).append(setting)
                    if worst is None or _badness(found) > _badness(worst):
                        worst = replace(found, worst=f"{setting}, {variant}")
    except Inapplicable as lacking:
        return replace(nothing, note=str(lacking), applies=False)
    except Exception as error:  # One condition that cannot be brought about must not end the others.
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
        if worst is None:
            return replace(nothing, note=reason)
        worst = replace(worst, note=f"stopped early: {reason}")
    if worst is None:
        return replace(nothing, note="no setting of it could be measured")
    names = tuple(f"{variant}: {', '.join(settings)}" for variant, settings in affected.items())
    return replace(worst, affected=names, variants=variants)


def compare(nothing: Condition, result: Tensor, baseline: Tensor) -> Condition:
    """How far two results lie apart; ``nothing`` is the row before it is known."""
    if (result.shape, result.dtype) != (baseline.shape, baseline.dtype):
        note = f"{describe(result)} instead of {describe(baseline)}"
        gap = _gap(result, baseline) if result.shape == baseline.shape else (None, None)
        return replace(nothing, verdict=DIFFERS, note=note, of=baseline.numel(), max_abs=gap[0], relative=gap[1])
    if same_bits(result, baseline):
        return replace(nothing, verdict=BITWISE, of=baseline.numel(), max_ulp=0)
    difference = first_difference(result, baseline)
    assert difference is not None
    max_abs, relative = _gap(result, baseline)
    binade = 1 << FLOATS[str(baseline.dtype).removeprefix("torch.")].mantissa
    within = difference.max_ulp is not None and difference.max_ulp < binade
    return replace(
        nothing,
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
