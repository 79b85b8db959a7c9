"""Bagel's mixture-of-transformers decoder, written for one image at a time.

Two experts share every layer. Text tokens and the image markers go through the understanding expert (``und``), latent
tokens through the generation expert (``gen``); each has its own projections, norms and MLP, and all tokens attend to
all keys together, in the order start marker, latents, end marker. The two kinds of token are kept in tensors of their
own, and are joined for attention only.

Legend: N tokens of one expert, T all tokens of the pass, R cached rows, H hidden, A heads, K key/value heads, D head
channels.

Source of the architecture: BAGEL (arXiv 2505.14683); Qwen2.5 (arXiv 2412.15115) for the dense parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from verify.bagel.arithmetic import Rotation, norm_and_rotate, rms_norm, silu_times
from verify.bagel.config import BagelConfig

# In this order: cuDNN's kernel is the fastest on Hopper; each of them is deterministic going forward.
ATTENTION_KERNELS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension, rounded before the weight and after it."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "... size"]) -> Float[Tensor, "... size"]:
        return rms_norm(x, self.weight, self.eps)


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
        self, x_NH: Float[Tensor, "n hidden"], rotation: Rotation, wide: bool
    ) -> tuple[Float[Tensor, "n heads d"], Float[Tensor, "n kv d"], Float[Tensor, "n kv d"]]:
        """Queries and keys, normed and rotated (``wide``: in float32 from end to end), and values."""
        q_NAD, k_NKD, v_NKD = (
            projection(x_NH).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_NAD = norm_and_rotate(q_NAD, self.q_norm.weight, self.q_norm.eps, rotation, wide)
        k_NKD = norm_and_rotate(k_NKD, self.k_norm.weight, self.k_norm.eps, rotation, wide)
        return q_NAD, k_NKD, v_NKD


class MLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.mlp, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.mlp, bias=False)
        self.down_proj = nn.Linear(config.mlp, config.hidden, bias=False)

    def forward(self, x: Float[Tensor, "n hidden"]) -> Float[Tensor, "n hidden"]:
        return self.down_proj(silu_times(self.gate_proj(x), self.up_proj(x)))


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
        """Runs one stream through ``und``, or two, markers and latents, through ``und`` and ``gen``.

        Returns the streams, and the keys and values that this pass adds to ``cache``, in row order.
        """
        experts = [self.und, self.gen][: len(streams)]
        projected = [
            expert.self_attn.project(expert.input_layernorm(x), rotation, wide=len(streams) == 2)
            for expert, x in zip(experts, streams, strict=True)
        ]
        q_ATD, k_KTD, v_KTD = (in_row_order(parts).transpose(0, 1) for parts in zip(*projected, strict=True))
        attended = attend(q_ATD, torch.cat([cache[0], k_KTD], 1), torch.cat([cache[1], v_KTD], 1), mask)
        pieces = in_streams(attended, len(streams))
        finished = [expert.finish(x, piece) for expert, x, piece in zip(experts, streams, pieces, strict=True)]
        return finished, k_KTD, v_KTD


def in_row_order(streams: Sequence[Tensor]) -> Tensor:
    """All rows of a pass: text as it is, or start marker, latents, end marker from markers and latents."""
    if len(streams) == 1:
        return streams[0]
    markers, latents = streams
    return torch.cat([markers[:1], latents, markers[1:]])


def in_streams(rows: Tensor, count: int) -> list[Tensor]:
    """The streams that :func:`in_row_order` joined."""
    return [rows] if count == 1 else [torch.cat([rows[:1], rows[-1:]]), rows[1:-1]]


def attend(
    q_ATD: Float[Tensor, "heads t d"],
    k_KRD: Float[Tensor, "kv keys d"],
    v_KRD: Float[Tensor, "kv keys d"],
    mask: Bool[Tensor, "t keys"] | None,
) -> Float[Tensor, "t heads_d"]:
    """Grouped-query softmax attention, scaled by ``1/sqrt(d)``."""
    out = F.scaled_dot_product_attention(q_ATD[None], k_KRD[None], v_KRD[None], attn_mask=mask, enable_gqa=True)
    return out[0].transpose(0, 1).flatten(1)
