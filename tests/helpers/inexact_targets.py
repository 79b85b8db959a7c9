"""Engines that are right and whose bits are not the reference's: the built-in loops under another arithmetic.

``--target tests/helpers/inexact_targets.py:Batched`` and so on. The reference of each is the built-in one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from verify.combine import combine_cfg
from verify.loops import LOOPS
from verify.protocols import Loop
from verify.targets.builtin import BuiltinTarget
from verify.targets.protocol import REFERENCE

Arithmetic = Callable[[Any], AbstractContextManager[object]]


class Replaced(TorchFunctionMode):
    """Functions of PyTorch replaced by others while it is on; the others see the originals."""

    def __init__(self, functions: Mapping[Any, Callable[..., Any]]) -> None:
        super().__init__()
        self._functions = functions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._functions.get(func, func)(*args, **(kwargs or {}))


def batched_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The rows of two branches in one product."""
    return F.linear(torch.cat([x, x.flip(0)]), weight, bias)[: len(x)]


def padded_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **named: Any) -> Tensor:
    """Caches of several branches in one call: padded to one length, with a mask."""
    rows = k.shape[2]
    mask = torch.zeros(q.shape[2], rows + 9, dtype=torch.bool, device=q.device)
    mask[:, :rows] = True if attn_mask is None else attn_mask
    return F.scaled_dot_product_attention(q, F.pad(k, (0, 0, 0, 9)), F.pad(v, (0, 0, 0, 9)), attn_mask=mask, **named)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **named: Any) -> Tensor:
    """Attention by its formula, each product rounded to the network's dtype."""
    k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], 1) for each in (k, v))
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    return torch.softmax(scores, -1) @ v


def sharded_linear(shards: int) -> Callable[..., Tensor]:
    """A product over the input's channels in parts, each rounded, added as tensor parallelism does."""

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        parts = zip(x.chunk(shards, -1), weight.chunk(shards, -1), strict=True)
        total = sum(F.linear(a, b) for a, b in parts)
        assert isinstance(total, Tensor)
        return total if bias is None else total + bias

    return linear


@contextmanager
def in_float32(denoiser: Any) -> Iterator[None]:
    """The network and the contexts lifted to float32: nothing is rounded to half precision."""
    heard = denoiser
    model, contexts = heard.model, heard.contexts
    wide = copy.deepcopy(model).float()

    class Lifted(dict[str, Any]):
        def __getitem__(self, branch: str) -> Any:
            context = contexts[branch]
            return replace(context, keys=context.keys.float(), values=context.values.float())

    def lifted(x_t: Tensor, time_embedding: Tensor, branch: str) -> Tensor:
        places = _innermost(heard).places
        return wide.velocity(x_t, time_embedding.float(), places, Lifted()[branch])

    with mock.patch.object(_innermost(heard), "velocity_at", lifted):
        yield


def _innermost(denoiser: Any) -> Any:
    while "_denoiser" in getattr(denoiser, "__dict__", {}):
        denoiser = vars(denoiser)["_denoiser"]
    return denoiser


def reduced_combine(gen: Tensor, text: Tensor, img: Tensor | None, scale: float, *rest: Any) -> Tensor:
    """Text guidance as an all_reduce of weighted velocities does it: a sum in another order than the formula."""
    if img is not None:
        return combine_cfg(gen, text, img, scale, *rest)
    weighted = scale * gen + (1.0 - scale) * text
    return combine_cfg(gen, text, None, scale, *rest) if scale == 1.0 else _renormed(gen, weighted, *rest[1:])


def _renormed(gen: Tensor, guided: Tensor, renorm_type: str, renorm_min: float) -> Tensor:
    dim = None if renorm_type == "global" else -1
    norms = [torch.linalg.vector_norm(v, dim=dim, keepdim=dim is not None) for v in (gen, guided)]
    return guided * (norms[0] / (norms[1] + 1e-8)).clamp(renorm_min, 1.0)


def replacing(functions: Mapping[Any, Callable[..., Any]]) -> Arithmetic:
    """An arithmetic that puts functions in the place of PyTorch's."""
    return lambda denoiser: Replaced(functions)


@contextmanager
def reducing(denoiser: Any) -> Iterator[None]:
    """The combine as an all_reduce does it."""
    # Faults put a combine of their own in the same place, and theirs is the one to be used.
    from verify.loops import guidance

    if vars(guidance)["combine_cfg"] is not combine_cfg:
        yield
        return
    with mock.patch.object(guidance, "combine_cfg", reduced_combine):
        yield


class Inexact(BuiltinTarget):
    """The built-in target, whose loops compute with another arithmetic than its reference."""

    name = "inexact"
    arithmetic: Arithmetic

    def __init__(self) -> None:
        self.loops: Mapping[str, Loop] = {
            name: loop if name == REFERENCE else _under(self.arithmetic, loop) for name, loop in LOOPS.items()
        }


def _under(arithmetic: Arithmetic, loop: Loop) -> Loop:
    def other(denoiser: Any, request: Any, x_0: Tensor, group: Any, observe: Any) -> Tensor:
        with ExitStack() as stack:
            stack.enter_context(arithmetic(denoiser))
            return loop(denoiser, request, x_0, group, observe)

    return other


class Batched(Inexact):
    """Branches in one batch: twice the rows in each product, attention over padded caches with a mask."""

    name = "batched branches"
    arithmetic = staticmethod(replacing({F.linear: batched_linear, F.scaled_dot_product_attention: padded_attention}))


class PlainAttention(Inexact):
    """Another attention kernel: the formula, every product rounded."""

    name = "another attention kernel"
    arithmetic = staticmethod(replacing({F.scaled_dot_product_attention: plain_attention}))


class Sharded(Inexact):
    """Two tensor-parallel shards in every product."""

    name = "two shards"
    arithmetic = staticmethod(replacing({F.linear: sharded_linear(2)}))


class FourShards(Inexact):
    """Four of them, added one after the other."""

    name = "four shards"
    arithmetic = staticmethod(replacing({F.linear: sharded_linear(4)}))


class AllReduce(Inexact):
    """The combine as a sum of weighted velocities."""

    name = "all_reduce combine"
    arithmetic = staticmethod(reducing)


class Wide(Inexact):
    """The network in float32, against a reference in bfloat16."""

    name = "float32 against bfloat16"
    arithmetic = staticmethod(in_float32)


TARGETS = (Batched, Sharded, AllReduce, PlainAttention, Wide)
