"""Ranks from a launcher, cheapest first: what its variables mean, then forked stand-ins for what srun starts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from launches import FEW, LOOPS, stand_in, valid

from verify.commands.cli import main
from verify.errors import BadInput
from verify.ranks.failure.failure import RankFailure
from verify.ranks.launched.heartbeat import SILENCE, SILENCE_IN_DOUBT, Heard
from verify.ranks.launched.heartbeat_message import report_on
from verify.ranks.launched.launch import Launch, launched, speaks
from verify.ranks.launched.replica import described

MEETING = {"MASTER_ADDR": "node-a", "MASTER_PORT": "29500"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "none", **MEETING}
SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0", **MEETING}
# A batch script runs once, whatever number of tasks its job has: sbatch gives it a rank, and no step.
BATCH = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", **MEETING}
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    **MEETING,
}
MPIEXEC = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", **MEETING}


# What a launcher's variables mean.


@pytest.mark.parametrize(
    ("launcher", "variables"), [("torchrun", TORCHRUN), ("srun", SRUN), ("mpirun", MPIRUN), ("mpiexec", MPIEXEC)]
)
def test_each_launcher_is_understood(launcher: str, variables: dict[str, str]) -> None:
    assert launched(variables) == Launch(launcher, 3, 4, 1, "node-a", 29500)
    assert not speaks(variables)
    first = {name: "0" if value == "3" else value for name, value in variables.items()}
    assert speaks(first)


def test_torchrun_says_more() -> None:
    more = TORCHRUN | {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "2",
        "GROUP_WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    found = launched(more)
    assert found is not None
    assert (found.agent_store, found.attempt, found.shape) == (True, "2", (2, 2))
    assert found.command("verify run") == "torchrun --nnodes 2 --nproc-per-node 2 -m verify run"
    uneven = launched(more | {"LOCAL_WORLD_SIZE": "3"})
    assert uneven is not None
    assert uneven.command("verify run") == "torchrun --nnodes 1 --nproc-per-node 4 -m verify run"


def test_the_innermost_launcher_counts() -> None:
    """An MPI launcher in a Slurm job inherits the variables of the shell that Slurm started as its process 0."""
    slurm = SRUN | {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}
    for inner in (TORCHRUN, MPIRUN, MPIEXEC):
        found = launched(slurm | inner)
        assert found is not None
        assert (found.rank, found.world_size) == (3, 4)


def test_a_step_of_a_job_has_its_own_number_of_tasks() -> None:
    found = launched(SRUN | {"SLURM_NTASKS": "64", "SLURM_STEP_NUM_TASKS": "4"})
    assert found is not None
    assert found.world_size == 4


@pytest.mark.parametrize(
    "variables",
    [
        {},
        MEETING,
        {"RANK": "0"},
        {"RANK": "1", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "none", **MEETING},
        {"WORLD_SIZE": "2", **MEETING},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"OMPI_COMM_WORLD_RANK": "1", **MEETING},
        {"PMI_RANK": "1", **MEETING},
        {"SLURM_PROCID": "1", "SLURM_STEP_ID": "0", **MEETING},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"},
        BATCH,
    ],
)
def test_a_process_started_by_hand_is_not_launched(variables: dict[str, str]) -> None:
    assert launched(variables) is None
    assert speaks(variables)


def test_torchrun_with_one_process_is_a_launch() -> None:
    found = launched(TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})
    assert found is not None
    assert found.world_size == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"MASTER_ADDR": ""},
         "MASTER_ADDR is not set, expected the host of global rank 0, where the processes that srun started meet; "
         "export MASTER_ADDR and MASTER_PORT, or start verify without srun"),
        ({"MASTER_PORT": ""},
         "MASTER_PORT is not set, expected a free port there, where the processes that srun started meet; "
         "export MASTER_ADDR and MASTER_PORT, or start verify without srun"),
        ({"MASTER_PORT": "http"},
         "MASTER_PORT is 'http', expected an integer from 1 to 65535; leave it to the launcher"),
        ({"SLURM_PROCID": "4"}, "SLURM_PROCID is '4', expected an integer from 0 to 3; leave it to the launcher"),
        ({"SLURM_PROCID": "-1"}, "SLURM_PROCID is '-1', expected an integer from 0 to 3; leave it to the launcher"),
        ({"SLURM_NTASKS": "many"},
         "SLURM_NTASKS is 'many', expected an integer from 1 to 4096; leave it to the launcher"),
    ],
)  # fmt: skip
def test_what_a_launcher_left_out_is_named(changes: dict[str, str], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        launched(SRUN | changes)
    assert str(caught.value) == said


@pytest.mark.parametrize("missing", [("MASTER_ADDR",), ("MASTER_PORT",), ("MASTER_ADDR", "MASTER_PORT")])
@pytest.mark.parametrize("rank", ["0", "1"])
def test_half_of_what_torchrun_sets_is_told_whatever_the_rank(
    rank: str, missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was exported by hand, so no other process may be there to tell."""
    for name, value in ({"RANK": rank, "WORLD_SIZE": "2"} | MEETING).items():
        monkeypatch.setenv(name, value)
    for name in missing:
        monkeypatch.delenv(name)
    assert main(["run"]) == 2
    what = "the host of global rank 0" if missing[0] == "MASTER_ADDR" else "a free port there"
    assert capsys.readouterr().err == (
        f"verify: {missing[0]} is not set, expected {what}, since RANK and WORLD_SIZE say that this is one of 2 "
        "processes; export MASTER_ADDR and MASTER_PORT, or unset RANK and WORLD_SIZE\n"
    )


