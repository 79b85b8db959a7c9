"""The parts of the network, each against its formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
from float64_tensors import close, random
from torch import Tensor

from verify.bagel.arithmetic import rotate, rotation_at
from verify.bagel.layers import RMSNorm, attend
from verify.bagel.model import TimestepEmbedder, latent_places, sincos_2d
from verify.bits import same_bits

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("no_grad")


def test_grouped_queries_are_repeated_heads() -> None:
    q, k, v = random(8, 5, 16), random(2, 7, 16, seed=1), random(2, 7, 16, seed=2)
    grouped = attend(q, k, v, None)
    repeated = attend(q, k.repeat_interleave(4, 0), v.repeat_interleave(4, 0), None)
    assert grouped.shape == (5, 8 * 16)
    assert close(grouped, repeated)
    # Not the other way to share: heads 0, 2, 4, 6 of one key.
    assert not close(grouped, attend(q, k.repeat(4, 1, 1), v.repeat(4, 1, 1), None), 1e-3)


def test_attention_is_a_softmax_over_scaled_products() -> None:
    q, k, v = random(4, 5, 16), random(4, 7, 16, seed=1), random(4, 7, 16, seed=2)
    weights = torch.exp(q @ k.transpose(1, 2) / math.sqrt(16))
    expected = (weights / weights.sum(-1, keepdim=True)) @ v
    assert close(attend(q, k, v, None), expected.transpose(0, 1).flatten(1))


def test_what_the_mask_hides_has_no_influence() -> None:
    q, k, v = random(4, 3, 16), random(2, 5, 16, seed=1), random(2, 5, 16, seed=2)
    mask = torch.ones(3, 5, dtype=torch.bool).tril(2)
    for hidden in (3, 4):
        other_k, other_v = k.clone(), v.clone()
        other_k[:, hidden], other_v[:, hidden] = 9.0, 9.0
        first, second = attend(q, k, v, mask), attend(q, other_k, other_v, mask)
        for row in range(3):
            assert same_bits(first[row], second[row]) == (row + 2 < hidden)


def test_rotation_by_hand() -> None:
    """Channel i turns with channel i + d/2 by position / theta^(2i/d)."""
    cos, sin = rotation_at(torch.tensor([3]), 4, 100.0, torch.float64)
    turned = rotate(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]], dtype=torch.float64), (cos, sin))
    a, b = 3.0, 3.0 / 10
    expected = [
        math.cos(a) - 3 * math.sin(a),
        2 * math.cos(b) - 4 * math.sin(b),
        3 * math.cos(a) + math.sin(a),
        4 * math.cos(b) + 2 * math.sin(b),
    ]
    assert close(turned, torch.tensor([[expected]], dtype=torch.float64))


def test_rotated_products_depend_on_the_distance_only() -> None:
    q, k = random(1, 3, 16), random(1, 3, 16, seed=1)

    def product(q_at: int, k_at: int) -> Tensor:
        at = [rotation_at(torch.tensor([p]), 16, 1e6, torch.float64) for p in (q_at, k_at)]
        return (rotate(q, at[0]) * rotate(k, at[1])).sum(-1)

    assert close(product(0, 0), (q * k).sum(-1))
    assert close(product(7, 3), product(1007, 1003), 1e-10)
    assert not close(product(7, 3), product(7, 4), 1e-3)


def test_norm_divides_by_the_root_mean_square() -> None:
    norm = RMSNorm(4, 1e-6).double()
    norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    x = torch.tensor([[1.0, -1.0, 1.0, -1.0], [2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    assert close(norm(x), torch.tensor([[1.0, -2.0, 3.0, -4.0], [1.0, 2.0, 3.0, 4.0]], dtype=torch.float64), 1e-5)


def test_time_is_cosines_then_sines() -> None:
    embedder = TimestepEmbedder(8).double()
    for parameter in embedder.parameters():
        parameter.zero_()
    seen: list[Tensor] = []
    embedder.mlp[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    embedder(torch.tensor([0.0, 0.75], dtype=torch.float64))
    frequencies = [10000 ** (-i / 128) for i in range(128)]
    expected = [[f(t * w) for f in (math.cos, math.sin) for w in frequencies] for t in (0.0, 0.75)]
    assert close(seen[0], torch.tensor(expected, dtype=torch.float64))


def test_positions_are_columns_then_rows() -> None:
    table = sincos_2d(3, 8)
    assert table.dtype == torch.float32
    for row in range(3):
        for column in range(3):
            halves = [[f(place * w) for f in (math.sin, math.cos) for w in (1.0, 0.01)] for place in (column, row)]
            expected = torch.tensor(halves, dtype=torch.float64).flatten().float()
            assert close(table[3 * row + column].double(), expected.double(), 1e-7)
    with pytest.raises(ValueError, match="6 channels"):
        sincos_2d(3, 6)


def test_places_are_counted_by_the_width_of_the_table() -> None:
    assert latent_places((2, 3), 16, CPU).tolist() == [0, 1, 2, 16, 17, 18]
