"""Fused norms and rotations on a real GPU: the plain formulas' bits, for every finite value and every shape in use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from verify.bagel import arithmetic, fused
from verify.bagel.config import PRESETS
from verify.bagel.denoiser import BagelDenoiser, initial_noise
from verify.bagel.weights import build_model
from verify.bits import same_bits
from verify.request import DenoiseRequest

pytestmark = [pytest.mark.gpu, pytest.mark.gate]
CUDA = torch.device("cuda")
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator(CUDA).manual_seed(seed), device=CUDA).mul(1.7).to(dtype)


@pytest.mark.parametrize("dtype", HALF)
def test_kernels_serve_here(dtype: torch.dtype) -> None:
    """Every finite value of the dtype, among two sets of neighbours."""
    assert fused.told(CUDA, dtype) == ", ".join(fused.OPERATIONS)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("tokens", [2, 256, 1024, 4096])
@pytest.mark.parametrize("name", list(PRESETS))
def test_shapes_of_a_pass(name: str, tokens: int, dtype: torch.dtype) -> None:
    c = PRESETS[name].config
    rotation = arithmetic.rotation_at(torch.tensor([c.prompt_tokens + 2], device=CUDA), c.head_dim, c.rope_theta, dtype)
    for seed in range(3):
        x, weight = drawn(tokens, c.hidden, dtype=dtype, seed=seed), drawn(c.hidden, dtype=dtype, seed=9)
        assert same_bits(fused.rms_norm(x, weight, c.norm_eps), arithmetic.plain_rms_norm(x, weight, c.norm_eps))
        for heads in (c.heads, c.kv_heads):
            q, gain = drawn(tokens, heads, c.head_dim, dtype=dtype, seed=seed), drawn(c.head_dim, dtype=dtype, seed=8)
            plain = arithmetic.plain_norm_and_rotate(q, gain, c.norm_eps, rotation, wide=True)
            assert same_bits(fused.norm_and_rotate(q, gain, c.norm_eps, rotation), plain)


@pytest.mark.parametrize("dtype", HALF)
def test_gated_silu(dtype: torch.dtype) -> None:
    for name in PRESETS:
        gate, up = (drawn(256, PRESETS[name].config.mlp, dtype=dtype, seed=seed) for seed in (0, 1))
        assert same_bits(fused.silu_times(gate, up), arithmetic.plain_silu_times(gate, up))


def test_the_root_of_every_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one channel, in float32 to see each bit: the kernel's root is held to PyTorch's over 2^31 means."""
    one = torch.ones(1, device=CUDA)
    for start in range(0, 0x7F800000, 1 << 26):
        bits = torch.arange(start, min(start + (1 << 26), 0x7F800000), device=CUDA, dtype=torch.int32)
        mean = bits.view(torch.float32)[:, None]
        monkeypatch.setattr(fused, "_mean_of_squares", lambda _, mean=mean: mean)
        assert same_bits(fused.rms_norm(torch.ones_like(mean), one, 1e-6), torch.rsqrt(mean + 1e-6))


def test_a_whole_velocity(monkeypatch: pytest.MonkeyPatch) -> None:
    request = DenoiseRequest(height=256, width=256, cfg_img_scale=1.5)
    model = build_model(PRESETS["small"].config, torch.bfloat16, CUDA, seed=1)
    x_t = initial_noise(request, model.config.latent_channels).to(CUDA)
    velocities = []
    for serves in (fused.serves, lambda operation, x: False):
        monkeypatch.setattr(fused, "serves", serves)
        denoiser = BagelDenoiser(model, request)
        velocities.append([denoiser.velocity(x_t, 0, branch) for branch in request.branches])
    assert all(same_bits(a, b) for a, b in zip(*velocities, strict=True))
