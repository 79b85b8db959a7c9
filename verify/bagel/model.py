"""The whole network: what surrounds the decoder, and the velocity of one branch.

Legend: N latent tokens, M markers (2), H hidden, C latent channels, L layers, K key/value heads, R cached rows, D head
channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel

from verify.bagel.arithmetic import exact_dtype, rotation_at
from verify.bagel.config import BagelConfig
from verify.bagel.layers import ATTENTION_KERNELS, DecoderLayer, RMSNorm, in_row_order

TIME_FREQUENCIES = 256


@dataclass(frozen=True)
class Context:
    """One branch's frozen conditioning: the KV cache of every layer, and where the image stands.

    Attributes:
        keys: rotated keys in the network's dtype.
        values: values, likewise.
        position: the rope position that all tokens of the image share.
    """

    keys: Float[Tensor, "layers kv rows d"]
    values: Float[Tensor, "layers kv rows d"]
    position: int


class TimestepEmbedder(nn.Module):
    """Sinusoidal features of ``t`` and a two-layer MLP (as in DiT, arXiv 2212.09748)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FREQUENCIES, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, t: Float[Tensor, " n"]) -> Float[Tensor, "n hidden"]:
        half = TIME_FREQUENCIES // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=t.dtype) / half)
        angles = t[:, None] * frequencies
        features = torch.cat([angles.cos(), angles.sin()], -1)
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))


class BagelModel(nn.Module):
    """Bagel without its image encoders: text and latents in, velocity out."""

    def __init__(self, config: BagelConfig) -> None:
        super().__init__()
        self.config = config
        # A bare parameter: nn.Embedding's own initialisation costs more than a second even on the meta device.
        self.embed_tokens = nn.Parameter(torch.empty(config.vocab, config.hidden))
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.ModuleDict({expert: RMSNorm(config.hidden, config.norm_eps) for expert in ("und", "gen")})
        self.time_embedder = TimestepEmbedder(config.hidden)
        self.vae2llm = nn.Linear(config.latent_channels, config.hidden)
        self.llm2vae = nn.Linear(config.hidden, config.latent_channels)
        self.latent_pos_embed = nn.Parameter(torch.empty(config.latent_side**2, config.hidden), requires_grad=False)

    @property
    def dtype(self) -> torch.dtype:
        """The network's dtype."""
        return self.vae2llm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return self.vae2llm.weight.device

    @property
    def exact_dtype(self) -> torch.dtype:
        """What angles are computed in: float32, or float64 when the network is."""
        return exact_dtype(self.dtype)

    def embed_latents(
        self, latents: Float[Tensor, "n channels"], time_embedding: Float[Tensor, "1 hidden"], places: Int[Tensor, " n"]
    ) -> Float[Tensor, "n hidden"]:
        """Latent tokens at one time, at the given rows of the position table."""
        return self.vae2llm(latents.to(self.dtype)) + time_embedding + self.latent_pos_embed[places]

    def markers(self) -> Float[Tensor, "2 hidden"]:
        """The tokens that open and close an image."""
        # Row by row: a list as an index would become a tensor on the CPU, and its copy to the GPU makes the host wait.
        return torch.stack([self.embed_tokens[self.config.image_start], self.embed_tokens[self.config.image_end]])

    def decode(
        self,
        streams: list[Tensor],
        positions: Int[Tensor, " n"],
        context: Context,
        mask: Bool[Tensor, "t keys"] | None = None,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """All layers over one stream (text) or two (markers and latents), attending to ``context`` and themselves.

        Returns the streams before the final norm, and each layer's new keys and values ``(kv, t, d)``.
        """
        rotation = rotation_at(positions, self.config.head_dim, self.config.rope_theta, self.dtype)
        keys, values = [], []
        with sdpa_kernel(ATTENTION_KERNELS, set_priority=True):
            for layer, cached in zip(self.layers, zip(context.keys, context.values, strict=True), strict=True):
                streams, k, v = layer(streams, rotation, cached, mask)
                keys.append(k)
                values.append(v)
        return streams, keys, values

    def velocity(
        self,
        x_t: Float[Tensor, "n channels"],
        time_embedding: Float[Tensor, "1 hidden"],
        places: Int[Tensor, " n"],
        context: Context,
    ) -> Float[Tensor, "n channels"]:
        """The velocity of the branch that ``context`` conditions, in the network's dtype.

        The image attends to the whole cache and to itself without a mask, all of it at one rope position.
        """
        position = torch.full((1,), context.position, device=self.device)
        streams = [self.markers(), self.embed_latents(x_t, time_embedding, places)]
        streams, _, _ = self.decode(streams, position, context)
        markers, latents = (self.norm[expert](x) for expert, x in zip(("und", "gen"), streams, strict=True))
        # The markers' rows are of no use afterwards, but a product's bits may depend on how many rows it has.
        return self.llm2vae(in_row_order([markers, latents]))[1:-1]


def sincos_2d(side: int, size: int) -> Float[Tensor, "side_squared size"]:
    """Fixed position embeddings: half of the channels for the column, half for the row, float32.

    Each half is sines then cosines of ``position / 10000^(i / (size / 4))``. Source: MAE (arXiv 2111.06377), which
    BAGEL's ``PositionEmbedding`` follows.
    """
    if size % 4:
        raise ValueError(f"{size} channels cannot be split into row and column, sine and cosine")
    frequencies = 1.0 / 10000 ** (torch.arange(size // 4, dtype=torch.float64) / (size // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], 1)
    columns = line[None].expand(side, side, -1)
    rows = line[:, None].expand(side, side, -1)
    return torch.cat([columns, rows], -1).flatten(0, 1).to(torch.float32)


def latent_places(grid: tuple[int, int], side: int, device: torch.device) -> Int[Tensor, " n"]:
    """Rows of the position table for a grid of latent tokens, row by row, the table being ``side`` wide."""
    rows, columns = grid
    return (torch.arange(rows, device=device)[:, None] * side + torch.arange(columns, device=device)).flatten()
