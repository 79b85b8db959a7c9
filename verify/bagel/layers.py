"""Bagel's mixture-of-transformers decoder, written for one image at a time.

Two experts share every layer. Text tokens and the image markers go through the understanding expert (``und``), latent
tokens through the generation expert (``gen``); each has its own projections, norms and MLP, and all tokens attend to
all keys together. The two kinds of token are kept in tensors of their own, so no layer scatters or gathers rows.

Legend: N tokens of one expert, T all tokens of the pass, R cached rows, H hidden, A heads, K key/value heads, D head
channels.

Source of the architecture: BAGEL (arXiv 2505.14683); Qwen2.5 (arXiv 2412.15115) for the dense parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from verify.bagel.config import BagelConfig

# In this order: cuDNN's kernel is the fastest on Hopper; each of them is deterministic going forward.
ATTENTION_KERNELS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]

Rotation = tuple[Float[Tensor, "#n 1 d"], Float[Tensor, "#n 1 d"]]


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "... size"]) -> Float[Tensor, "... size"]:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """One expert's projections to queries, keys and values, and back."""

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden, queries)
        self.k_proj = nn.Linear(config.hidden, keys)
        self.v_proj = nn.Linear(config.hidden, keys)
        self.o_proj = nn.Linear(queries, config.hidden, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def project(
        self, x_NH: Float[Tensor, "n hidden"], rotation: Rotation
    ) -> tuple[Float[Tensor, "n heads d"], Float[Tensor, "n kv d"], Float[Tensor, "n kv d"]]:
        """Queries and keys, normed and rotated, and values."""
        q_NAD = self.q_norm(self.q_proj(x_NH).unflatten(-1, (-1, self.head_dim)))
        k_NKD = self.k_norm(self.k_proj(x_NH).unflatten(-1, (-1, self.head_dim)))
        v_NKD = self.v_proj(x_NH).unflatten(-1, (-1, self.head_dim))
        return rotate(q_NAD, rotation), rotate(k_NKD, rotation), v_NKD


class MLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.mlp, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.mlp, bias=False)
        self.down_proj = nn.Linear(config.mlp, config.hidden, bias=False)

    def forward(self, x: Float[Tensor, "n hidden"]) -> Float[Tensor, "n hidden"]:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Expert(nn.Module):
    """One expert's share of a decoder layer."""

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.mlp = MLP(config)

    def finish(
        self, x_NH: Float[Tensor, "n hidden"], attended: Float[Tensor, "n heads_d"]
    ) -> Float[Tensor, "n hidden"]:
        """What follows attention: output projection and MLP, each added to the residual stream."""
        x_NH = x_NH + self.self_attn.o_proj(attended)
        return x_NH + self.mlp(self.post_attention_layernorm(x_NH))


class DecoderLayer(nn.Module):
    """Both experts, joined by attention."""

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        self.und = Expert(config)
        self.gen = Expert(config)

    def forward(
        self,
        streams: Sequence[Float[Tensor, "_ hidden"]],
        rotation: Rotation,
        cache: tuple[Float[Tensor, "kv rows d"], Float[Tensor, "kv rows d"]],
        mask: Bool[Tensor, "t keys"] | None,
    ) -> tuple[list[Tensor], Float[Tensor, "kv t d"], Float[Tensor, "kv t d"]]:
        """Runs one stream through ``und`` or two through ``und`` and ``gen``.

        Returns the streams, and the keys and values that this pass adds to ``cache``, in stream order.
        """
        experts = [self.und, self.gen][: len(streams)]
        projected = [
            expert.self_attn.project(expert.input_layernorm(x), rotation)
            for expert, x in zip(experts, streams, strict=True)
        ]
        q_ATD, k_KTD, v_KTD = (torch.cat(parts).transpose(0, 1) for parts in zip(*projected, strict=True))
        attended = attend(q_ATD, torch.cat([cache[0], k_KTD], 1), torch.cat([cache[1], v_KTD], 1), mask)
        pieces = attended.split([len(x) for x in streams])
        finished = [expert.finish(x, piece) for expert, x, piece in zip(experts, streams, pieces, strict=True)]
        return finished, k_KTD, v_KTD


def attend(
    q_ATD: Float[Tensor, "heads t d"],
    k_KRD: Float[Tensor, "kv keys d"],
    v_KRD: Float[Tensor, "kv keys d"],
    mask: Bool[Tensor, "t keys"] | None,
) -> Float[Tensor, "t heads_d"]:
    """Grouped-query softmax attention, scaled by ``1/sqrt(d)``."""
    out = F.scaled_dot_product_attention(q_ATD[None], k_KRD[None], v_KRD[None], attn_mask=mask, enable_gqa=True)
    return out[0].transpose(0, 1).flatten(1)


def rotation_at(positions: Int[Tensor, " n"], head_dim: int, theta: float, dtype: torch.dtype) -> Rotation:
    """What :func:`rotate` multiplies by: cosines, and sines with the sign of each half, computed in ``dtype``.

    Channels i and i + d/2 of a head turn by ``position / theta^(2i/d)``.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=dtype) / head_dim
    angles = positions.to(dtype)[:, None, None] / theta**exponents
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x: Float[Tensor, "n heads d"], rotation: Rotation) -> Float[Tensor, "n heads d"]:
    """Rotary embedding (arXiv 2104.09864) in the dtype of ``rotation``; the result keeps ``x``'s dtype.

    Written in few operations, because each of them reads and writes all queries.
    """
    cos, sin = rotation
    partner = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * cos, partner, sin).to(x.dtype)
