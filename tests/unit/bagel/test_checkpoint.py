"""The published layout, read and written: names and bits."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published_folder import write_folder
from safetensors.torch import load_file, save_file
from spoilt_checkpoints import (
    CONFIG,
    EMBEDDING,
    FIXTURE,
    POSITIONS,
    Q_PROJ,
    TINY,
    WEIGHTS,
    element,
    parameters,
    shard,
    tensors_changed,
)

from verify.bagel import checkpoint
from verify.bagel.checkpoint import config_of, load_model, main, save_checkpoint, survey, weights_digest
from verify.bagel.config import PRESETS
from verify.bagel.denoiser import BagelDenoiser, initial_noise
from verify.bagel.model import BagelModel
from verify.bagel.published import config_values, published_name, read_config, size_of
from verify.bagel.weights import build_model
from verify.bits import same_bits
from verify.errors import BadInput
from verify.request import DenoiseRequest

CPU = torch.device("cpu")


# Names


def test_names_are_those_of_the_published_file() -> None:
    """Written out by hand from Bagel's modules (``qwen2_navit.py``, ``bagel.py``, ``modeling_utils.py``)."""
    attention = [f"{p}.{kind}" for p in ("q_proj{}", "k_proj{}", "v_proj{}") for kind in ("weight", "bias")]
    attention += ["o_proj{}.weight", "q_norm{}.weight", "k_norm{}.weight"]
    layer = [f"self_attn.{name}" for name in attention]
    layer += [f"mlp{{}}.{name}_proj.weight" for name in ("gate", "up", "down")]
    layer += ["input_layernorm{}.weight", "post_attention_layernorm{}.weight"]
    expected = {EMBEDDING, POSITIONS, "vae2llm.weight", "vae2llm.bias", "llm2vae.weight", "llm2vae.bias"}
    expected |= {f"time_embedder.mlp.{place}.{kind}" for place in (0, 2) for kind in ("weight", "bias")}
    for suffix in ("", "_moe_gen"):
        expected.add(f"language_model.model.norm{suffix}.weight")
        for number in range(TINY.layers):
            expected |= {f"language_model.model.layers.{number}.{name.format(suffix)}" for name in layer}
    with torch.device("meta"):
        names = [published_name(name) for name, _ in BagelModel(TINY).named_parameters()]
    assert len(names) == len(set(names)) == 68
    assert set(names) == expected == set(load_file(FIXTURE / WEIGHTS))


@pytest.mark.parametrize(
    ("ours", "published"),
    [
        ("layers.3.und.self_attn.q_proj.weight", "language_model.model.layers.3.self_attn.q_proj.weight"),
        ("layers.3.gen.self_attn.q_proj.weight", "language_model.model.layers.3.self_attn.q_proj_moe_gen.weight"),
        ("layers.27.gen.mlp.gate_proj.weight", "language_model.model.layers.27.mlp_moe_gen.gate_proj.weight"),
        ("layers.0.gen.input_layernorm.weight", "language_model.model.layers.0.input_layernorm_moe_gen.weight"),
        ("norm.und.weight", "language_model.model.norm.weight"),
        ("norm.gen.weight", "language_model.model.norm_moe_gen.weight"),
        ("time_embedder.mlp.2.bias", "time_embedder.mlp.2.bias"),
    ],
)
def test_one_name(ours: str, published: str) -> None:
    assert published_name(ours) == published


