"""What holds of the combine for every case. Each property is a function from a subject to an outcome.

``REPEATABLE`` must hold on every rank: they can differ between ranks of one machine. ``FORMULA`` follow from the bits
that all ranks share, so one rank looks at each case. Bounds are derived where they stand; none is tuned. Notation: u is
the unit roundoff of the dtype (2^-8 bf16, 2^-11 fp16, 2^-24 fp32, 2^-53 fp64).

Three statements that one would like to make are false, and are stated here as they are true:

- *renorm_min = 1 disables the renorm*: only where the factor is a number. ``clamp`` keeps a NaN, and the factor is NaN
  when a norm is, when both norms overflow (inf/inf: finite fp32 and bf16 velocities above about 1.8e19 do that, fp16
  ones above 65504 in norm), and in fp16 when both vanish: 1e-8 rounds to zero there, so 0/0.
- *the renorm never grows the norm*: it never grows any element, exactly. Against gen's norm it holds up to rounding
  while the squares neither overflow nor underflow.
- *text guidance alone equals image scale 1*: bit for bit only where ``img + (guided - img)`` gives ``guided`` back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verify.bits import bits_of, describe, same_bits
from verify.fuzz.layouts import place
from verify.fuzz.subject import SILENT, Outcome, Subject, equal, equal_where
from verify.oracle.bound import combine_bound, combine_oracle, ulps, within

Property = Callable[[Subject], Outcome]


def shape_and_dtype(s: Subject) -> Outcome:
    """The result has the shape and dtype of the branches (outside autocast)."""
    out = s.run()
    elements = max(1, out.numel())
    if (out.shape, out.dtype) == (s.gen.shape, s.gen.dtype):
        return Outcome(elements)
    return Outcome(elements, f"the result is {describe(out)}, expected {describe(s.gen)}")


def run_to_run(s: Subject) -> Outcome:
    """The same inputs give the same bits again."""
    return equal(s.fresh(), s.run(), "a second run on the same inputs gives other bits")


def freed_memory(s: Subject) -> Outcome:
    """What lies in freed memory does not matter."""
    # Blocks of every size that the combine allocates: the branches' own, one row's, one value's.
    sizes = [max(1, n * s.gen.element_size()) for n in (s.case.size, s.case.size, s.case.size, s.case.tokens, 1)]
    poison = [torch.full((size,), 0xFF, dtype=torch.uint8, device=s.device) for size in sizes]
    del poison
    return equal(s.fresh(), s.run(), "the result depends on what lay in freed memory")


def _single(s: Subject, **changes: Any) -> Tensor:
    """The result in which the factor comes last."""
    return s.run(text_only=s.text_only, **changes)


def renorm_never_grows(s: Subject) -> Outcome:
    """No element grows, exactly; nor does the norm beyond gen's, up to rounding.

    The factor is at most 1 and rounding is monotone, so each element is at most that of the unrenormed result. For the
    norms: a sum of n squares in the accumulation format (roundoff v, any order) is off by at most (n + 1)v relatively,
    its root by half of that, and norm, denominator, quotient and product each round once more (u; twice, so u + v, in
    half formats). With renorm_min = m the factor may be m instead, so the bound is max(|gen|, m|guided|).
    """
    out, off = _single(s), _single(s, renorm_min=1.0)
    known = ~(out.isnan() | off.isnan())
    elements = int(known.sum())
    if bool((known & (out.abs() > off.abs())).any()):
        grown = torch.where(known & (out.abs() > off.abs()), out, off)
        return replace(equal(grown, off, "the renorm made an element greater"), elements=elements)
    gen, guided, result = (_exact(x) for x in (s.gen, s.guided, out))
    axis = -1 if s.per_token else None
    with np.errstate(all="ignore"):
        norms = [np.sqrt((x * x).sum(axis=axis)) for x in (gen, guided, result)]
    form, accumulates = s.case.form, s.case.form.compute
    n = s.case.channels if s.per_token else s.case.size
    u = form.unit + accumulates.unit
    grows = (1 + (n + 2) * accumulates.unit) * (1 + u) ** 6
    # Outside this range squares overflow or lose bits to underflow, and the norms that torch sees are others.
    limit = min(form.largest, accumulates.largest**0.5) / 2
    floor = max((accumulates.least * n) ** 0.5 / form.unit, float(torch.finfo(form.torch).smallest_normal))
    safe = np.ones_like(norms[0], dtype=bool)
    for norm in norms[:2]:
        safe &= (norm < limit) & (norm > floor)
    with np.errstate(all="ignore"):
        allowed = np.maximum(norms[0], s.case.renorm_min * norms[1]) * grows
        # A factor or a product below the normal range is off by up to half the least subnormal.
        allowed += form.least * (norms[1] + n**0.5)
    wrong = safe & ~(norms[2] <= allowed)
    if wrong.any():
        worst = np.nanmax(np.where(wrong, norms[2] / allowed, 0))
        return Outcome(elements, f"the result's norm exceeds gen's: {float(worst):.9g} times what rounding allows")
    return Outcome(elements)


def renorm_min_one(s: Subject) -> Outcome:
    """``renorm_min=1`` leaves plain guidance, bit for bit, wherever the factor is a number."""
    number = ~s.factor(s.guided, 1.0).isnan() & ~s.guided.isnan()
    return equal_where(
        number.expand_as(s.guided), _single(s, renorm_min=1.0), s.guided, "renorm_min=1 does not give plain guidance"
    )


def monotone_clamp(s: Subject) -> Outcome:
    """A greater renorm_min never makes an element smaller."""
    m = s.case.renorm_min
    results = [_single(s, renorm_min=least) for least in sorted({0.0, m, (1 + m) / 2, 1.0})]
    elements = 0
    for smaller, greater in pairwise(results):
        known = ~(smaller.isnan() | greater.isnan())
        elements += int(known.sum())
        if bool((known & (smaller.abs() > greater.abs())).any()):
            return Outcome(elements, "an element is smaller under a greater renorm_min")
    return Outcome(elements)


def one_factor(s: Subject) -> Outcome:
    """The renorm multiplies a token, or everything, by one number of the velocities' dtype.

    Where a guided element is a power of two, the result over it *is* that number; every other element must then be the
    guided one times it, rounded once. A factor kept in another dtype does not pass.
    """
    out, guided = _single(s), s.guided
    form = s.case.form
    if not s.case.size or out.dtype != guided.dtype:
        return SILENT
    rows = (s.case.tokens, s.case.channels) if s.per_token else (1, s.case.size)
    g, r = guided.reshape(rows), out.reshape(rows)
    normal = torch.finfo(form.torch).smallest_normal
    usable = (bits_of(g) & ((1 << form.mantissa) - 1) == 0) & (g.abs() >= normal) & g.isfinite()
    # Strictly above the smallest normal number: what lies below it may have been rounded up to it.
    usable &= r.isfinite() & (r.abs() > normal)
    anchor = usable.to(torch.uint8).argmax(1, keepdim=True)
    factor = r.gather(1, anchor) / g.gather(1, anchor)
    mask = usable.any(1, keepdim=True) & g.isfinite() & r.isfinite()
    return equal_where(mask, r, g * factor, "elements of one renorm group were multiplied by different numbers")


def scale_one(s: Subject) -> Outcome:
    """Text scale 1 gives gen back: with ``d = fl(gen - text)``, ``fl(text + d)`` is off by at most
    ``u|gen - text|(1 + u) + u|gen|``. Checked without image branch and renorm; the factor cannot turn a direction."""
    guided = s.text + 1.0 * (s.gen - s.text)
    number = ~s.factor(guided, 1.0).isnan()
    seen, gen, text = (_exact(x) for x in (s.run(text_scale=1.0, renorm_min=1.0, text_only=True), s.gen, s.text))
    form = s.case.form
    u = form.unit + (form.compute.unit * 2 if form.width == 16 else 0)
    with np.errstate(all="ignore"):
        apart = np.abs(gen - text)
        bound = u * apart * (1 + u) + u * np.abs(gen)
        judged = number.expand_as(s.gen).cpu().numpy() & np.isfinite(gen) & np.isfinite(text)
        judged &= apart <= form.largest / 2
        wrong = judged & ~(np.abs(seen - gen) <= bound)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        return Outcome(
            int(judged.sum()),
            f"element {list(at)} is {float(seen[at])!r}, and text scale 1 must give gen's {float(gen[at])!r}",
        )
    return Outcome(int(judged.sum()))


def image_scale_one(s: Subject) -> Outcome:
    """Image scale 1 equals text guidance alone, bit for bit, where ``img + (guided - img)`` gives ``guided`` back."""
    before = s.run(text_only=True) if s.case.renorm_type == "text_channel" else s.plain_text()
    elements = 0
    for img in filter(lambda x: x is not None, (torch.zeros_like(s.text), s.img)):
        assert img is not None
        if not same_bits(img + 1.0 * (before - img), before):
            continue
        outcome = equal(s.with_img(img, 1.0), s.run(text_only=True), "image scale 1 differs from text guidance alone")
        elements += outcome.elements
        if outcome.problem:
            return outcome
    return Outcome(elements)


def image_guidance(s: Subject) -> Outcome:
    """``text_channel`` guides by the image after the renorm: plainly, bit for bit, on top of the text-only result."""
    if s.img is None or s.case.renorm_type != "text_channel":
        return SILENT
    wanted = s.img + s.case.img_scale * (s.run(text_only=True) - s.img)
    mask = ~wanted.isnan()
    return equal_where(mask, s.run(), wanted, "image guidance is not plain after the renorm")


def non_finite(s: Subject) -> Outcome:
    """NaN and inf go where the formula sends them: an element is NaN if its guided value or its factor is, or if inf
    meets a factor of 0; it is inf if inf meets another factor; else it is finite."""
    guided, out = s.guided, _single(s)
    factor = s.factor(guided, s.case.renorm_min).expand_as(guided)
    nan = guided.isnan() | factor.isnan() | (guided.isinf() & (factor == 0))
    wanted = torch.where(nan, 2, torch.where(guided.isinf(), 1, 0))
    seen = torch.where(out.isnan(), 2, torch.where(out.isinf(), 1, 0))
    if torch.equal(wanted, seen):
        return Outcome(out.numel())
    at = tuple((wanted != seen).nonzero()[0].tolist())
    names = ("finite", "inf", "NaN")
    return Outcome(
        out.numel(),
        f"element {list(at)} is {names[int(seen[at])]}, and the formula makes it {names[int(wanted[at])]} "
        f"(guided {guided[at].item()!r}, factor {factor[at].item()!r})",
    )


def rows_independent(s: Subject) -> Outcome:
    """With a renorm a token, a token's bits depend on that token alone, though another be NaN."""
    if not s.per_token or s.case.tokens < 2 or s.case.layout == "expanded":
        return SILENT
    row = s.case.offset * 7 % s.case.tokens
    changed = [branch.clone(memory_format=torch.contiguous_format) for branch in s.laid.branches]
    for branch in changed:
        branch[row] = float("nan")
    out = s.fresh(place(changed, s.case.layout, s.case.offset).branches)
    mask = torch.ones_like(out, dtype=torch.bool)
    mask[row] = False
    return equal_where(mask, out, s.run(), f"token {row} changed the bits of another token")


