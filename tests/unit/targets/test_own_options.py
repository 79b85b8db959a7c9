"""A target's own options: their types, what help and documents say of them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from verify.commands import cli
from verify.errors import BadInput
from verify.options.targets import with_options
from verify.runner.job import Job
from verify.targets.own_options import own_options, typed, values

ROOT = Path(__file__).parents[3]
SAMPLERS = str(ROOT / "tests" / "examples" / "samplers.py")


class Made:
    """A target.

    Args:
        layers: of the network
    """

    def __init__(self, layers: int = 2, scale: float = 1.5, kind: Literal["a", "b"] = "a", fast: bool = False) -> None:
        self.given = layers, scale, kind, fast


def test_text_is_given_the_type_of_the_argument() -> None:
    given = {"layers": "3", "scale": "2", "kind": "b", "fast": "true"}
    assert Made(**typed("mine", Made, given)).given == (3, 2.0, "b", True)


@pytest.mark.parametrize(
    ("name", "text", "takes"),
    [
        ("layers", "2.5", "a whole number"),
        ("scale", "wide", "a number"),
        ("kind", "c", "one of a, b"),
        ("fast", "perhaps", "true or false"),
    ],
)
def test_another_type_is_one_line(name: str, text: str, takes: str) -> None:
    with pytest.raises(BadInput, match=f"--target-option {name} of mine is '{text}', expected {takes}; correct it"):
        typed("mine", Made, {name: text})


def test_help_says_type_default_and_what_the_docstring_says() -> None:
    lines = [option.line for option in own_options(Made).values()]
    assert lines[0] == "layers=V  of the network; a whole number (default 2)"
    assert lines[2] == "kind=V  one of a, b (default a)"


def test_documents_show_every_value() -> None:
    assert values("mine", Made, {"scale": "3"}) == {"layers": 2, "scale": 3.0, "kind": "a", "fast": False}


def test_what_a_target_ignores_is_not_told_and_its_own_options_are() -> None:
    job = Job(target=with_options(f"{SAMPLERS}:Stochastic", ["noise_level=0.5"]))
    assert job.told["noise_level"] == 0.5
    assert not {"cfg_renorm_type", "cfg_img_scale", "timestep_shift", "cfg_interval"} & job.told.keys()
    assert job.told["seed"] == 0


def test_help_of_a_command_lists_the_options_of_its_target(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli._parse(["run", "--target", f"{SAMPLERS}:Stochastic", "--help"])
    assert "noise_level=V  how much of the noise a step adds; a number (default 0.01)" in capsys.readouterr().out