def test_the_published_configuration_gives_the_7b_preset(tmp_path: Path) -> None:
    """Qwen2.5-7B's configuration, with keys that this model does not need, and the shapes of the published tensors."""
    (tmp_path / CONFIG).write_text(
        json.dumps(
            {
                "architectures": ["Qwen2ForCausalLM"],
                "attention_dropout": 0.0,
                "bos_token_id": 151643,
                "eos_token_id": 151645,
                "hidden_act": "silu",
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "max_position_embeddings": 32768,
                "model_type": "qwen2",
                "num_attention_heads": 28,
                "num_hidden_layers": 28,
                "num_key_value_heads": 4,
                "rms_norm_eps": 1e-06,
                "rope_theta": 1000000.0,
                "sliding_window": 131072,
                "tie_word_embeddings": False,
                "use_sliding_window": False,
                "vocab_size": 152064,
            }
        )
    )
    with torch.device("meta"):
        model = BagelModel(PRESETS["7b"].config)
    shapes = {published_name(name): tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes[POSITIONS] == (64 * 64, 3584)
    assert read_config(tmp_path, shapes) == PRESETS["7b"].config


# Bits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_round_trip_keeps_every_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    model = build_model(TINY, dtype, CPU, seed=5)
    save_checkpoint(model, tmp_path / "new" / "folder")
    loaded = load_model(tmp_path / "new" / "folder", dtype, CPU)
    assert loaded.config == model.config
    assert parameters(loaded).keys() == parameters(model).keys()
    for name, parameter in parameters(model).items():
        assert same_bits(parameters(loaded)[name], parameter), name
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == [WEIGHTS, CONFIG]


@pytest.mark.parametrize("name", list(PRESETS))
def test_configuration_round_trip(tmp_path: Path, name: str) -> None:
    config = PRESETS[name].config
    (tmp_path / CONFIG).write_text(json.dumps(config_values(config)))
    with torch.device("meta"):
        shapes = {published_name(n): tuple(p.shape) for n, p in BagelModel(config).named_parameters()}
    assert read_config(tmp_path, shapes) == config


def test_weights_are_cast_to_the_dtype_asked_for(built: BagelModel) -> None:
    loaded = load_model(FIXTURE, torch.float32, CPU)
    for name, parameter in parameters(built).items():
        assert same_bits(parameters(loaded)[name], parameter.float()), name


@pytest.mark.parametrize("img_scale", [1.0, 1.5])
def test_the_loaded_model_gives_the_velocities_of_the_built_one(built: BagelModel, img_scale: float) -> None:
    request = DenoiseRequest(cfg_img_scale=img_scale)
    first, second = (BagelDenoiser(model, request) for model in (built, load_model(FIXTURE, torch.bfloat16, CPU)))
    x_t = initial_noise(request, TINY.latent_channels)
    with torch.no_grad():
        for branch in request.branches:
            for step in (0, request.schedule.steps - 1):
                assert same_bits(first.velocity(x_t, step, branch), second.velocity(x_t, step, branch))


@pytest.mark.gpu
def test_weights_reach_a_gpu_bit_by_bit_and_are_judged_there(folder: Path, built: BagelModel) -> None:
    cuda = torch.device("cuda")
    loaded = load_model(folder, torch.bfloat16, cuda)
    for name, parameter in parameters(built).items():
        assert parameters(loaded)[name].device.type == "cuda"
        assert same_bits(parameters(loaded)[name].cpu(), parameter), name
    for place, value in ((0, float("nan")), (5, float("inf")), (63, -float("inf"))):
        spoilt = copy.deepcopy(built)
        spoilt.vae2llm.bias[place] = value
        save_checkpoint(spoilt, folder)
        with pytest.raises(BadInput, match=rf"vae2llm.bias is '{value} at index \({place},\)'"):
            load_model(folder, torch.bfloat16, cuda)


def test_the_fixture_is_what_its_command_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 0
    assert str(tmp_path / WEIGHTS) in capsys.readouterr().out
    ours, fixture = load_file(tmp_path / WEIGHTS), load_file(FIXTURE / WEIGHTS)
    assert ours.keys() == fixture.keys()
    assert [name for name in ours if not same_bits(ours[name], fixture[name])] == []
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / name).read_bytes() == (FIXTURE / name).read_bytes(), name
    assert sum(file.stat().st_size for file in FIXTURE.iterdir()) < 1 << 20


def test_the_fixture_is_the_tiny_preset() -> None:
    found = survey(FIXTURE)
    assert config_of(FIXTURE) == found.config == TINY
    assert (found.used, found.ignored) == (68, 0)


def test_the_command_refuses_a_folder_it_cannot_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "file")]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "the output folder is" in captured.err
    assert not captured.out


# Other layouts


def test_parts_that_the_model_does_not_have_are_ignored_and_counted(folder: Path, built: BagelModel) -> None:
    tensors = load_file(folder / WEIGHTS)
    extra = {
        "vit_model.vision_model.embeddings.position_ids": torch.arange(4),
        "vit_model.vision_model.post_layernorm.weight": torch.full((8,), float("nan")),
        "connector.fc1.weight": torch.ones(2, 2),
        "vit_pos_embed.pos_embed": torch.ones(4, 8),
        "language_model.lm_head.weight": torch.ones(256, 64),
    }
    save_file(tensors | extra, folder / WEIGHTS)
    found = survey(folder)
    assert (found.used, found.ignored) == (68, 5)
    loaded = load_model(folder, torch.bfloat16, CPU)
    assert all(same_bits(parameters(loaded)[name], parameter) for name, parameter in parameters(built).items())


