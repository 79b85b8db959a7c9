"""The job and the command line: what is refused before any process starts, and that a command says all of a job."""

from __future__ import annotations

import importlib
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drawn_requests import requests
from hypothesis import given, settings

from verify.bagel.config import preset
from verify.bagel.options import BagelOptions
from verify.commands.cli import _parse, main
from verify.commands.run import job_of
from verify.errors import BadInput
from verify.options.table import COMMANDS
from verify.request import DenoiseRequest
from verify.runner.job import DTYPES, Job
from verify.runner.requests import ONE
from verify.targets.protocol import ModelOptions

FIXTURE = Path(__file__).parents[3] / "fixtures" / "tiny_checkpoint"
THREE_BRANCHES = DenoiseRequest(cfg_img_scale=1.5)


def refusal(**fields: Any) -> str:
    with pytest.raises(BadInput) as caught:
        Job(**fields).checked()
    return str(caught.value)


def parsed(command: str) -> Job:
    words = shlex.split(command)
    assert words[:2] == ["verify", "run"]
    return job_of(_parse(words[1:]))


# What is refused.


def test_a_job_that_can_be_run_is_handed_back() -> None:
    job = Job()
    assert job.checked() is job
    assert (job.ranks, job.judged) == (2, ("broadcast", "local"))
    assert Job(request=THREE_BRANCHES).ranks == 3
    assert Job(loops=("round_robin",), world_size=5).checked().ranks == 5


@pytest.mark.parametrize("timeout", [0, -1.0, math.nan, math.inf, 86401])
def test_timeouts(timeout: float) -> None:
    expected = "expected seconds above 0 and up to 86400; choose one in that range"
    assert refusal(timeout=timeout) == f"timeout is {timeout}, {expected}"
    assert Job(timeout=86400).checked() and Job(timeout=1e-3).checked()


@pytest.mark.parametrize("dtype", ["bf16", "int8", "float8_e4m3fn", "", "torch.float32"])
def test_dtypes(dtype: str) -> None:
    said = refusal(options=ModelOptions(dtype=dtype))
    assert said == f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}; choose one"
    for good in DTYPES:
        assert Job(options=ModelOptions(dtype=good)).checked()


def test_presets() -> None:
    assert refusal(options=ModelOptions("huge")) == "preset is 'huge', expected one of tiny, small, 7b; choose one"


def test_step_sizes() -> None:
    said = refusal(options=ModelOptions(step_sizes="gpu"))
    assert said == "step sizes is 'gpu', expected one of device, host; choose one"


def test_what_another_target_does_not_read_is_refused() -> None:
    asked = ModelOptions(bagel=BagelOptions(think="so"))
    said = refusal(options=asked, target="tests/examples/toy_target.py:ToyTarget")
    assert said.startswith(
        "--think is 'so', expected target builtin, since tests/examples/toy_target.py:ToyTarget does not"
    )


def test_what_a_loop_may_be_held_to() -> None:
    said = refusal(expect="reference")
    assert said == "expect is 'reference', expected one of broadcast, local, round_robin, reduce, any; choose one"
    for expect in ("broadcast", "local", "round_robin", "any"):
        assert Job(loop_reference="loops.py:mine", expect=expect).checked()


@pytest.mark.parametrize("name", ["reference", "ring", "", "Local", " local"])
def test_loops_that_the_target_does_not_have(name: str) -> None:
    said = refusal(loops=("local", name))
    assert said == f"loops is {name!r}, expected some of broadcast, local, round_robin; separate names by commas"


def test_no_loop_to_judge() -> None:
    assert refusal(loops=()) == "loops is '', expected some of broadcast, local, round_robin; name at least one"


def test_a_target_that_there_is_not() -> None:
    assert refusal(target="nobody").startswith("--target is 'nobody', expected builtin")


