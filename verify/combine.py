"""Classifier-free guidance: branch velocities to one velocity."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.linalg import vector_norm

# Keeps the renorm factor finite where the guided velocity vanishes. In bf16 and fp16 it only acts on norms near zero.
EPS = 1e-8


def combine_cfg(
    gen: Float[Tensor, "tokens channels"],
    text: Float[Tensor, "tokens channels"],
    img: Float[Tensor, "tokens channels"] | None,
    text_scale: float,
    img_scale: float,
    renorm_type: str,
    renorm_min: float,
) -> Float[Tensor, "tokens channels"]:
    """Guides ``gen`` away from ``text`` and, where given, from ``img``, then shrinks the result to gen's norm.

    Guidance extrapolates from a branch that lacks a condition: ``text + text_scale * (gen - text)``, and from there
    ``img + img_scale * (guided - img)``. The renorm multiplies by ``|gen| / (|guided| + 1e-8)``, clamped to
    ``[renorm_min, 1]``:

    - ``global``: one norm over all tokens and channels, after both guidances;
    - ``channel``: one norm a token, after both guidances;
    - ``text_channel``: one norm a token, after the text guidance and before the image guidance.

    Source: Bagel, ``modeling/bagel/bagel.py``, ``_forward_flow``. Norms are taken in the dtype of the velocities, as
    there (autocast may lift them to float32: then the result is float32, as there). Pure: nothing is written in place.

    Args:
        gen: velocity with full conditioning.
        text: velocity with the text dropped.
        img: velocity with the image dropped, or None for text guidance alone.
        text_scale: at least 1.
        img_scale: at least 1; unused when ``img`` is None.
        renorm_type: ``global``, ``channel`` or ``text_channel``.
        renorm_min: from 0 to 1.

    Raises:
        ValueError: an unknown ``renorm_type``, or branches whose shapes or dtypes differ.
    """
    if renorm_type not in ("global", "channel", "text_channel"):
        raise ValueError(f"renorm_type is {renorm_type!r}, expected global, channel or text_channel")
    for name, branch in (("text", text), ("img", img)):
        if branch is not None and (branch.shape, branch.dtype) != (gen.shape, gen.dtype):
            raise ValueError(
                f"{name} is {branch.dtype} {tuple(branch.shape)}, gen is {gen.dtype} {tuple(gen.shape)}; "
                "the branches must agree"
            )
    text_guided = text + text_scale * (gen - text)
    if renorm_type == "text_channel":
        text_guided = text_guided * _renorm_factor(gen, text_guided, per_token=True, renorm_min=renorm_min)
    guided = text_guided if img is None else img + img_scale * (text_guided - img)
    if renorm_type == "text_channel":
        return guided
    return guided * _renorm_factor(gen, guided, per_token=renorm_type == "channel", renorm_min=renorm_min)


def _renorm_factor(gen: Tensor, guided: Tensor, *, per_token: bool, renorm_min: float) -> Tensor:
    """What brings ``guided`` to gen's norm: ``(tokens, 1)`` if ``per_token``, else 0-d."""
    dim = -1 if per_token else None
    norm_gen: Tensor = vector_norm(gen, dim=dim, keepdim=per_token)
    norm_guided: Tensor = vector_norm(guided, dim=dim, keepdim=per_token)
    return (norm_gen / (norm_guided + EPS)).clamp(min=renorm_min, max=1.0)