def test_links_into_a_cache_are_followed(tmp_path: Path, folder: Path) -> None:
    """Download caches keep a folder of symbolic links to files elsewhere."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(file)
    (tmp_path / "link").symlink_to(snapshot)
    assert survey(tmp_path / "link").config == TINY


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_model_weights_alone_are_taken(folder: Path, built: BagelModel, name: str) -> None:
    if name.endswith(".json"):
        shard(folder, name)
    else:
        (folder / WEIGHTS).rename(folder / name)
    loaded = load_model(folder, torch.bfloat16, CPU)
    assert all(same_bits(parameters(loaded)[name], parameter) for name, parameter in parameters(built).items())


def test_of_two_kinds_of_weights_the_named_one_is_taken(folder: Path, built: BagelModel) -> None:
    save_checkpoint(build_model(TINY, torch.bfloat16, CPU, seed=7), folder / "other")
    (folder / "other" / WEIGHTS).rename(folder / "model.safetensors")
    for name, alike in ((WEIGHTS, True), ("model.safetensors", False)):
        assert survey(folder, name).files == (name,)
        loaded = load_model(folder, torch.bfloat16, CPU, name)
        assert same_bits(loaded.vae2llm.weight, built.vae2llm.weight) is alike
    assert weights_digest(folder, WEIGHTS) != weights_digest(folder, "model.safetensors")
    with pytest.raises(BadInput, match=r"it holds ema\.safetensors, model\.safetensors"):
        survey(folder, "absent.safetensors")


def test_an_index_of_the_file_beside_it_is_no_second_choice(folder: Path) -> None:
    """The published folder has one, which lists the image decoder's file too."""
    places = {name: WEIGHTS for name in load_file(folder / WEIGHTS)} | {"decoder.conv_in.bias": "ae.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert survey(folder).files == (WEIGHTS,)


def test_a_missing_position_table_is_computed(folder: Path, built: BagelModel) -> None:
    spoil = tensors_changed(lambda tensors: tensors.pop(POSITIONS))
    spoil(folder)
    assert (survey(folder).used, config_of(folder).latent_side) == (67, 64)
    (folder / "config.json").write_text(json.dumps({"max_latent_size": 16}))
    assert config_of(folder) == TINY
    loaded = load_model(folder, torch.bfloat16, CPU)
    assert all(same_bits(parameters(loaded)[name], parameter) for name, parameter in parameters(built).items())
    (folder / "config.json").write_text(json.dumps({"max_latent_size": 0}))
    with pytest.raises(BadInput, match="max_latent_size"):
        survey(folder)


def test_rope_parameters_of_transformers_5(folder: Path) -> None:
    told = json.loads((folder / CONFIG).read_text())
    base = told.pop("rope_theta")
    (folder / CONFIG).write_text(json.dumps(told | {"rope_parameters": {"rope_theta": base, "rope_type": "default"}}))
    assert config_of(folder) == TINY


def test_the_digest_follows_every_weight_and_nothing_else(folder: Path) -> None:
    before = weights_digest(folder)
    save_file(load_file(folder / WEIGHTS) | {"connector.fc1.weight": torch.ones(2, 2)}, folder / "new")
    os.replace(folder / "new", folder / WEIGHTS)
    assert weights_digest(folder) == before == weights_digest(FIXTURE)
    element(Q_PROJ, (3, 4), 0.5)(folder)
    assert weights_digest(folder) != before


def test_a_folder_as_published_is_surveyed_in_seconds(tmp_path: Path) -> None:
    """Its names, shapes and sizes; a sparse file of 29 GB. A mapping that counts as memory would be refused."""
    write_folder(tmp_path)
    assert (tmp_path / WEIGHTS).stat().st_size > 29e9
    script = (
        "import resource, time; from pathlib import Path; from verify.bagel.checkpoint import survey\n"
        "limit = 24 << 30; resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)); began = time.process_time()\n"
        f"found = survey(Path({str(tmp_path)!r})); print(found.used, found.ignored, time.process_time() - began)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    used, ignored, seconds = ran.stdout.split()
    assert (int(used), int(ignored)) == (796, 427)
    assert float(seconds) < 5
    assert config_of(tmp_path) == PRESETS["7b"].config
    assert size_of(config_of(tmp_path)) == "7b"


# Writing


def test_a_failed_save_leaves_nothing(
    tmp_path: Path, built: BagelModel, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(BadInput, match="No space left"):
        save_checkpoint(built, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_small_vocabulary_keeps_its_last_rows_for_the_markers(tmp_path: Path) -> None:
    config = replace(TINY, vocab=300, bos=296, eos=297, image_start=298, image_end=299)
    save_checkpoint(build_model(config, torch.bfloat16, CPU, seed=1), tmp_path)
    assert config_of(tmp_path) == config