def _exact(tensor: Tensor) -> Any:
    """In extended precision, so that a bound's own rounding cannot decide."""
    with np.errstate(invalid="ignore"):  # A signalling NaN.
        return tensor.double().cpu().numpy().astype(np.longdouble)


def oracle(s: Subject) -> Outcome:
    """Every element lies within the bound that :mod:`verify.oracle.bound` derives for it.

    Elements about which the bound claims nothing are not counted: an intermediate result may overflow there.
    """
    case = s.case
    seen = s.run().double().cpu().numpy()
    with np.errstate(invalid="ignore"):  # A signalling NaN.
        gen, text, *img = (branch.double().cpu().numpy() for branch in s.laid.branches)
    arguments = (gen, text, img[0] if img else None, case.text_scale, case.img_scale, case.renorm_type, case.renorm_min)
    expected, bound = combine_oracle(*arguments), combine_bound(*arguments, case.dtype)
    judged = int((~np.isinf(bound)).sum())
    kept = within(seen, expected, bound)
    if kept.all():
        return Outcome(judged)
    at = tuple(int(i) for i in np.argwhere(~kept)[0])
    allowed = ulps(bound, expected, case.dtype)[at]
    return Outcome(
        judged,
        f"element {list(at)} is {float(seen[at])!r}, the float64 oracle says {float(expected[at])!r} and allows "
        f"{float(bound[at]):.3g} ({float(allowed):.3g} ULP)",
    )


REPEATABLE: dict[str, Property] = {
    "shape_and_dtype": shape_and_dtype,
    "run_to_run": run_to_run,
    "freed_memory": freed_memory,
}
FORMULA: dict[str, Property] = {
    "oracle": oracle,
    "scale_one": scale_one,
    "renorm_never_grows": renorm_never_grows,
    "renorm_min_one": renorm_min_one,
    "monotone_clamp": monotone_clamp,
    "one_factor": one_factor,
    "image_scale_one": image_scale_one,
    "image_guidance": image_guidance,
    "non_finite": non_finite,
    "rows_independent": rows_independent,
}
