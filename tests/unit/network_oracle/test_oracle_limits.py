"""How far PyTorch's rounding may carry a velocity or a step from the oracle, and that defects carry it further."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from network_oracle.loop import Denoising
from network_oracle.rounding import LIKELY, WORST, Rounding, Tracked
from oracle_cases import CONFIG, DEFECTS, REQUEST, as_float64, denoised, latents_of, oracle, with_defect
from torch import Tensor

from verify.bagel.denoiser import BagelDenoiser, initial_noise
from verify.oracle.formats import BFLOAT16, FLOAT32, FLOAT64, Format
from verify.request import RENORM_TYPES, DenoiseRequest, RenormType

NETWORKS = [BFLOAT16, FLOAT32, FLOAT64]


def by_name(form: Format) -> str:
    return form.name


@lru_cache(maxsize=4)
def limits(network: Format, p: int, request: DenoiseRequest = REQUEST) -> Denoising[Tracked]:
    return oracle(request, getattr(torch, network.name), Rounding(network, latents_of(network), p))


def tracked(x: Tensor, p: int) -> Tracked:
    return Tracked(as_float64(x), np.zeros(tuple(x.shape)), p)


@pytest.mark.parametrize("network", NETWORKS, ids=by_name)
@pytest.mark.parametrize("seed", range(2))
def test_velocities_stay_within_the_likely_limit(network: Format, seed: int) -> None:
    """Measured: the error is 0.40 to 0.48 of its proxy in bfloat16, where independent roundings make 0.42.

    That is because a rounding errs evenly within half a unit in the last place, which is 0.58 of the greatest error,
    and numbers are spread between powers of two, which makes another 0.73. The sums in float32 err far less than their
    proxy: 0.05 to 0.1.
    """
    request = replace(REQUEST, seed=seed)
    subject, reference = denoised(request, getattr(torch, network.name)), limits(network, LIKELY, request)
    own = 2 if network is FLOAT64 else 1
    for step in (0, 2, 4):
        for branch in request.branches:
            expected = reference.velocity(tracked(subject.x[step], LIKELY), step, branch)
            error = subject.velocity(step, branch) - expected.value
            assert (np.abs(error) <= own * expected.limit()).all()
            assert np.linalg.norm(error) <= own * expected.norm_limit()
            share = np.sqrt(np.sum(error**2) / expected.spread.sum())
            assert (0.3 < share < 0.6) if network is BFLOAT16 else (0.01 < share < 0.2)


@pytest.mark.parametrize("network", NETWORKS, ids=by_name)
@pytest.mark.parametrize(
    ("renorm_type", "img_scale"), [("global", 1.0), *((renorm_type, 1.5) for renorm_type in RENORM_TYPES)]
)
def test_each_step_stays_within_the_likely_limit(network: Format, renorm_type: RenormType, img_scale: float) -> None:
    """From PyTorch's own ``x_t`` each time: errors of one step are too alike those of the next to be independent."""
    request = replace(REQUEST, cfg_renorm_type=renorm_type, cfg_img_scale=img_scale)
    subject, reference = denoised(request, getattr(torch, network.name)), limits(network, LIKELY, request)
    own = 2 if network is FLOAT64 else 1
    for step in range(request.schedule.steps):
        expected = reference.step(tracked(subject.x[step], LIKELY), step)
        error = np.abs(as_float64(subject.x[step + 1]) - expected.value)
        assert (error <= own * expected.limit()).all()
        assert np.linalg.norm(error) <= own * expected.norm_limit()


# Both move a velocity by less than rounding may; float64 sees them.
TOO_SMALL = {FLOAT32: {"norm eps 1e-5", "norm eps left out"}, BFLOAT16: {"norm eps 1e-5", "norm eps left out"}}


@pytest.mark.parametrize("network", [BFLOAT16, FLOAT32], ids=by_name)
@pytest.mark.parametrize("defect", DEFECTS)
def test_the_likely_limit_sees_a_defect(network: Format, defect: str) -> None:
    """One pass over 15 tokens is enough, even in bfloat16."""
    reference, x_t = limits(network, LIKELY), initial_noise(REQUEST, CONFIG.latent_channels)
    shares_of_limit = []
    with with_defect(defect, getattr(torch, network.name)) as model, torch.no_grad():
        denoiser = BagelDenoiser(model, REQUEST)
        for branch in REQUEST.branches:
            expected = reference.velocity(tracked(x_t, LIKELY), 2, branch)
            error = np.abs(as_float64(denoiser.velocity(x_t, 2, branch)) - expected.value)
            shares_of_limit.append(float((error / expected.limit()).max()))
    assert (max(shares_of_limit) > 1) == (defect not in TOO_SMALL[network])


@pytest.mark.parametrize("network", NETWORKS, ids=by_name)
def test_the_worst_case_of_the_network_is_of_no_use(network: Format) -> None:
    """It holds, and stands to show why the likely limit is needed: signs that all conspire are ten orders away."""
    subject, reference = denoised(REQUEST, getattr(torch, network.name)), limits(network, WORST)
    expected = reference.velocity(tracked(subject.x[1], WORST), 1, "gen")
    error = np.abs(subject.velocity(1, "gen") - expected.value)
    assert (error <= expected.limit()).all()
    assert expected.norm_limit() > 1e6 * np.linalg.norm(error)


def test_limits_grow_as_the_probability_falls() -> None:
    expected = limits(BFLOAT16, LIKELY).velocity(tracked(torch.ones(15, CONFIG.latent_channels), LIKELY), 0, "gen")
    assert (expected.limit(1e-3) < expected.limit(1e-9)).all()
    assert expected.norm_limit(1e-3) < expected.norm_limit(1e-9)


def test_the_likely_limit_holds_as_often_as_it_says() -> None:
    """Of sums of many roundings of known size, at a probability large enough to be counted."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(4000, 30, 10))
    errors = signs.sum(1)
    exceeded = np.abs(errors) > Tracked(np.zeros(10), np.full(10, 30.0), LIKELY).limit(0.1)
    assert 0 < exceeded.any(1).mean() <= 0.1
    norms = np.linalg.norm(errors, axis=1) > Tracked(np.zeros(10), np.full(10, 30.0), LIKELY).norm_limit(0.5)
    assert norms.mean() <= 0.5
