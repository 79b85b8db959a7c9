"""What an image is conditioned on, read from what the user gives: texts, token ids, files of latents."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from verify.bagel.config import BagelConfig
from verify.bagel.options import NONE, SEEDED, BagelOptions
from verify.bagel.tensor_files import DTYPES, TensorFiles, regular_file
from verify.errors import BadInput

TOKENIZER_FILE = "tokenizer.json"
LATENTS, VIT_TOKENS = "latents", "vit_tokens"


@dataclass(frozen=True)
class ConditionImage:
    """An image that the model has been shown.

    Attributes:
        latents: of the VAE, one row a latent token, row by row.
        grid: rows and columns of latent tokens.
        vit_tokens: what the image encoder and its connector make of it; None where nothing is known of them.
    """

    latents: Float[Tensor, "n channels"]
    grid: tuple[int, int]
    vit_tokens: Float[Tensor, "m hidden"] | None = None


@dataclass(frozen=True)
class Conditioning:
    """Texts are token ids without the markers around them.

    Attributes:
        system: text in front of everything.
        images: condition images; None for a seeded one where the request evaluates the ``img`` branch.
        prompt: the prompt; None for a seeded one.
        thought: text between the prompt and the image.
    """

    system: tuple[int, ...] | None = None
    images: tuple[ConditionImage, ...] | None = field(default=None, compare=False)
    prompt: tuple[int, ...] | None = None
    thought: tuple[int, ...] | None = None

    def notes(self) -> tuple[str, ...]:
        """What the reader of a report must know of it."""
        texts = {"system text": self.system, "prompt": self.prompt, "thought": self.thought}
        told = [f"{name} of {len(ids)} tokens" for name, ids in texts.items() if ids is not None]
        for image in self.images or ():
            rows, columns = image.grid
            vit = "no ViT tokens" if image.vit_tokens is None else f"{len(image.vit_tokens)} ViT tokens"
            told.append(f"condition image of {rows} x {columns} latent tokens and {vit}")
        return (f"conditioned on {', '.join(told)}",) if told else ()


def read_conditioning(options: BagelOptions, checkpoint: str | None, config: BagelConfig) -> Conditioning:
    """What the options ask for.

    Raises:
        BadInput: a file cannot be used, or a text cannot be read by the model.
    """
    if options.prompt is not None and options.prompt_ids is not None:
        raise BadInput("--prompt and --prompt-ids were both given, expected one of them; leave one out")
    own = options.prompt is not None or options.prompt_ids is not None
    texts = {"--system": options.system, "--prompt": options.prompt, "--think": options.think}
    ids = {flag: None if text is None else _tokens(flag, text, checkpoint, config) for flag, text in texts.items()}
    if options.prompt_ids is not None:
        ids["--prompt"] = _checked("--prompt-ids", options.prompt_ids, config)
    return Conditioning(ids["--system"], _images(options.condition or (), own, config), ids["--prompt"], ids["--think"])


def _tokens(flag: str, text: str, checkpoint: str | None, config: BagelConfig) -> tuple[int, ...]:
    """The token ids of a text, by the checkpoint's own tokenizer."""
    if checkpoint is None:
        expected = f"a checkpoint whose {TOKENIZER_FILE} splits it"
        raise BadInput.of(flag, text, expected, "give --checkpoint, or token ids by --prompt-ids")
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise BadInput.of(flag, text, "package tokenizers", "install it: pip install tokenizers") from None
    path = regular_file(Path(checkpoint) / TOKENIZER_FILE)
    try:
        ids = Tokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids
    except Exception as error:  # The library raises Exception itself.
        raise BadInput.of("tokenizer", str(path), "a tokenizer of the tokenizers library", str(error)) from None
    return _checked(flag, ids, config)


def _checked(flag: str, ids: Sequence[int], config: BagelConfig) -> tuple[int, ...]:
    if not ids:
        raise BadInput.of(flag, "", "at least one token", "give some text, or leave the option out")
    for token in ids:
        if not 0 <= token < config.vocab:
            expected = f"ids from 0 to {config.vocab - 1}, the model's vocabulary"
            raise BadInput.of(f"a token id of {flag}", token, expected, "use the model's own tokenizer")
    return tuple(ids)


def _images(named: Sequence[str], own_prompt: bool, config: BagelConfig) -> tuple[ConditionImage, ...] | None:
    """The condition images; None for the seeded one."""
    if not named:
        return () if own_prompt else None
    if len(named) == 1 and named[0] in (SEEDED, NONE):
        return None if named[0] == SEEDED else ()
    return tuple(_image(Path(name), config) for name in named)


def _image(path: Path, config: BagelConfig) -> ConditionImage:
    with ExitStack() as stack:
        tensors = TensorFiles([regular_file(path, "--condition")], stack, "--condition")
        channels, side = config.latent_channels, config.latent_side
        shape = tensors.shapes.get(LATENTS, ())
        if len(shape) != 3 or shape[2] != channels or not min(shape) >= 1 or max(shape[:2]) > side:
            expected = f"a tensor {LATENTS} of (rows, columns, {channels}), at most {side} rows and columns"
            raise BadInput.of(f"--condition {str(path)!r}", shape or "without it", expected, "save one")
        tokens = tensors.shapes.get(VIT_TOKENS)
        if tokens is not None and (len(tokens) != 2 or tokens[1] != config.hidden or not tokens[0]):
            expected = f"tensor {VIT_TOKENS} of (tokens, {config.hidden})"
            raise BadInput.of(f"--condition {str(path)!r}", tokens, expected, "save it so, or leave it out")
        latents = _numbers(tensors, path, LATENTS).flatten(0, 1)
        vit = None if tokens is None else _numbers(tensors, path, VIT_TOKENS)
        return ConditionImage(latents, (shape[0], shape[1]), vit)


def _numbers(tensors: TensorFiles, path: Path, name: str) -> Tensor:
    """One tensor in float32, copied out of the file."""
    if tensors.dtypes[name] not in DTYPES:
        raise BadInput.of(f"dtype of {name} in {str(path)!r}", tensors.dtypes[name], ", ".join(DTYPES), "convert it")
    numbers = tensors.read(name).clone().to(torch.float32)
    if not numbers.isfinite().all():
        raise BadInput.of(f"{name} in {str(path)!r}", "not finite everywhere", "finite numbers", "save it again")
    return numbers
