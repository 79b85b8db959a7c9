"""Launched processes at night: every way in which one may end, forked as srun would and under torchrun's own agents."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from launches import FEW, LOOPS, TARGET, Standin, Torchrun, stand_in, valid

from verify.ranks.launched.heartbeat import SILENCE


@pytest.mark.nightly
def test_another_weight_in_one_replica(tmp_path: Path) -> None:
    """Each replica agrees with itself and with its own reference; only replicas_agree can see it."""
    changes = {rank: {"VICTIM": "2"} for rank in range(4)}
    run = stand_in(tmp_path, 4, *FEW, "--target", TARGET, "--loops", "local", changes=changes)
    assert run.statuses == [1, 1, 1, 1], run.output
    valid(run.document)
    assert run.failed() == {"replicas_agree"}
    first = run.finding("replicas_agree")["first_divergence"]
    assert (first["step"], first["ranks"], first["replicas"]) == (0, [0, 0], [0, 1])
    assert first["sides"] == ["replica 0", "replica 1"]
    assert first["mismatched"] > 0
    assert run.output[1:] == ["", "", ""]
    assert "where: step 0, rank 0, replicas 0 and 1, index" in run.output[0]


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victim", [0, 3])
def test_a_process_that_falls_silent(tmp_path: Path, victim: int, number: signal.Signals) -> None:
    """Where global rank 0 goes, the store that it holds goes too, and each of the others tells so for itself."""
    changes = {rank: {"VICTIM": str(victim), "FOLDER": str(tmp_path)} for rank in range(4)}
    run = Standin(tmp_path, 4, (*FEW, "--loop", f"{LOOPS}:stands"), changes)
    run.wait_for(victim, "stands")
    struck = time.monotonic()
    run.signal(victim, number)
    others = [rank for rank in range(4) if rank != victim]
    while time.monotonic() - struck < 2 * SILENCE + 20 and any(run.lives(rank) for rank in others):
        time.sleep(0.1)
    run.signal(victim, signal.SIGKILL)
    ended = run.end()
    assert time.monotonic() - struck < 2 * SILENCE + 20
    assert [ended.statuses[rank] for rank in others] == [3, 3, 3], ended.output
    assert ended.statuses[victim] == -signal.SIGKILL
    if victim:
        assert ended.document is not None
        assert ended.document["failure"]["ranks"][0]["rank"] == victim
    else:
        assert ended.document is None
        for rank in others:
            assert ended.output[rank].count("verify: ") == 1 and "is cut off: " in ended.output[rank]
            # Where its rank was just then, or what it had raised.
            assert "_serve" in ended.output[rank] or "before that it raised" in ended.output[rank], ended.output[rank]


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("loop", "status", "said"),
    [
        ("raises", 3, "rank 2 (rank 0 of replica 1, on {host}) raised RuntimeError: the scheduler ran out of steps"),
        (
            "wrong_shape",
            3,
            "rank 2 (rank 0 of replica 1, on {host}) raised RuntimeError: The size of tensor a (63) must",
        ),
    ],
)
def test_what_one_process_finds_wrong_is_told_once(tmp_path: Path, loop: str, status: int, said: str) -> None:
    changes = {rank: {"VICTIM": "2"} for rank in range(4)}
    run = stand_in(tmp_path, 4, *FEW, "--loop", f"{LOOPS}:{loop}", changes=changes)
    assert run.statuses == [status] * 4
    assert said.split(", on")[0] in run.output[0]
    assert run.output[1:] == ["", "", ""]
    assert run.document is not None


@pytest.mark.nightly
@pytest.mark.parametrize("told", [(0, 1, 2, 3), (2, 3)])
def test_a_launcher_that_ends_its_processes(tmp_path: Path, told: tuple[int, ...]) -> None:
    """All of them: the run is cancelled. Some of them: that is why the others cannot go on."""
    changes = {rank: {"VICTIM": "1", "FOLDER": str(tmp_path)} for rank in range(4)}
    run = Standin(tmp_path, 4, (*FEW, "--loop", f"{LOOPS}:stands"), changes)
    run.wait_for(1, "stands")
    for rank in told:
        run.signal(rank, signal.SIGTERM)
    ended = run.end()
    if len(told) == 4:
        assert ended.statuses == [143] * 4
        assert ended.document is None
        assert ended.output[0].endswith("verify: interrupted\n")
    else:
        assert ended.statuses == [3] * 4
        assert ended.document is not None
        assert "rank 2 (rank 0 of replica 1" in ended.document["failure"]["cause"]
        assert "was told to end by its launcher (SIGTERM)" in ended.document["failure"]["cause"]
    assert ended.output[1:] == ["", "", ""]


@pytest.mark.nightly
def test_a_hang_ends_in_time(tmp_path: Path) -> None:
    changes = {rank: {"VICTIM": "1", "FOLDER": str(tmp_path)} for rank in range(4)}
    run = stand_in(tmp_path, 4, *FEW, "--loop", f"{LOOPS}:stands", "--timeout", "10", changes=changes)
    assert run.statuses == [3, 3, 3, 3]
    assert run.document is not None
    first = run.document["failure"]["ranks"][0]
    assert (first["rank"], first["state"], first["step"], first["activity"]) == (1, "hung", 2, "")
    assert "_stand" in first["trace"]
    # What the other replica's ranks have called says nothing of this one's.
    assert run.document["failure"]["awaited"]["said"] == (
        "rank 0 waits in all_gather 1 of step 4, which rank 1 never joined"
    )


@pytest.mark.nightly
def test_one_ulp_on_one_rank_of_one_replica(tmp_path: Path) -> None:
    changes = {rank: {"VICTIM": "3"} for rank in range(4)}
    run = stand_in(tmp_path, 4, *FEW, "--loop", f"{LOOPS}:one_ulp", changes=changes)
    assert run.statuses == [1, 1, 1, 1], run.output
    valid(run.document)
    loop = "launched_loops.py:one_ulp"
    assert run.failed() == {"ranks_agree", "matches_reference", "replicas_agree"}
    places = {name: run.finding(name, loop)["first_divergence"] for name in run.failed()}
    assert {name: (p["step"], p["ranks"], p["replicas"], p["ulp"]) for name, p in places.items()} == {
        "ranks_agree": (3, [0, 1], [1, 1], 1),
        "matches_reference": (3, [0, 1], [1, 1], 1),
        "replicas_agree": (3, [1, 1], [0, 1], 1),
    }
    # Run again under probes in both replicas; placed in the one that failed.
    assert run.finding("matches_reference", loop)["data"]["location"]["rank"] == 1


@pytest.mark.nightly
def test_windows_and_the_inductive_reference_go_with_replicas(tmp_path: Path) -> None:
    for number, options in enumerate((("--window", "3"), ("--reference", "inductive"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        run = stand_in(folder, 4, *FEW, *options)
        assert run.statuses == [0, 0, 0, 0], run.output
        assert run.finding("replicas_agree")["compared"]["steps"] == 7


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_an_environment_that_differs_is_named_first(tmp_path: Path) -> None:
    changes = {rank: {"NVIDIA_TF32_OVERRIDE": "1"} if rank > 1 else {} for rank in range(4)}
    run = stand_in(tmp_path, 4, *FEW, "--loops", "local", changes=changes)
    assert run.statuses == [1, 1, 1, 1], run.output
    assert run.failed() == {"replicas_agree"}
    found = run.finding("replicas_agree")
    assert "run with a different NVIDIA_TF32_OVERRIDE; their bytes agree in this request" in found["summary"]
    assert found["first_divergence"]["tensor"] == "environment, NVIDIA_TF32_OVERRIDE"
    assert found["first_divergence"]["replicas"] == [0, 1]


# Torchrun's own agents.


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", [2, 3])
def test_two_nodes(tmp_path: Path, ranks: int) -> None:
    guidance = ("--cfg-img-scale", "1.5", "--cfg-renorm-type", "text_channel") if ranks == 3 else ()
    with Torchrun(tmp_path, 2, ranks, *FEW, *guidance) as run:
        assert [run.end(node) for node in range(2)] == [0, 0], run.output(0) + run.output(1)
        document = valid(run.document())
        assert document["verdict"] == "pass"
        assert [r["ranks"] for r in document["replicas"]] == [[*range(ranks)], [*range(ranks, 2 * ranks)]]
        assert document["command"].startswith(f"torchrun --nnodes 2 --nproc-per-node {ranks} -m verify run ")
        assert "verify" not in run.output(1)


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("killed", [0, 1])
def test_a_node_that_is_killed(tmp_path: Path, killed: int) -> None:
    """The store is on node 0: with it gone, the processes of node 1 have nobody to ask and tell so for themselves."""
    victim = str(2 * killed)
    with Torchrun(tmp_path, 2, 2, *FEW, "--loop", f"{LOOPS}:stands", VICTIM=victim) as run:
        run.wait_for(f"stands {victim}")
        struck = time.monotonic()
        run.kill(killed)
        other = 1 - killed
        # Torchrun's own status is 1 whatever its processes' are.
        assert run.end(other) == 1
        assert time.monotonic() - struck < 90
        said = run.output(other)
        assert "exitcode  : 3" in said or "(exitcode: 3)" in said, said
        if killed == 1:
            document = valid(run.document())
            assert document["verdict"] == "unknown"
            assert document["failure"]["ranks"][0]["rank"] in (2, 3)
            assert "has said nothing for" in document["failure"]["cause"]
        else:
            assert not run.json.exists()
            assert "is cut off" in said
