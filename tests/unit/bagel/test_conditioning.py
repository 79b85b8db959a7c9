"""What a user gives to condition an image on: what is read of it, what each branch then reads, and what is refused."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers_made import write_tokenizer

from verify.bagel.conditioning import ConditionImage, Conditioning, read_conditioning
from verify.bagel.config import PRESETS
from verify.bagel.context import build_contexts, condition_latents, prefill_text, prompt_tokens
from verify.bagel.denoiser import BagelDenoiser, initial_noise
from verify.bagel.model import BagelModel, Context
from verify.bagel.options import BagelOptions
from verify.bagel.weights import build_model
from verify.bits import same_bits
from verify.errors import BadInput
from verify.request import DenoiseRequest

FIXTURE = Path(__file__).parents[3] / "fixtures" / "tiny_checkpoint"
CPU = torch.device("cpu")
TINY = PRESETS["tiny"].config
REQUEST = DenoiseRequest(height=64, width=96, cfg_img_scale=1.5)
SYSTEM, PROMPT, THOUGHT = (7, 8), (3, 4, 5), (9, 10, 11, 12)


@cache
def tiny() -> BagelModel:
    return build_model(TINY, torch.bfloat16, CPU, seed=1)


pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint with a tokenizer."""
    copied = Path(shutil.copytree(FIXTURE, tmp_path / "checkpoint"))
    write_tokenizer(copied)
    return copied


def image(rows: int = 2, columns: int = 3, vit: int | None = None, seed: int = 0) -> ConditionImage:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(rows * columns, TINY.latent_channels, generator=generator)
    tokens = None if vit is None else torch.randn(vit, TINY.hidden, generator=generator)
    return ConditionImage(latents, (rows, columns), tokens)


def same(a: Context, b: Context) -> bool:
    return same_bits(a.keys, b.keys) and same_bits(a.values, b.values) and a.position == b.position


def rows_and_positions(conditioning: Conditioning, request: DenoiseRequest = REQUEST) -> dict[str, tuple[int, int]]:
    contexts = build_contexts(tiny(), request, conditioning)
    return {branch: (context.keys.shape[2], context.position) for branch, context in contexts.items()}


# What each branch reads


def test_three_branches_without_an_image() -> None:
    """Bagel's text-to-image with an image scale above 1: img is gen, bit for bit, and text is nothing."""
    conditioning = Conditioning(images=(), prompt=PROMPT)
    contexts = build_contexts(tiny(), REQUEST, conditioning)
    assert list(contexts) == ["gen", "text", "img"]
    assert same(contexts["img"], contexts["gen"])
    assert rows_and_positions(conditioning) == {"gen": (5, 5), "text": (0, 0), "img": (5, 5)}
    denoiser = BagelDenoiser(tiny(), REQUEST, conditioning)
    x_t = initial_noise(REQUEST, TINY.latent_channels)
    assert same_bits(denoiser.velocity(x_t, 0, "img"), denoiser.velocity(x_t, 0, "gen"))
    assert not same_bits(denoiser.velocity(x_t, 0, "text"), denoiser.velocity(x_t, 0, "gen"))


def test_editing_reads_latents_and_then_vit_tokens_and_takes_two_positions() -> None:
    conditioning = Conditioning(images=(image(vit=9),), prompt=PROMPT)
    read_once, read_twice = 2 * 3 + 2, 2 * 3 + 2 + 9 + 2
    assert rows_and_positions(conditioning) == {
        "gen": (read_twice + 5, 2 + 5),
        "text": (read_twice, 2),
        "img": (5, 5),
    }
    without = Conditioning(images=(image(),), prompt=PROMPT)
    assert rows_and_positions(without)["text"] == (read_once, 1)
    shown, latents_only = (build_contexts(tiny(), REQUEST, c)["text"] for c in (conditioning, without))
    assert same_bits(shown.keys[:, :, :read_once], latents_only.keys)


def test_vit_tokens_see_each_other_and_go_through_the_understanding_expert() -> None:
    one, other = image(vit=9), image(vit=9)
    assert one.vit_tokens is not None and other.vit_tokens is not None
    other.vit_tokens[-1] += 1
    first, second = (build_contexts(tiny(), REQUEST, Conditioning(images=(i,)))["text"] for i in (one, other))
    assert same_bits(first.keys[:, :, :8], second.keys[:, :, :8])
    assert not any(same_bits(first.keys[1, :, row], second.keys[1, :, row]) for row in range(8, 19))


def test_only_gen_reads_the_thought_and_every_branch_the_system_text() -> None:
    conditioning = Conditioning(SYSTEM, (image(),), PROMPT, THOUGHT)
    assert rows_and_positions(conditioning) == {
        "gen": (4 + 8 + 5 + 6, 4 + 1 + 5 + 6),
        "text": (4 + 8, 4 + 1),
        "img": (4 + 5, 4 + 5),
    }
    contexts = build_contexts(tiny(), REQUEST, conditioning)
    without = build_contexts(tiny(), REQUEST, Conditioning(SYSTEM, (image(),), PROMPT))
    assert same(contexts["text"], without["text"]) and same(contexts["img"], without["img"])
    assert same_bits(contexts["gen"].keys[:, :, :17], without["gen"].keys)
    # One text after another, each with its own markers.
    marked = [torch.tensor([TINY.bos, *text, TINY.eos]) for text in (PROMPT, THOUGHT)]
    again = prefill_text(tiny(), prefill_text(tiny(), contexts["text"], marked[0]), marked[1])
    assert same(again, contexts["gen"])


