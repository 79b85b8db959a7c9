"""Faults in what a rank evaluates: its branch, its contexts, its weights, its kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from verify.bits import bits_of
from verify.faults.registry import Wiring, fault
from verify.protocols import Denoiser
from verify.runner.requests import SEQUENCE


def _denoiser(wiring: Wiring) -> Any:
    """The built-in denoiser with its contexts and its model."""
    return wiring.denoiser


def swap_context(wiring: Wiring, branch: str, change: Callable[[Any], Any]) -> None:
    """Gives a branch another context while the loop runs."""
    contexts = _denoiser(wiring).contexts
    wiring.patches.enter_context(mock.patch.dict(contexts, {branch: change(contexts)}))


@fault(source="vo 3646", breaks="cache", step=0, rank=1, caught_by="matches_reference")
def kv_leaked_into_text_branch(wiring: Wiring) -> None:
    """Rank 1's text branch attends to the gen branch's cache."""
    if wiring.rank == 1:
        swap_context(wiring, "text", lambda contexts: contexts["gen"])


@fault(source="vo 3646", breaks="cache", step=0, rank=2, caught_by="matches_reference", image=True, least_ranks=3)
def kv_leaked_into_img_branch(wiring: Wiring) -> None:
    """Rank 2's img branch attends to the gen branch's cache: the image that was to be dropped is there."""
    if wiring.rank == 2:
        swap_context(wiring, "img", lambda contexts: contexts["gen"])


@fault(source="vo 3728, 4098", breaks="cache", step=0, rank=0, caught_by="matches_reference")
def kv_cut(wiring: Wiring) -> None:
    """Rank 0's gen cache has lost its last row."""

    def cut(contexts: Any) -> Any:
        gen = contexts["gen"]
        return replace(gen, keys=gen.keys[:, :, :-1], values=gen.values[:, :, :-1])

    if wiring.rank == 0:
        swap_context(wiring, "gen", cut)


@fault(source="vo 3728, 4098", breaks="cache", step=0, rank=0, caught_by="matches_reference")
def kv_row_swapped(wiring: Wiring) -> None:
    """Two rows of rank 0's gen cache have changed places in layer 1."""

    def swap(contexts: Any) -> Any:
        gen = contexts["gen"]
        values = gen.values.clone()
        values[1, :, [2, 3]] = values[1, :, [3, 2]]
        return replace(gen, values=values)

    if wiring.rank == 0:
        swap_context(wiring, "gen", swap)


@fault(source="none public", breaks="cache", step=10, rank=0, caught_by="cache_frozen")
def cache_updated_while_denoising(wiring: Wiring) -> None:
    """Rank 0 writes into its gen cache at one step."""

    def write(denoiser: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        if wiring.at(10, 0):
            _denoiser(wiring).contexts["gen"].keys[1, 0, 3] += 0.5
        return denoiser.velocity(x_t, step, branch)

    wiring.on_velocity(write)


@fault(source="vo 2371, 5287", breaks="denoiser", step=9, rank=1, caught_by="parallelism_engaged")
def branch_state_aliased(wiring: Wiring) -> None:
    """A step-skip cache gives rank 1 the velocity of the step before."""
    _reuse_velocity(wiring, 9, 1)


@fault(source="vo 2371, 5287", breaks="denoiser", step=14, rank=1, caught_by="matches_reference")
def velocity_one_ulp_off_at_its_owner(wiring: Wiring) -> None:
    """Rank 1's velocity is one ULP off in one element before it is gathered: all ranks agree on it."""
    _bump_velocity(wiring, 14, 1)


@fault(source="vo 2371, 5287", breaks="denoiser", step=40, rank=2, caught_by="matches_reference", image=True,
       least_ranks=3)  # fmt: skip
def img_velocity_one_ulp_off_at_its_owner(wiring: Wiring) -> None:
    """Rank 2's velocity is one ULP off in one element in the last guided step: all ranks agree on it."""
    _bump_velocity(wiring, 40, 2)


def _bump_velocity(wiring: Wiring, at: int, rank: int) -> None:
    def bump(denoiser: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        velocity = denoiser.velocity(x_t, step, branch)
        if wiring.at(at, rank):
            # The largest element: of a tiny one, an ULP is lost when the branches are combined.
            velocity = velocity.clone()
            bits_of(velocity).view(-1)[int(velocity.abs().argmax())] += 1
        return velocity

    wiring.on_velocity(bump)


@fault(source="sg 26923, vllm-project/vllm 48720", breaks="denoiser", step=45, rank=1, caught_by="parallelism_engaged")
def evaluation_skipped_when_unguided(wiring: Wiring) -> None:
    """Outside the interval rank 1 reuses its last velocity instead of evaluating gen."""
    _reuse_velocity(wiring, 45, 1)


def _reuse_velocity(wiring: Wiring, at: int, rank: int) -> None:
    kept: list[Tensor] = []

    def reuse(denoiser: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        if not wiring.at(at, rank):
            kept[:] = [denoiser.velocity(x_t, step, branch)]
        return kept[0]

    wiring.on_velocity(reuse)


@fault(source="none public", breaks="denoiser", step=0, rank=1, caught_by="matches_reference")
def weight_changed(wiring: Wiring) -> None:
    """One weight of layer 1 differs on rank 1."""
    if wiring.rank == 1:
        weight = _denoiser(wiring).model.layers[1].gen.mlp.down_proj.weight
        before = weight[5, 7].clone()
        wiring.patches.callback(lambda: weight.__setitem__((5, 7), before))
        weight[5, 7] = before + 1.0


@fault(source="sg 35343, flashinfer 3186, 3187", breaks="denoiser", step=0, rank=1, caught_by="matches_reference")
def gemm_split_differently(wiring: Wiring) -> None:
    """Rank 1 sums one product of layer 0 in two halves, as another autotuned kernel would."""
    if wiring.rank == 1:
        linear = _denoiser(wiring).model.layers[0].gen.self_attn.q_proj

        def split(x: Tensor) -> Tensor:
            half = x.shape[-1] // 2
            first = F.linear(x[:, :half], linear.weight[:, :half], linear.bias)
            return first + F.linear(x[:, half:], linear.weight[:, half:])

        wiring.patches.enter_context(mock.patch.object(linear, "forward", split))


@fault(source="none public", breaks="denoiser", step=0, rank=1, caught_by="matches_reference")
def gemm_in_reduced_precision(wiring: Wiring) -> None:
    """Rank 1 rounds the inputs of one product of layer 1 to 8 bits."""
    if wiring.rank == 1:
        linear = _denoiser(wiring).model.layers[1].gen.mlp.up_proj

        def rounded(x: Tensor) -> Tensor:
            return F.linear(x.to(torch.float8_e4m3fn).to(x.dtype), linear.weight)

        wiring.patches.enter_context(mock.patch.object(linear, "forward", rounded))


_first_request: dict[int, Tensor] = {}


@fault(source="sg 35054, 35136", breaks="denoiser", step=0, rank=1, caught_by="requests_repeat", requests=SEQUENCE,
       lasting=True)  # fmt: skip
def state_survives_request(wiring: Wiring) -> None:
    """Rank 1 begins the second request with a velocity of the first."""

    def stale(denoiser: Denoiser, x_t: Tensor, step: int, branch: str) -> Tensor:
        velocity = denoiser.velocity(x_t, step, branch)
        if wiring.at(0, 1):
            return _first_request.setdefault(wiring.rank, velocity) if step == 0 else velocity
        return velocity

    wiring.on_velocity(stale)
