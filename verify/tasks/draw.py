"""The picture that a final latent stands for, drawn on the rank that the latent comes from."""

from __future__ import annotations

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor

from verify.ranks.rank import Rank
from verify.targets.finding import find_target
from verify.tasks.stage import Plan


def draw(rank: Rank, plan: Plan, final: Float[Tensor, "tokens channels"]) -> tuple[str, bytes, str]:
    """SHA-256 of the picture as a PNG file; on rank 0 the file itself; and what the target says of it."""
    rank.status.activity("drawing the picture")
    rank.memo.pop("prepared", None)  # The network and its graphs are done with, and the decoder wants their memory.
    with torch.no_grad():
        png, note = find_target(plan.target).picture(plan.request, plan.options, final.to(rank.device))  # type: ignore[attr-defined]
    return hashlib.sha256(png).hexdigest(), png if rank.rank == 0 else b"", note