@pytest.mark.parametrize("kind", ["broadcast", "local"])
@pytest.mark.parametrize(("request_", "ranks"), [(DenoiseRequest(), 1), (DenoiseRequest(), 3), (THREE_BRANCHES, 2)])
def test_worlds_that_do_not_fit(kind: str, request_: DenoiseRequest, ranks: int) -> None:
    branches = ", ".join(request_.branches)
    expected = (
        f"world size is {ranks}, expected {len(request_.branches)} for a {kind} loop, because each rank evaluates one "
        f"of the branches {branches}; use --loops round_robin for any world size, or change the CFG scales"
    )
    assert refusal(request=request_, loops=("round_robin", kind), world_size=ranks) == expected
    assert refusal(request=request_, loop_reference="a.py:b", expect=kind, world_size=ranks) == expected
    for free in ("round_robin", "any"):
        assert Job(request=request_, loop_reference="a.py:b", expect=free, world_size=ranks).checked()


# What is run.


def test_plans_begin_with_the_reference() -> None:
    job = Job()
    assert [(plan.loop_name, plan.loop_reference) for plan in job.plans()] == [
        ("reference", None), ("broadcast", None), ("local", None),
    ]  # fmt: skip
    assert job.kinds() == {"broadcast": "broadcast", "local": "local"}
    shared = {(plan.request, plan.options, plan.target) for plan in job.plans()}
    assert shared == {(job.request, job.options, "builtin")}


def test_a_loop_of_the_user_is_judged_instead() -> None:
    job = Job(loop_reference="some/folder/loops.py:mine", expect="any")
    assert [(plan.loop_name, plan.loop_reference) for plan in job.plans()] == [
        ("reference", None), ("loops.py:mine", "some/folder/loops.py:mine"),
    ]  # fmt: skip
    assert job.kinds() == {"loops.py:mine": "any"}
    assert job.judged == ()


# The command that says all of it.


def test_the_default_command() -> None:
    assert Job().command == (
        "verify run --loops broadcast,local --target builtin --device cpu --preset tiny --dtype bfloat16 --height 128 "
        "--width 128"
    )
    assert parsed(Job().command) == replace(Job(), loops=("broadcast", "local"))
    assert "--world-size 2" in Job(requests="one").command


@pytest.mark.parametrize(
    "job",
    [
        Job(loops=("local",), backend="gloo"),
        Job(loop_reference="a folder/it's mine.py:loop", expect="any"),
        Job(loop_reference="pkg.loops:mine", expect="round_robin", world_size=4),
        Job(options=ModelOptions("small", "float32")),
        Job(options=ModelOptions(checkpoint=str(FIXTURE), step_sizes="host")),
        Job(options=ModelOptions(checkpoint=str(FIXTURE), bagel=BagelOptions(weights="ema.safetensors"))),
        Job(options=ModelOptions(bagel=BagelOptions(prompt_ids=(3, 4), think="a b", system="c"))),
        Job(options=ModelOptions(bagel=BagelOptions(prompt="it's a cat", condition=("a.safetensors", "b c")))),
        Job(device="cuda", options=ModelOptions(autocast=True, bagel=BagelOptions(cuda_graph=False))),
        Job(device="cuda", backend="nccl", options=ModelOptions(autocast=True)),
        Job(device="cuda", options=ModelOptions(dtype="float16", autocast=False)),
        Job(device="cuda", options=ModelOptions(dtype="float32")),
        Job(request=DenoiseRequest(height=16, width=4096, cfg_interval=(1e-7, 0.1 + 0.2), seed=2**63 - 1)),
    ],
)
def test_jobs_survive_the_command_line(job: Job) -> None:
    # Requests of a sequence may need other numbers of ranks than the first.
    ranks = job.ranks if job.request_set == ONE else job.world_size
    complete = replace(job, loops=job.judged or None, world_size=ranks)
    assert parsed(job.command) == complete
    assert parsed(job.command).command == job.command


@settings(max_examples=40, deadline=None)
@given(requests)
def test_requests_survive_the_command_line(request: DenoiseRequest) -> None:
    job = Job(request=request, loops=("round_robin",), world_size=2)
    assert parsed(job.command) == job


