"""Everything that can be wrong with a checkpoint, each told in one line; and shards, which can be right."""

from __future__ import annotations

import os
import pickle
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from spoilt_checkpoints import (
    BAD,
    BAD_VALUES,
    CONFIG,
    INDEX,
    Q_PROJ,
    WEIGHTS,
    Spoil,
    cut,
    element,
    parameters,
    shard,
    tensors_changed,
)

from verify.bagel.checkpoint import load_model, survey
from verify.bagel.model import BagelModel
from verify.bagel.tensor_files import TensorFiles
from verify.bits import same_bits
from verify.errors import BadInput

CPU = torch.device("cpu")


@pytest.mark.parametrize("index_name", [INDEX, "model.safetensors.index.json"])
def test_shards(folder: Path, built: BagelModel, index_name: str) -> None:
    assert len(set(shard(folder, index_name).values())) == 3
    loaded = load_model(folder, torch.bfloat16, CPU)
    assert all(same_bits(parameters(loaded)[name], parameter) for name, parameter in parameters(built).items())


def assert_clear(message: str, fragments: tuple[str, ...]) -> None:
    assert message.isprintable()
    assert message.isascii()
    assert len(message) < 700
    assert re.search(r"expected .*; .", message)
    for fragment in fragments:
        assert fragment in message, message


@pytest.mark.parametrize(("spoil", "fragments"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_one_clear_line(folder: Path, spoil: Spoil, fragments: tuple[str, ...]) -> None:
    target = spoil(folder) or folder
    with pytest.raises(BadInput) as by_survey:
        survey(target)
    assert_clear(str(by_survey.value), fragments)
    with pytest.raises(BadInput) as by_load:
        load_model(target, torch.bfloat16, CPU)
    assert str(by_load.value) == str(by_survey.value)


@pytest.mark.parametrize(("spoil", "fragments"), [row[1:] for row in BAD_VALUES], ids=[row[0] for row in BAD_VALUES])
def test_bad_values_are_named(folder: Path, spoil: Spoil, fragments: tuple[str, ...]) -> None:
    spoil(folder)
    assert survey(folder).used == 68
    with pytest.raises(BadInput) as refused:
        load_model(folder, torch.bfloat16, CPU)
    assert_clear(str(refused.value), fragments)


def test_weights_beyond_half_precision_load_in_a_wider_dtype(folder: Path) -> None:
    element(Q_PROJ, (1, 2), 1e6)(folder)
    with pytest.raises(BadInput, match=r"within the range of float16"):
        load_model(folder, torch.float16, CPU)
    loaded = load_model(folder, torch.float32, CPU)
    assert loaded.get_parameter("layers.0.und.self_attn.q_proj.weight")[1, 2] > 9e5


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, INDEX, "pytorch_model.bin", "ema.pt"])
def test_nothing_is_unpickled(folder: Path, name: str) -> None:
    sprung = folder / "sprung"
    trap = pickle.dumps(Trap(sprung))
    pickle.loads(trap)
    assert sprung.exists()
    sprung.unlink()
    if name != CONFIG:
        (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(trap)
    with pytest.raises(BadInput):
        load_model(folder, torch.bfloat16, CPU)
    assert not sprung.exists()


def test_the_model_is_not_built_when_names_are_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that headers tell is judged before a weight is read."""
    tensors_changed(lambda tensors: tensors.pop(Q_PROJ))(folder)
    monkeypatch.setattr(TensorFiles, "read", lambda self, name: pytest.fail(f"{name} was read"))
    with pytest.raises(BadInput, match="lacks 1 tensor"):
        load_model(folder, torch.bfloat16, CPU)


def test_every_truncation_is_refused(folder: Path) -> None:
    size = (folder / WEIGHTS).stat().st_size
    for keep in sorted({size - 1, *random.Random(0).sample(range(size), 60)}, reverse=True):
        cut(keep)(folder)
        with pytest.raises(BadInput):
            survey(folder)


def test_spoilt_headers_are_refused_or_harmless(folder: Path) -> None:
    """Random bytes in the header: a ``BadInput``, or a header that says the same; never another exception."""
    whole = (folder / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    chance = random.Random(0)
    refused = 0
    for _ in range(200):
        spoilt = bytearray(whole)
        for _ in range(chance.choice((1, 1, 3))):
            spoilt[chance.randrange(header)] = chance.choice((chance.randrange(256), ord("0"), ord('"')))
        (folder / "new").write_bytes(spoilt)
        os.replace(folder / "new", folder / WEIGHTS)
        try:
            survey(folder)
        except BadInput as error:
            assert_clear(str(error), ())
            refused += 1
    assert refused > 150