def test_several_images_come_in_order() -> None:
    conditioning = Conditioning(images=(image(), image(1, 4, seed=1)), prompt=PROMPT)
    assert rows_and_positions(conditioning)["text"] == (8 + 6, 2)
    swapped = Conditioning(images=conditioning.images[::-1] if conditioning.images else (), prompt=PROMPT)
    assert not same(*(build_contexts(tiny(), REQUEST, c)["text"] for c in (conditioning, swapped)))


def test_what_is_left_out_is_seeded() -> None:
    seeded = build_contexts(tiny(), REQUEST)
    explicit = Conditioning(
        images=(ConditionImage(condition_latents(tiny(), REQUEST), REQUEST.grid),),
        prompt=tuple(prompt_tokens(tiny(), REQUEST.seed).tolist()[1:-1]),
    )
    assert all(same(context, seeded[branch]) for branch, context in build_contexts(tiny(), REQUEST, explicit).items())


# What is read


def test_texts_are_split_by_the_checkpoints_tokenizer(folder: Path) -> None:
    asked = BagelOptions(prompt="a cat on the moon", think="paint it red", system="first think")
    found = read_conditioning(asked, str(folder), TINY)
    assert found == Conditioning((18, 19), (), (10, 11, 12, 13, 14), (15, 16, 17))
    assert found.images == ()
    assert found.notes() == ("conditioned on system text of 2 tokens, prompt of 5 tokens, thought of 3 tokens",)


def test_ids_need_no_tokenizer() -> None:
    assert read_conditioning(BagelOptions(prompt_ids=(3, 255)), None, TINY).prompt == (3, 255)


def test_nothing_asked_is_nothing_read() -> None:
    assert read_conditioning(BagelOptions(), None, TINY) == Conditioning()
    assert read_conditioning(BagelOptions(), None, TINY).images is None
    assert read_conditioning(BagelOptions(condition=("none",)), None, TINY).images == ()
    assert read_conditioning(BagelOptions(prompt_ids=(1,), condition=("seeded",)), None, TINY).images is None


def test_condition_images_are_read(tmp_path: Path) -> None:
    latents, vit = torch.randn(2, 3, TINY.latent_channels).bfloat16(), torch.randn(5, TINY.hidden)
    save_file({"latents": latents, "vit_tokens": vit}, tmp_path / "a.safetensors")
    save_file({"latents": latents}, tmp_path / "b.safetensors")
    asked = BagelOptions(condition=tuple(str(tmp_path / f"{name}.safetensors") for name in "ab"))
    found = read_conditioning(asked, None, TINY)
    assert found.images is not None
    first, second = found.images
    assert first.grid == second.grid == (2, 3)
    assert same_bits(first.latents, latents.float().flatten(0, 1))
    assert first.vit_tokens is not None and same_bits(first.vit_tokens, vit)
    assert second.vit_tokens is None
    assert "2 x 3 latent tokens and 5 ViT tokens, condition image of 2 x 3" in found.notes()[0]


# What is refused


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompt": "a", "prompt_ids": (1,)}, "--prompt and --prompt-ids were both given"),
        ({"prompt_ids": ()}, "--prompt-ids is '', expected at least one token"),
        ({"prompt_ids": (3, 256)}, "a token id of --prompt-ids is 256, expected ids from 0 to 255"),
        ({"prompt_ids": (-1,)}, "a token id of --prompt-ids is -1"),
        ({"think": ""}, "--think is '', expected at least one token"),
    ],
)
def test_texts_that_cannot_be_read(folder: Path, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as refused:
        read_conditioning(BagelOptions(**asked), str(folder), TINY)
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)


def test_a_tokenizer_that_cannot_be_used(folder: Path) -> None:
    asked = BagelOptions(prompt="a cat")
    with pytest.raises(BadInput, match="--prompt is 'a cat', expected a checkpoint whose tokenizer"):
        read_conditioning(asked, None, TINY)
    write_tokenizer(folder, first=300)
    with pytest.raises(BadInput, match="a token id of --prompt is 300, expected ids from 0 to 255"):
        read_conditioning(asked, str(folder), TINY)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match="a tokenizer of the tokenizers library"):
        read_conditioning(asked, str(folder), TINY)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match="No such file"):
        read_conditioning(asked, str(folder), TINY)


C = TINY.latent_channels


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "without it"),
        ({"latents": torch.zeros(6, C)}, r"(6, 16)"),
        ({"latents": torch.zeros(2, 3, C + 1)}, r"(2, 3, 17)"),
        ({"latents": torch.zeros(2, 17, C)}, "at most 16 rows and columns"),
        ({"latents": torch.zeros(0, 3, C)}, r"(0, 3, 16)"),
        ({"latents": torch.full((2, 3, C), float("nan"))}, "not finite everywhere"),
        ({"latents": torch.zeros(2, 3, C, dtype=torch.int32)}, "I32"),
        ({"latents": torch.zeros(2, 3, C), "vit_tokens": torch.zeros(4, 3)}, r"vit_tokens of (tokens, 64)"),
    ],
)
def test_condition_files_that_cannot_be_used(tmp_path: Path, tensors: dict[str, torch.Tensor], said: str) -> None:
    save_file(tensors, tmp_path / "c.safetensors")
    with pytest.raises(BadInput) as refused:
        read_conditioning(BagelOptions(condition=(str(tmp_path / "c.safetensors"),)), None, TINY)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_condition_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "c.safetensors").write_text("no")
    for name, said in (("c", "a whole safetensors file"), ("absent", "No such file")):
        with pytest.raises(BadInput, match=f"--condition is .*{said}"):
            read_conditioning(BagelOptions(condition=(str(tmp_path / f"{name}.safetensors"),)), None, TINY)
