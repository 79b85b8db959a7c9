"""The oracle, and PyTorch in float64 against it: schedule, velocities, every ``x_t``; right, and with a defect."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import network_oracle
import numpy as np
import pytest
import torch
from network_oracle.arithmetic import Float64Network
from network_oracle.model import latent_positions
from network_oracle.schedule import schedule
from numpy.typing import NDArray
from oracle_cases import CONFIG, DEFECTS, FUSED, REQUEST, as_float64, denoised, oracle, right_model, with_defect

import verify.oracle
from verify.bagel.denoiser import initial_noise
from verify.oracle.combine import combine
from verify.oracle.formats import FLOAT32
from verify.request import RENORM_TYPES, DenoiseRequest, RenormType
from verify.schedule import Schedule

FILES = sorted(
    path for package in (verify.oracle, network_oracle) for path in Path(package.__path__[0]).glob("[!_]*.py")
)
MODULES = [f"{'verify.' * (path.parent.name == 'oracle')}{path.parent.name}.{path.stem}" for path in FILES]
# Of two computations in float64. Rounding alone makes 1e-15.
AGREES = 1e-9
SHIFTS = (1.0, 3.0, 0.2, 41.5)
COUNTS = [*range(2, 130), *range(131, 1001, 13), 1000]
X_0 = initial_noise(REQUEST, CONFIG.latent_channels)


def apart(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The larger of the relative differences in norm and of the greatest elements."""
    return float(max(np.linalg.norm(a - b) / np.linalg.norm(b), np.abs(a - b).max() / np.abs(b).max()))


def test_no_module_imports_torch() -> None:
    script = f"import sys, {', '.join(MODULES)}\nprint(sorted(m for m in sys.modules if m.split('.')[0] == 'torch'))"
    path = os.pathsep.join(sys.path)
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert ran.stdout.strip() == "[]"
    assert len(MODULES) >= 8


def test_no_module_can_import_torch_later() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                if not name.startswith(("verify.oracle", "network_oracle")):
                    assert name.split(".")[0] in {*sys.stdlib_module_names, "numpy", "jaxtyping"}, (path.name, name)


@pytest.mark.parametrize("shift", SHIFTS)
def test_schedule_has_the_oracles_bits(shift: float) -> None:
    for count in COUNTS:
        interval = (0.1 + count / 2000, 1.0 - count / 4000)
        ours, theirs = Schedule.of(count, shift, interval), schedule(count, shift, interval, fused=FUSED)
        assert np.array(ours.timesteps, dtype=np.float32).tobytes() == theirs.timesteps.tobytes()
        assert ours.dts.numpy().tobytes() == theirs.dts.tobytes()
        assert ours.guided == tuple(theirs.guided.tolist())


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("fused", [True, False])
def test_float32_points_are_near_the_real_ones(shift: float, fused: bool) -> None:
    greatest = 0.0
    for count in COUNTS:
        s = schedule(count, shift, (0.0, 1.0), fused=fused)
        error = np.abs(s.points - s.exact_points)
        assert (error <= s.points_error).all()
        greatest = max(greatest, float((error[1:-1] / s.points_error[1:-1]).max(initial=0.0)))
    assert 0.1 < greatest <= 1  # A bound that nothing comes near would prove little.


def test_rounding_the_multiply_add_twice_is_seen() -> None:
    assert schedule(10, 1.0, (0.0, 1.0)).points.tobytes() != schedule(10, 1.0, (0.0, 1.0), fused=False).points.tobytes()


@pytest.mark.parametrize(("count", "guided"), [(12, 9), (23, 18), (34, 27), (45, 36), (100, 81), (50, 41)])
def test_a_step_on_the_bound_is_decided_in_float32(count: int, guided: int) -> None:
    s = schedule(count, 3.0, (0.4, 1.0))
    assert s.guided.sum() == guided
    in_float64 = (s.timesteps.astype(np.float64) > 0.4).sum()
    assert (in_float64 != guided) == (count != 50)


def test_the_position_table() -> None:
    table = as_float64(right_model(torch.float64).latent_pos_embed)
    exact = latent_positions(CONFIG.latent_side, CONFIG.hidden)
    assert np.abs(table - exact).max() <= FLOAT32.unit
    assert np.abs(table - exact.reshape(16, 16, -1).swapaxes(0, 1).reshape(256, -1)).max() > 0.1


