"""Calls of the combine for its error bound: branches of every kind of number, and combines with something wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from oracle_cases import Array, as_float64
from torch import Tensor
from torch.linalg import vector_norm

from verify.combine import combine_cfg
from verify.oracle.bound import combine_bound, combine_oracle
from verify.oracle.formats import FORMATS
from verify.request import RENORM_TYPES

DTYPES = sorted(FORMATS)
KINDS = ("bits", "normal", "wide", "subnormal", "tiny", "zero", "huge")
Combine = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One call of the combine."""

    branches: tuple[Tensor, Tensor, Tensor | None]
    settings: tuple[float, float, str, float]

    def judge(self, combine: Combine = combine_cfg, failure_probability: float = 0.0) -> tuple[Array, Array, Array]:
        """What PyTorch makes of it, what the oracle does, and the bound."""
        observed = as_float64(combine(*self.branches, *self.settings).cpu())
        gen, text, img = (None if x is None else as_float64(x.cpu()) for x in self.branches)
        assert gen is not None and text is not None
        dtype = str(self.branches[0].dtype).removeprefix("torch.")
        bound = combine_bound(gen, text, img, *self.settings, dtype, failure_probability=failure_probability)
        assert bound.shape == observed.shape and not np.isnan(bound).any() and (bound >= 0).all()
        return observed, combine_oracle(gen, text, img, *self.settings), bound


def velocities(kind: str, shape: tuple[int, int], dtype: str, rng: np.random.Generator) -> Tensor:
    """Numbers of one kind, as the dtype holds them."""
    info, torch_dtype = torch.finfo(getattr(torch, dtype)), getattr(torch, dtype)
    if kind == "bits":
        integer = {16: torch.int16, 32: torch.int32, 64: torch.int64}[info.bits]
        drawn = torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, shape, dtype=np.int64))
        return drawn.to(integer).view(torch_dtype)
    numbers: Array = rng.standard_normal(shape)
    if kind == "wide":
        numbers *= np.exp2(rng.uniform(-10, 10, shape))
    elif kind == "subnormal":
        numbers = np.float64(info.smallest_normal * info.eps) * rng.integers(-300, 300, shape)
    elif kind == "tiny":  # Squares underflow.
        numbers *= np.sqrt(info.smallest_normal) * np.exp2(rng.uniform(-8, 8, shape))
    elif kind == "huge":  # Squares overflow, some of them.
        numbers *= float(info.max) ** rng.choice([0.4, 0.5, 0.9])
    elif kind == "zero":
        numbers *= 0
    return torch.from_numpy(numbers).to(torch_dtype)


def drawn_case(kind: str, dtype: str, rng: np.random.Generator) -> Case:
    """Branches far apart, nearly alike or equal; scales at 1, ordinary and absurd."""
    shape = (int(rng.choice([0, 1, 2, 7, 33])), int(rng.choice([1, 3, 16, 65])))
    gen = velocities(kind, shape, dtype, rng)

    def other() -> Tensor:
        if rng.random() < 0.2:
            return gen.clone()
        if rng.random() < 0.4:
            changed = 1 + torch.from_numpy(rng.standard_normal(shape)) * 10 ** rng.uniform(-8, 0)
            return (gen.double() * changed).to(gen.dtype)
        return velocities(kind if rng.random() < 0.9 else str(rng.choice(KINDS)), shape, dtype, rng)

    def scale() -> float:
        odd = [0.0, -2.0, 1e-50, 1e-40, 1e39]
        return float(rng.choice([1.0, 1 + 1e-7, 1.3, 4.0, 1000.0, rng.uniform(1, 10), rng.choice(odd)]))

    least = float(rng.choice([0.0, 1.0, 0.5, rng.random()]))
    branches = gen, other(), other() if rng.random() < 0.5 else None
    return Case(branches, (scale(), scale(), str(rng.choice(RENORM_TYPES)), least))


def cases(kind: str, dtype: str, count: int) -> Iterator[Case]:
    rng = np.random.default_rng([KINDS.index(kind), DTYPES.index(dtype)])
    return (drawn_case(kind, dtype, rng) for _ in range(count))


def ordinary(shape: tuple[int, int], dtype: str, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Branches as a model has them: alike to about a third."""
    numbers, torch_dtype = rng.standard_normal(shape), getattr(torch, dtype)
    gen, text, img = (torch.from_numpy(numbers + d * rng.standard_normal(shape)).to(torch_dtype) for d in (0, 0.3, 0.3))
    return gen, text, img


def mutated(
    *,
    eps: float = 1e-8,
    clamp_max: float | None = 1.0,
    clamp_min: bool = True,
    token_axis: int = -1,
    swapped: bool = False,
    with_img: bool = True,
    through: torch.dtype | None = None,
) -> Combine:
    """The combine written anew, with parts exchanged; without arguments it is right."""

    def combine(
        gen: Tensor, text: Tensor, img: Tensor | None, s: float, s_img: float, kind: str, least: float
    ) -> Tensor:
        def held(x: Tensor) -> Tensor:
            dim = None if kind == "global" else token_axis
            norms = [vector_norm(y, dim=dim, keepdim=dim is not None) for y in (gen, x)]
            factor: Tensor = norms[0] / (norms[1] + eps)
            return x * factor.clamp(least if clamp_min else 0.0, clamp_max)

        if swapped:
            s, s_img = s_img, s
        guided: Tensor = text + s * (gen - text)
        if kind == "text_channel":
            guided = held(guided)
        if img is not None and with_img:
            guided = img + s_img * (guided - img)
        if kind != "text_channel":
            guided = held(guided)
        return guided if through is None else guided.to(through).to(gen.dtype)

    return combine


MUTANTS: dict[str, Combine] = {
    "eps dropped": mutated(eps=0.0),
    "eps 1e-3": mutated(eps=1e-3),
    "clamp max dropped": mutated(clamp_max=None),
    "clamp min dropped": mutated(clamp_min=False),
    "norm over the other axis": mutated(token_axis=0),
    "scales swapped": mutated(swapped=True),
    "image ignored": mutated(with_img=False),
    "scale through bfloat16": lambda g, t, i, s, *rest: combine_cfg(g, t, i, torch.tensor(s).bfloat16().item(), *rest),
    "result through float16": mutated(through=torch.float16),
}


def mutant_cases(dtype: str) -> Iterator[Case]:
    rng = np.random.default_rng(1)
    for kind in RENORM_TYPES:
        for least in (0.0, 0.9):
            yield Case(ordinary((5, 8), dtype, rng), (4.3, 1.7, kind, least))
            gen, text, img = ordinary((5, 8), dtype, rng)
            # A guided velocity shorter than gen: only the clamp keeps it from growing.
            yield Case((gen, gen * 1.4, img), (4.3, 1.0, kind, least))
            yield Case((gen * 0, text * 0, None), (4.3, 1.0, kind, least))
