"""The sizes of a Bagel model."""

from __future__ import annotations

from dataclasses import dataclass

from verify.errors import BadInput


@dataclass(frozen=True)
class BagelConfig:
    """Geometry of the mixture-of-transformers decoder and of its latent interface.

    Attributes:
        hidden: width of the residual stream.
        layers: decoder layers.
        heads: query heads.
        kv_heads: key and value heads; divides ``heads``.
        head_dim: channels a head; even.
        mlp: inner width of the gated MLP.
        vocab: rows of the token embedding.
        latent_channels: channels of a latent token (16 VAE channels times 2 x 2 for BAGEL-7B-MoT).
        latent_side: latent positions a side that have a position embedding.
        prompt_tokens: length of the prompt that contexts are made from.
        bos, eos, image_start, image_end: marker token ids.
        rope_theta: base of the rotary embedding.
        norm_eps: added to the mean square in every RMSNorm.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    latent_channels: int
    latent_side: int
    prompt_tokens: int
    bos: int
    eos: int
    image_start: int
    image_end: int
    rope_theta: float = 1e6
    norm_eps: float = 1e-6


@dataclass(frozen=True)
class Preset:
    """A model size, and the image side in pixels that a request gets unless it says otherwise."""

    config: BagelConfig
    side: int


# fmt: off
PRESETS = {
    "tiny": Preset(BagelConfig(
        hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp=128, vocab=256, latent_channels=16, latent_side=16,
        prompt_tokens=12, bos=252, eos=253, image_start=254, image_end=255), side=128),
    "small": Preset(BagelConfig(
        hidden=512, layers=8, heads=8, kv_heads=2, head_dim=64, mlp=1536, vocab=2048, latent_channels=64,
        latent_side=64, prompt_tokens=24, bos=2044, eos=2045, image_start=2046, image_end=2047), side=256),
    # BAGEL-7B-MoT: llm_config.json and ae of the published checkpoint; marker ids of Qwen2.5's tokenizer.
    "7b": Preset(BagelConfig(
        hidden=3584, layers=28, heads=28, kv_heads=4, head_dim=128, mlp=18944, vocab=152064, latent_channels=64,
        latent_side=64, prompt_tokens=64, bos=151644, eos=151645, image_start=151652, image_end=151653), side=1024),
}
# fmt: on


def preset(name: str) -> Preset:
    """The preset called ``name``.

    Raises:
        BadInput: there is none.
    """
    if name not in PRESETS:
        raise BadInput.of("preset", name, f"one of {', '.join(PRESETS)}", "choose one")
    return PRESETS[name]