# Parsing.


def run_options(*words: str) -> Job:
    return job_of(_parse(["run", *words]))


def test_without_options_the_preset_and_bagel_decide() -> None:
    assert run_options() == Job()
    assert run_options("--preset", "small").request == DenoiseRequest(height=256, width=256)
    assert run_options("--preset", "7b").request.height == preset("7b").side == 1024
    assert run_options("--height", "32").request == DenoiseRequest(height=32, width=128)


def test_every_field_of_a_request_has_its_option() -> None:
    words = "--height 32 --width 48 --num-timesteps 9 --timestep-shift 1.5 --cfg-interval 0 0.5 --cfg-text-scale 2"
    words += " --cfg-img-scale 3 --cfg-renorm-type channel --cfg-renorm-min 0.25 --seed 7"
    assert run_options(*words.split()).request == DenoiseRequest(
        32, 48, 9, 1.5, (0.0, 0.5), 2.0, 3.0, "channel", 0.25, 7
    )  # fmt: skip


def test_autocast_is_on_where_engines_have_it() -> None:
    assert [run_options("--device", "cuda", "--dtype", dtype).options.autocast for dtype in DTYPES] == [
        True, True, False, False,
    ]  # fmt: skip
    assert not run_options("--device", "cuda", "--no-autocast").options.autocast
    assert not run_options("--device", "cpu").options.autocast


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--seed", "x"], "argument --seed: invalid int value: 'x'; see verify run --help"),
        (["run", "--seed", "1.5"], "argument --seed: invalid int value: '1.5'; see verify run --help"),
        (["run", "--cfg-interval", "0.4"], "argument --cfg-interval: expected 2 arguments; see verify run --help"),
        (["run", "--height"], "argument --height: expected one argument; see verify run --help"),
        (["run", "--heigh", "32"],
         "an argument is '--heigh', expected an option of verify run; did you mean --height? see verify run --help"),
        (["rum"], f"the command is 'rum', expected one of {', '.join(COMMANDS)}; did you mean run? see verify --help"),
        (["run", "--seed", "-1"],
         "seed is -1, expected an integer from 0 to 9223372036854775807; choose one in that range"),
        (["run", "--height", "40"], "height is 40, expected a multiple of 16 pixels; use 32 or 48"),
        (["run", "--timestep-shift", "nan"],
         "timestep_shift is nan, expected a number from 0.001 to 1000; choose one in that range"),
        (["run", "--preset", "huge"], "preset is 'huge', expected one of tiny, small, 7b; choose one"),
        ([], f"no command was named, expected one of {', '.join(COMMANDS)}; name one"),
    ],
)  # fmt: skip
def test_bad_usage_is_told_in_one_line(words: list[str], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        job_of(_parse(words))
    assert str(caught.value) == said


def test_bad_usage_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--seed", "x"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "verify: argument --seed: invalid int value: 'x'; see verify run --help\n")
    assert main(["nothing"]) == 2
    assert capsys.readouterr().err.startswith("verify: the command is 'nothing', expected one of run, ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: verify {command}")
    assert callable(importlib.import_module(f"verify.commands.{command}").execute)


def test_help_names_every_command_and_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "0 pass, 1 fail, 2 bad input or usage, 3 unknown" in said
    for name, command in COMMANDS.items():
        assert f"{name} {command.summary}" in said


def test_a_fault_of_our_own_is_no_verdict(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Python ends with 1 after an exception, and 1 says that a check failed."""

    def broken(arguments: object) -> int:
        raise KeyError("a fault")

    monkeypatch.setattr("verify.commands.doctor.execute", broken)
    assert main(["doctor"]) == 3
    said = capsys.readouterr().err
    assert "KeyError: 'a fault'" in said
    assert said.splitlines()[-1] == "verify: the above is a fault of verify itself; nothing was judged"
