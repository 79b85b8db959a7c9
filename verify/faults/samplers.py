"""Faults in what a sampler holds beside ``x_t``: random generators, history, and what its contexts were drawn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from verify.faults.denoiser import swap_context
from verify.faults.registry import Wiring, fault
from verify.protocols import State

_AT = 7


def _add_noise(wiring: Wiring, draw: Callable[[Tensor], Tensor]) -> None:
    """One step adds a little of what ``draw`` gives for the shape of ``x_t``."""

    def add(step: int, x_t: Tensor) -> Tensor:
        return x_t + 1e-3 * draw(x_t).to(x_t.device) if step == _AT else x_t

    wiring.after_step(add)


def _show(wiring: Wiring, held: Callable[[int, Tensor], Mapping[str, Any]]) -> None:
    """Shows state beside ``x_t`` after each step."""
    observe = wiring.observe

    def shown(step: int, x_t: Tensor, state: State = None) -> None:
        observe(step, x_t, {**(state or {}), **held(step, x_t)})

    wiring.observe = shown


@fault(source="none public", breaks="noise", step=_AT, rank=None, caught_by="ranks_agree")
def globals_reseeded(wiring: Wiring) -> None:
    """Every rank seeds PyTorch's global generator alike and draws from it; on rank 1 something seeds it once more."""
    torch.manual_seed(wiring.request.seed)
    torch.rand(3)
    wiring.on_velocity(lambda denoiser, x_t, step, branch: _reseeding(wiring, denoiser, x_t, step, branch))
    _add_noise(wiring, lambda x_t: torch.randn(x_t.shape))


def _reseeding(wiring: Wiring, denoiser: Any, x_t: Tensor, step: int, branch: str) -> Tensor:
    if wiring.at(_AT - 2, 1):
        torch.manual_seed(wiring.request.seed)
    velocity: Tensor = denoiser.velocity(x_t, step, branch)
    return velocity


@fault(source="none public", breaks="noise", step=_AT, rank=None, caught_by="ranks_agree")
def generator_back_at_its_seed(wiring: Wiring) -> None:
    """Rank 1 was sent a generator that had drawn, and what arrived was one with its seed, before it drew."""
    generator = torch.Generator().manual_seed(wiring.request.seed)
    torch.rand(3, generator=generator)
    if wiring.rank == 1:
        generator = torch.Generator().manual_seed(generator.initial_seed())
    _show(wiring, lambda step, x_t: {"noise": generator})
    _add_noise(wiring, lambda x_t: torch.randn(x_t.shape, generator=generator))


@fault(source="none public", breaks="cache", step=0, rank=0, caught_by="matches_reference")
def latent_sampled_in_the_prefill(wiring: Wiring) -> None:
    """What the gen branch's cache was made of is a VAE's sample, and rank 0 draws it from a generator of its own."""

    def sampled(contexts: Any) -> Any:
        gen = contexts["gen"]
        return replace(gen, keys=gen.keys + 0.1 * torch.randn(gen.keys.shape).to(gen.keys))

    if wiring.rank == 0:
        swap_context(wiring, "gen", sampled)


@fault(source="none public", breaks="loop", step=_AT, rank=1, caught_by="ranks_agree")
def history_of_another_step(wiring: Wiring) -> None:
    """Rank 1's scheduler keeps the x_t of a step too early; its own x_t does not show it yet."""
    kept: list[Tensor] = []

    def history(step: int, x_t: Tensor) -> Mapping[str, Any]:
        kept.append(x_t.clone())
        return {"history": kept[-3:-1] if (step, wiring.rank) == (_AT, 1) else kept[-2:]}

    _show(wiring, history)