@pytest.mark.parametrize("renorm_type", RENORM_TYPES)
@pytest.mark.parametrize("img_scale", [1.0, 1.5])
@pytest.mark.parametrize("renorm_min", [0.0, 0.7])
def test_every_velocity_and_every_step(renorm_type: RenormType, img_scale: float, renorm_min: float) -> None:
    request = replace(REQUEST, cfg_renorm_type=renorm_type, cfg_img_scale=img_scale, cfg_renorm_min=renorm_min)
    subject, reference = denoised(request, torch.float64), oracle(request, torch.float64, Float64Network())
    assert len(subject.x) == request.num_timesteps
    for step in range(request.schedule.steps):
        for branch in request.branches:
            expected = reference.velocity(as_float64(subject.x[step]), step, branch)
            assert apart(subject.velocity(step, branch), expected) < AGREES
    for x_t, expected in zip(subject.x[1:], reference.run(as_float64(subject.x[0])), strict=True):
        assert apart(as_float64(x_t), expected) < AGREES


@pytest.mark.parametrize(
    "request_of_50",
    [
        DenoiseRequest(height=64, width=48, cfg_img_scale=1.5, cfg_renorm_type="text_channel"),
        DenoiseRequest(height=48, width=64, cfg_renorm_type="channel", seed=7),
        DenoiseRequest(height=48, width=64, cfg_text_scale=1.0),
    ],
    ids=["text and image", "text", "no guidance"],
)
def test_a_whole_loop(request_of_50: DenoiseRequest) -> None:
    subject, reference = denoised(request_of_50, torch.float64), oracle(request_of_50, torch.float64, Float64Network())
    steps = list(reference.run(as_float64(subject.x[0])))
    assert len(steps) == 49
    assert max(apart(as_float64(x), y) for x, y in zip(subject.x[1:], steps, strict=True)) < AGREES


def test_branches_are_told_apart() -> None:
    """Agreement on velocities that are all alike would not show which context was read."""
    velocities = {
        b: oracle(REQUEST, torch.float64, Float64Network()).velocity(as_float64(X_0), 0, b) for b in REQUEST.branches
    }
    assert len(velocities) == 3
    assert min(apart(velocities[a], velocities[b]) for a in velocities for b in velocities if a != b) > 0.1


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_seen(defect: str) -> None:
    reference = oracle(REQUEST, torch.float64, Float64Network())
    with with_defect(defect, torch.float64) as model:
        subject = denoised(REQUEST, torch.float64, model)
        velocities = {branch: subject.velocity(0, branch) for branch in REQUEST.branches}
    expected = {branch: reference.velocity(as_float64(X_0), 0, branch) for branch in REQUEST.branches}
    assert max(apart(velocities[b], expected[b]) for b in REQUEST.branches) > 100 * AGREES
    assert apart(as_float64(subject.x[-1]), list(reference.run(as_float64(X_0)))[-1]) > 10 * AGREES


def test_the_order_of_the_markers_is_no_defect() -> None:
    """Both see everything and take the same position, so PyTorch may keep them in front of the latents."""
    reference = oracle(REQUEST, torch.float64, Float64Network())
    right = reference.velocity(as_float64(X_0), 0, "gen")
    reference.model.config = replace(CONFIG, image_start=CONFIG.image_end, image_end=CONFIG.image_start)
    assert apart(reference.velocity(as_float64(X_0), 0, "gen"), right) < AGREES


@pytest.mark.parametrize(
    "wrong",
    [{"cfg_renorm_type": "channel"}, {"cfg_text_scale": 4.001}, {"cfg_img_scale": 1.501}, {"cfg_renorm_min": 0.95},
     {"cfg_interval": (0.5, 1.0)}, {"timestep_shift": 3.01}],
    ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
def test_a_wrong_setting_is_seen(wrong: dict[str, object]) -> None:
    subject = denoised(replace(REQUEST, **wrong), torch.float64)  # type: ignore[arg-type]
    expected = list(oracle(REQUEST, torch.float64, Float64Network()).run(as_float64(X_0)))
    assert apart(as_float64(subject.x[-1]), expected[-1]) > 1000 * AGREES


def test_an_unknown_renorm_type_is_refused() -> None:
    x = np.ones((2, 2))
    with pytest.raises(ValueError, match="renorm_type is 'none'"):
        combine(x, x, None, 1.0, 1.0, "none", 0.0, Float64Network())


def test_image_guidance_needs_an_image() -> None:
    reference = oracle(REQUEST, torch.float64, Float64Network())
    with pytest.raises(ValueError, match="condition image"):
        type(reference)(reference.model, REQUEST, reference.schedule, [1, 2, 3])
