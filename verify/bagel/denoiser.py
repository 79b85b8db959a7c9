"""The denoiser that a loop is given."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from verify.bagel.conditioning import Conditioning
from verify.bagel.context import build_contexts
from verify.bagel.model import BagelModel, Context, latent_places
from verify.errors import BadInput
from verify.request import DenoiseRequest


class BagelDenoiser:
    """Velocities of one request's branches.

    The model is explicit about its dtypes, so autocast is off within; around the loop it acts on the combine.

    Attributes:
        model: the network.
        contexts: each branch's frozen context, in rank order.
        places: the position of each latent token in the model's table.
    """

    def __init__(self, model: BagelModel, request: DenoiseRequest, conditioning: Conditioning | None = None) -> None:
        """``conditioning``: what the contexts are made from; seeded if left out.

        Raises:
            BadInput: the image has more latent tokens a side than the model has positions.
        """
        self.model = model
        side = model.config.latent_side
        if max(request.grid) > side:
            raise BadInput.of(
                "height and width",
                f"{request.height} x {request.width}",
                f"at most {side * 16} pixels a side, since the model has {side} x {side} latent positions",
                "ask for a smaller image or another preset",
            )
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            self.contexts: Mapping[str, Context] = build_contexts(model, request, conditioning)
            # All steps at once and ahead of the loop: a host float copied to the GPU inside it would be a sync.
            times = torch.tensor(request.schedule.timesteps, device=model.device, dtype=model.exact_dtype)
            self._time_embeddings = model.time_embedder(times)
            self.places = latent_places(request.grid, side, model.device)

    def velocity(
        self, x_t: Float[Tensor, "tokens channels"], step: int, branch: str
    ) -> Float[Tensor, "tokens channels"]:
        """The velocity of ``branch`` at ``x_t`` and ``step``, in the network's dtype."""
        return self.velocity_at(x_t, self.time_embedding(step), branch)

    def time_embedding(self, step: int) -> Float[Tensor, "1 hidden"]:
        """The embedding of the time at which ``step`` starts: a view, in the network's dtype."""
        return self._time_embeddings[step : step + 1]

    def velocity_at(
        self, x_t: Float[Tensor, "tokens channels"], time_embedding: Float[Tensor, "1 hidden"], branch: str
    ) -> Float[Tensor, "tokens channels"]:
        """As :meth:`velocity`, from tensors alone: what a CUDA graph can be recorded of."""
        with torch.autocast(self.model.device.type, enabled=False):
            return self.model.velocity(x_t, time_embedding, self.places, self.contexts[branch])


def initial_noise(request: DenoiseRequest, channels: int, rank: int = 0) -> Float[Tensor, "tokens channels"]:
    """Standard normal ``x_0`` in float32 on the CPU. Rank 0's is the request's noise; every other rank's differs.

    Equal noise everywhere would hide a loop that forgets to share it.
    """
    generator = torch.Generator().manual_seed(request.seed * 1000003 + rank & 2**63 - 1)
    return torch.randn(request.tokens, channels, generator=generator)
