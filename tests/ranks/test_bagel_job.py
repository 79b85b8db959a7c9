"""The real job in small: a checkpoint with a tokenizer, a prompt, a thought, an image to edit; on 2 and 3 ranks."""

from __future__ import annotations

import base64
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import write_decoder
from safetensors.torch import load_file, save_file
from tokenizers_made import write_tokenizer

from verify import run
from verify.bagel.config import PRESETS
from verify.errors import BadInput
from verify.request import DenoiseRequest
from verify.verdict import Verdict

FIXTURE = Path(__file__).parents[2] / "fixtures" / "tiny_checkpoint"
TINY = PRESETS["tiny"].config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with a tokenizer and an image encoder's tensors, and the latents of an image to edit."""
    tmp_path = tmp_path_factory.mktemp("checkpoint")
    copied = Path(shutil.copytree(FIXTURE, tmp_path / "checkpoint"))
    write_tokenizer(copied)
    write_decoder(copied)
    encoder = {"vit_model.vision_model.post_layernorm.weight": torch.ones(8), "connector.fc1.bias": torch.ones(4)}
    save_file(load_file(copied / "ema.safetensors") | encoder, tmp_path / "ema.safetensors")
    shutil.move(tmp_path / "ema.safetensors", copied / "ema.safetensors")
    generator = torch.Generator().manual_seed(0)
    shown = {
        "latents": torch.randn(3, 5, TINY.latent_channels, generator=generator),
        "vit_tokens": torch.randn(7, TINY.hidden, generator=generator),
    }
    save_file(shown, copied / "shown.safetensors")
    return copied


@pytest.mark.parametrize("img_scale", [1.0, 1.5], ids=["2 ranks", "3 ranks"])
@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"prompt": "a cat on the moon"}, "prompt of 5 tokens"),
        (
            {"prompt": "paint it red", "condition": ("shown.safetensors",)},
            "prompt of 3 tokens, condition image of 3 x 5 latent tokens and 7 ViT tokens",
        ),
        ({"prompt": "a cat", "think": "first think"}, "prompt of 2 tokens, thought of 2 tokens"),
    ],
    ids=["prompt", "edit", "thought"],
)
def test_a_job_of_a_checkpoint(folder: Path, asked: dict[str, Any], told: str, img_scale: float) -> None:
    if "condition" in asked:
        asked = asked | {"condition": tuple(str(folder / name) for name in asked["condition"])}
    request = DenoiseRequest(num_timesteps=5, cfg_interval=(0.0, 1.0), cfg_img_scale=img_scale)
    picture = folder / "picture.png"
    report = run(request, checkpoint=str(folder), image=str(picture), **asked)
    assert {(f.loop, f.name): f.summary for f in report.findings if f.verdict is Verdict.FAIL} == {}
    assert report.verdict is Verdict.PASS, [f.summary for f in report.findings if f.verdict is not Verdict.PASS]
    assert report.world_size == (2 if img_scale == 1.0 else 3)
    digest = hashlib.sha256(picture.read_bytes()).hexdigest()
    ranks = report.world_size
    drawn = f"picture of broadcast in {picture}: the same file on all {ranks} ranks, SHA-256 {digest}"
    assert report.notes[0] == drawn
    assert report.picture is not None and report.picture["sha256"] == [digest] * ranks
    assert base64.b64encode(picture.read_bytes()).decode() in report.to_html()
    assert report.notes[1].startswith(f"weights: {folder}, ema.safetensors; SHA-256 of the tensors used ")
    assert report.notes[2] == f"conditioned on {told}"


def test_the_picture_of_seeded_weights_is_noise_and_says_so(tmp_path: Path) -> None:
    report = run(DenoiseRequest(num_timesteps=3), image=str(tmp_path / "noise.png"))
    assert any("seeded, so the picture is noise" in note for note in report.notes)
    assert (tmp_path / "noise.png").read_bytes().startswith(b"\x89PNG")


def test_ranks_that_end_apart_draw_other_pictures(tmp_path: Path) -> None:
    """A loop without the broadcast of the noise."""
    loop = f"{Path(__file__).parents[1] / 'meta' / 'broken_loops.py'}:no_initial_broadcast"
    report = run(DenoiseRequest(num_timesteps=3), loop=loop, image=str(tmp_path / "a.png"), expect="any")
    assert report.verdict is Verdict.FAIL
    assert any("rank 0's; another file on rank 1" in note for note in report.notes), report.notes


@pytest.mark.parametrize("place", ["absent/a.png", "\0.png"])
def test_a_picture_that_cannot_be_written_is_refused_first(tmp_path: Path, place: str) -> None:
    with pytest.raises(BadInput, match="--image is"):
        run(DenoiseRequest(num_timesteps=3), image=str(tmp_path / place))
