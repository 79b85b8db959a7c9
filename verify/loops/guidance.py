"""Combines the branch velocities as a request asks. Every loop uses it."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from verify.combine import combine_cfg
from verify.request import DenoiseRequest


def guide(
    request: DenoiseRequest, velocities: Sequence[Float[Tensor, "tokens channels"]]
) -> Float[Tensor, "tokens channels"]:
    """The guided velocity. ``velocities`` are in the order of ``request.branches``."""
    gen, text, *rest = velocities
    return combine_cfg(
        gen,
        text,
        rest[0] if rest else None,
        request.cfg_text_scale,
        request.cfg_img_scale,
        request.cfg_renorm_type,
        request.cfg_renorm_min,
    )
