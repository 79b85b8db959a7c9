"""What can be said of vllm-omni's families where vllm-omni is not installed."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch

from verify.errors import BadInput
from verify.request import DenoiseRequest
from verify.targets.finding import find_target
from verify.targets.vllm_omni.families.family import Asked, StandIn
from verify.targets.vllm_omni.families.registry import FAMILIES, family_named


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_is_one_class_of_at_most_80_lines(name: str) -> None:
    family = family_named(name)
    assert family.name == name
    path = import_module(family.__module__).__file__
    assert path is not None
    assert len(Path(path).read_text().splitlines()) <= 80


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("family=none", "--target-option family is 'none', expected one of qwen_image, "),
        ("family=flux&noise=loud", "--target-option noise is 'loud', expected one of own, seeded, engine"),
        ("family=flux&guidance=maybe", "--target-option guidance is 'maybe', expected one of on, off"),
        ("family=flux&scheduler=fast", "--target-option scheduler is 'fast', expected one of plain, stochastic"),
    ],
)
def test_options_that_are_none(target: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        find_target(f"vllm_omni_family?{target}")
    assert said in str(caught.value)


def test_branches_without_guidance_are_the_first_alone() -> None:
    on, off = (find_target(f"vllm_omni_family?family=omnigen2&guidance={switch}") for switch in ("on", "off"))
    request = DenoiseRequest()
    assert on.branches(request) == ("both", "image", "neither")  # type: ignore[attr-defined]
    assert off.branches(request) == ("both",)  # type: ignore[attr-defined]
    assert (on.expects["diffuse"], off.expects["diffuse"]) == ("local", "any")
    with pytest.raises(BadInput, match=r"cfg_img_scale is 2\.0"):
        on.branches(DenoiseRequest(cfg_img_scale=2.0))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["omnigen2", "wan2_2", "cosmos3"])
def test_schedules_that_need_no_package_of_others(name: str) -> None:
    asked = Asked(steps=7, grid=(4, 5), scale=4.0, shift=3.0, seed=0, dtype=torch.float32)
    schedule = family_named(name).schedule(asked)
    assert schedule.steps == schedule.guided_steps == 7
    assert all(later < earlier for earlier, later in zip(schedule.timesteps, schedule.timesteps[1:], strict=False))
    assert bool((schedule.dts > 0).all())


@pytest.mark.parametrize(("shape", "axis"), [((1, 20, 16), -1), ((1, 16, 4, 5), 1), ((1, 16, 3, 4, 5), 1)])
def test_the_stand_in_reads_latent_time_and_prompt(shape: tuple[int, ...], axis: int) -> None:
    network = StandIn(16, axis, torch.float32)
    x_t, t, prompt = torch.randn(shape), torch.tensor([0.5]), torch.randn(1, 5, 8)
    (plain,) = network(x_t, t, prompt)
    assert plain.shape == x_t.shape
    for other in ((x_t + 1, t, prompt), (x_t, t + 1, prompt), (x_t, t, prompt + 1)):
        assert not torch.equal(network(*other)[0], plain)
