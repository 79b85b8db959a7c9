"""Latents of several parts in one tensor, and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from verify.bits import same_bits
from verify.errors import BadInput
from verify.trace.further import FurtherWatch, SavedGenerator, given_back, leaves
from verify.trace.latents import LatentsAsShown, Packing, packed, parts_of

MIXED = {"video": torch.arange(6.0).view(2, 3), "audio": torch.arange(3, dtype=torch.float64)}
ALIKE = {"video": torch.arange(6.0).view(2, 3), "audio": torch.arange(3.0)}


@pytest.mark.parametrize("latents", [MIXED, ALIKE], ids=["two dtypes", "one dtype"])
def test_packed_and_back(latents: dict[str, Tensor]) -> None:
    packing = Packing.of(latents)
    assert packing is not None
    flat = packed(latents)
    assert flat.dtype is (torch.uint8 if latents is MIXED else torch.float32)
    found = packing.unpacked(flat)
    assert list(found) == ["audio", "video"]
    assert all(same_bits(found[name], latents[name]) for name in latents)
    stacked = packing.unpacked(torch.stack([flat, flat]))
    assert stacked["video"].shape == (2, 2, 3)


def test_a_plain_tensor_is_left_as_it_is() -> None:
    x_t = torch.ones(2, 3)
    assert packed(x_t) is x_t
    assert Packing.of(x_t) is None
    assert parts_of(x_t) == {"": x_t}


def test_the_part_that_differs_is_named() -> None:
    packing = Packing.of(MIXED)
    assert packing is not None
    other = {**MIXED, "video": MIXED["video"] + 1}
    found = packing.first_unlike(packed(MIXED), packed(other))
    assert found is not None
    assert found[0] == "video"
    assert packing.first_unlike(packed(MIXED), packed(MIXED)) is None


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ({"video": MIXED["video"]}, r"is .video., expected a mapping with audio, video, as x_0; pass every part"),
        (MIXED["video"], r"is .float32 .2, 3.., expected a mapping with audio, video, as x_0"),
        ({**MIXED, "audio": torch.zeros(4)}, r"\['audio'\] is float32 \(4,\)"),
    ],
)
def test_other_parts_are_told(shown: object, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        LatentsAsShown(MIXED).checked("what is shown", shown, torch.Size(()))


def test_what_a_tuple_holds_beside_the_latent_is_further_state() -> None:
    x_t, audio = torch.zeros(2), torch.ones(3)
    assert LatentsAsShown(x_t).without_others((x_t, audio)) == (x_t, {"latent 2": audio})


def test_what_is_shown_again_is_kept_once_and_what_is_written_to_anew() -> None:
    watch, old, new = FurtherWatch(), torch.zeros(3), torch.ones(3)
    watch.look(0, {"history": [old]})
    watch.look(1, {"history": [old, new]})
    new.add_(1)
    watch.look(2, {"history": [old, new]})
    seen = watch.seen()
    assert seen[0]["history"][0] is seen[1]["history"][0] is seen[2]["history"][0]
    assert seen[1]["history"][1].tolist() == [1.0, 1.0, 1.0]
    assert seen[2]["history"][1].tolist() == [2.0, 2.0, 2.0]
    assert [name for name, _ in leaves("history", seen[1]["history"])] == [
        "length of history",
        "history[0]",
        "history[1]",
    ]


def test_what_was_kept_is_given_back_as_it_was() -> None:
    watch, generator = FurtherWatch(), torch.Generator().manual_seed(5)
    torch.rand(2, generator=generator)
    watch.look(0, {"noise": generator, "history": [torch.zeros(2)], "order": 2})
    due = torch.rand(3, generator=generator)
    kept = watch.seen()[0]
    assert isinstance(kept["noise"], SavedGenerator)
    assert [*leaves("noise", kept["noise"])] == []
    back = given_back(kept, torch.device("cpu"))
    assert same_bits(torch.rand(3, generator=back["noise"]), due)
    back["history"][0].add_(1)
    assert kept["history"][0].tolist() == [0.0, 0.0], "a target may write to what it is given"
    assert back["order"] == 2