@pytest.mark.parametrize(("rank", "size", "name"), [("2", "2", "RANK"), ("x", "2", "RANK"), ("1", "x", "WORLD_SIZE")])
def test_who_has_a_rank_that_cannot_be_says_so(
    rank: str, size: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No launcher sets that; rank 0, if there is one, has nothing to complain of."""
    for variable, value in ({"RANK": rank, "WORLD_SIZE": size} | MEETING).items():
        monkeypatch.setenv(variable, value)
    assert main(["run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"verify: {name} is ")


def test_coordinates() -> None:
    launches = [Launch("srun", rank, 6, None, "node-a", 1) for rank in range(6)]
    assert [launch.coordinates(3) for launch in launches] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    with pytest.raises(BadInput, match=r"^srun started 6 processes, expected a multiple of 4, the ranks of one CFG"):
        launches[0].coordinates(4)


def test_one_of_many_processes_tells_of_bad_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("SLURM_PROCID", rank)
        monkeypatch.setenv("SLURM_NTASKS", "2")
        monkeypatch.setenv("SLURM_STEP_ID", "0")
        assert main(["run", "--seed", "x"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == lines


@pytest.mark.parametrize("command", ["faults", "fuzz", "bench"])
def test_commands_that_start_ranks_do_so_once(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (SRUN | {"SLURM_PROCID": "0"}).items():
        monkeypatch.setenv(name, value)
    assert main([command]) == 2
    assert capsys.readouterr().err == (
        f"verify: verify {command} was started by srun in 4 processes, expected one, since it starts its ranks "
        "itself; start it without a launcher (verify run takes one)\n"
    )


# What is said of processes.


def test_a_silent_process_is_the_cause_and_its_peers_error_the_effect() -> None:
    said = {"step": 6, "activity": "all_gather 1 of step 7", "host": "node-b"}
    lost = {**said, "answer": ["raised", "RuntimeError: Connection closed by peer", "Traceback"]}
    reports = [
        report_on(0, said, "rank 0 of replica 0, on node-a", "stacks", None, others_failed=True),
        report_on(2, lost, "rank 0 of replica 1, on node-b", "", None, others_failed=True),
        report_on(3, said, "rank 1 of replica 1, on node-b", "", 6.0, others_failed=True),
    ]
    failure = RankFailure("local", reports, 1.0)
    assert [report.state for report in failure.reports] == ["died", "raised", "waiting"]
    assert failure.cause == (
        "rank 3 (rank 1 of replica 1, on node-b) has said nothing for 6 s (dead, stopped or cut off), last heard "
        "after step 6 in all_gather 1 of step 7"
    )
    assert failure.reports[1].trace == "Traceback"
    assert failure.reports[2].to_dict()["where"] == "rank 0 of replica 0, on node-a"


def test_a_process_may_take_longer_to_say_its_first_word() -> None:
    late = Heard(heard=time.monotonic() - SILENCE - 1)
    assert not late.is_silent(SILENCE)
    late.said = {"step": -1}
    assert late.is_silent(SILENCE) and late.is_silent(SILENCE_IN_DOUBT)
    assert not Heard({"step": -1}).is_silent(SILENCE_IN_DOUBT)


def test_replicas_are_described_by_their_ranks_and_hosts() -> None:
    assert described(["a", "a", "b", "b"], 2) == [
        {"replica": 0, "ranks": [0, 1], "hosts": ["a", "a"]},
        {"replica": 1, "ranks": [2, 3], "hosts": ["b", "b"]},
    ]


# Forked stand-ins for srun: every process but the launcher is real.


def test_two_replicas_pass_and_one_process_speaks(tmp_path: Path) -> None:
    run = stand_in(tmp_path, 4, *FEW)
    assert run.statuses == [0, 0, 0, 0], run.output
    assert run.output[1:] == ["", "", ""]
    assert "2 replicas of 2 ranks on 1 host over gloo on cpu, 7 steps, 6 guided" in run.output[0]
    document = valid(run.document)
    assert (document["verdict"], document["world_size"]) == ("pass", 2)
    assert [(r["replica"], r["ranks"]) for r in document["replicas"]] == [(0, [0, 1]), (1, [2, 3])]
    assert [(rank["rank"], rank["replica"]) for rank in document["environment"]] == [(0, 0), (1, 0), (2, 1), (3, 1)]
    for name in ("ranks_agree", "matches_reference", "replicas_agree"):
        for loop in ("broadcast", "local"):
            # Of the sequence's four requests, the third takes 8 steps.
            assert run.finding(name, loop)["compared"]["steps"] == 7 + 7 + 8 + 7
    # Both replicas' two ranks: where they began, each step, and what they returned; the third latent is of 144x112.
    assert run.finding("ranks_agree")["compared"]["elements"] == 2 * (3 * 9 * 1024 + 10 * 1008)


@pytest.mark.nightly
def test_a_process_that_leaves_ends_all(tmp_path: Path) -> None:
    changes = {rank: {"VICTIM": "3"} for rank in range(4)}
    run = stand_in(tmp_path, 4, *FEW, "--loop", f"{LOOPS}:leaves", changes=changes)
    assert run.statuses == [3, 3, 3, 7], run.output
    document = valid(run.document)
    assert document["verdict"] == "unknown"
    first, *others = document["failure"]["ranks"]
    assert (first["rank"], first["state"]) == (3, "died")
    # What was last heard may be half a second old.
    assert first["step"] <= 2
    assert first["where"].startswith("rank 1 of replica 1, on ")
    assert {r["rank"]: r["state"] for r in others} == {0: "waiting", 1: "waiting", 2: "raised"}
    assert document["failure"]["seconds"] < 20
    assert "Traceback" not in "".join(run.output[1:])


@pytest.mark.gpu
def test_ranks_of_a_launcher_on_gpus(tmp_path: Path) -> None:
    """Global rank 0's own trace is judged beside those that were sent: all of them on the CPU."""
    run = stand_in(tmp_path, 2, "run", "--device", "cuda", "--num-timesteps", "8")
    assert run.statuses == [0, 0], run.output
    assert valid(run.document)["verdict"] == "pass"
