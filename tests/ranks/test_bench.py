"""The benchmark on real ranks: its document is valid at any time and says what is missing; the command ends in time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from example_documents import blocks_of, json_of, presented
from pools import shared_pool

from verify.bench.budget import Budget
from verify.bench.comparison import Comparison
from verify.bench.overhead import Overhead
from verify.bench.points import Measurement, Point, measure, settings
from verify.bench.session import Session
from verify.commands.cli import main
from verify.ranks.failure.failure import RankFailure
from verify.report.sections.blocks import Table
from verify.request import DenoiseRequest
from verify.runner.job import Job
from verify.targets.protocol import ModelOptions
from verify.tasks.stage import Plan

SMALL = DenoiseRequest(height=32, width=32, num_timesteps=4)
JOB = Job(request=SMALL, options=ModelOptions(dtype="float32"))
PARTS = {"forward", "all_gather", "broadcast", "combine", "idle", "rest"}


def bench(folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    path = folder / "bench.json"
    common = ["--num-timesteps", "4", "--dtype", "float32", "--json", str(path)]
    status = main(["bench", *common, *options])
    document: dict[str, Any] = json.loads(path.read_text())
    return status, document


def test_a_point_a_size_with_every_loop_and_part(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    status, document = bench(tmp_path, "--sizes", "32,64", "--alternations", "6,2", "--html", str(page))
    assert status == 0
    assert document["incomplete"] == ""
    assert [point["alternations"] for point in document["points"]] == [6, 2]
    for point, alternations in zip(document["points"], (6, 2), strict=True):
        assert list(point["loops"]) == ["reference", "broadcast", "local"]
        for name, loop in point["loops"].items():
            assert len(loop["seconds"]["values"]) == (2 if name == "reference" else alternations)
            assert set(loop["parts"]) == PARTS
            assert len(loop["parts"]["forward"]) == (1 if name == "reference" else 2)
            assert loop["parts"]["forward"][0] > 0
            assert loop["parts"]["combine"][0] > 0
            assert loop["limit_s"] > 0
        assert point["loops"]["broadcast"]["broadcast_share_of_step"] > 0
        assert point["prepare"]["seconds"] > 0
    assert document["points"][0]["ratios"]["broadcast/local"]["pairs"] == 6
    assert "too few pairs (2)" in document["points"][1]["sentences"][0]
    assert len(document["environment"]) == 2
    assert len(blocks_of(document, Table)) == 5
    assert page.read_text().startswith("<!doctype html>")


def test_it_ends_in_time_with_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared_pool(2)
    began = time.monotonic()
    status, document = bench(tmp_path, "--sizes", "32,64", "--alternations", "100000", "--time-limit", "6")
    assert time.monotonic() - began < 12
    assert status == 0
    made = [point["alternations"] for point in document["points"]]
    assert all(0 < count < 100000 for count in made)
    assert f"32x32, 2 ranks, 3 steps: {made[0]} of 100000 alternations" in document["incomplete"]
    assert "verify: incomplete: " in capsys.readouterr().err
    assert "; incomplete: " in presented(document).said
    assert "of 100000 asked for" in blocks_of(document, Table)[0].caption


def test_a_point_that_cannot_begin_is_left_out_and_said() -> None:
    points = [Point(JOB, 2), Point(JOB, 2)]
    session = Session(points, False, "", lambda document: None, time_limit=1e-6)
    session.measure()
    assert not session.measured
    assert not session.every_point
    assert session.document.incomplete.count("0 of 2 alternations") == 2


def test_what_is_known_is_saved_after_each_alternation() -> None:
    saved = []
    measure(Comparison, [Point(JOB, 3)], save=lambda done: saved.append([point["alternations"] for point in done]))
    assert [1] in saved and [2] in saved
    assert saved == sorted(saved)
    assert saved[-1] == [3]


def test_a_rank_that_dies_costs_no_earlier_point() -> None:
    saved: list[dict[str, Any]] = []
    long_enough = replace(SMALL, num_timesteps=16)  # The rank dies in a later step than others have.
    broken = replace(JOB, request=long_enough, loops=(), loop_reference="verify.faults.endings:rank_dies")
    session = Session([Point(JOB, 1), Point(broken, 1)], False, "", lambda d: saved.append(json_of(d)))
    with pytest.raises(RankFailure, match="rank 1 exited with status 13"):
        session.measure()
    assert saved[-1]["points"][0]["alternations"] == 1
    assert "exited with status 13" in saved[-1]["incomplete"]
    assert saved[-1]["failure"]["ranks"][0]["rank"] == 1
    assert "exited with status 13" in presented(saved[-1]).said


def test_the_cost_of_verifying_over_steps_and_ranks(tmp_path: Path) -> None:
    options = ["--overhead", "--world-sizes", "2,3", "--timestep-counts", "3,6", "--sizes", "32", "--alternations", "1"]
    status, document = bench(tmp_path, *options, "--loops", "local")
    assert status == 0
    settings_ = [(p["world_size"], p["steps"], p["tokens"]) for p in document["overhead"]]
    assert settings_ == [(2, 2, 4), (2, 5, 4), (3, 2, 4), (3, 5, 4)]
    for point in document["overhead"]:
        local = point["loops"]["local"]
        assert local["recorded_over_bare"]["pairs"] == local["verified_over_bare"]["pairs"] == 1
        (added,) = local["added_s"]["values"]
        assert added == pytest.approx(local["verified_s"]["p50"] - local["bare_wall_s"]["p50"])
        assert local["syncs"] is None  # A CPU has no device to wait for.
    table = blocks_of(document, Table)[0]
    assert len(table.rows) == 4


def test_every_combination_is_a_point() -> None:
    jobs = list(settings(JOB, [32, 64], ["tiny", "small"], [2, 3], [(0.4, 1.0), (0.0, 1.0)], [4, 6]))
    assert len(jobs) == 32
    assert len({(j.options.preset, j.world_size, j.request) for j in jobs}) == 32
    assert all(j.checked().ranks == len(j.request.branches) for j in jobs)
    assert [j.request.height for j in jobs[:4]] == [32, 64, 32, 64]
    assert list(settings(JOB)) == [JOB]
    assert [j.request.height for j in settings(JOB, presets=["tiny", "small"])] == [128, 256]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sizes", "256,x"], "--sizes"),
        (["--alternations", "0"], "--alternations"),
        (["--alternations", "2,2"], "--alternations"),
        (["--cuda-graph"], "--cuda-graph"),
        (["--device", "cuda", "--sizes", "32", "--cuda-graph", "64"], "--cuda-graph"),
        (["--time-limit", "-1"], "--time-limit"),
        (["--cfg-intervals", "0.4"], "--cfg-intervals"),
        (["--world-sizes", "5"], "world size"),
        (["--presets", "huge"], "preset"),
        (["--timestep-counts", "1"], "num_timesteps"),
        (["--html", "no/such/folder/x.html"], "folder"),
    ],
)
def test_bad_input_is_one_line(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *options]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1


def test_a_graph_that_cannot_be_recorded_leaves_the_eager_loops() -> None:
    """On a CPU there is nothing to record with: the point says so, and is measured without."""
    (point,) = measure(Comparison, [Point(JOB, 1, graph=True)], Budget())
    assert list(point["loops"]) == ["reference", "broadcast", "local"]
    assert any(note.startswith("CUDA graphs: not recorded: ") for note in point["notes"])


@pytest.mark.parametrize(
    ("kind", "loops", "first", "second"),
    [(Overhead, ("local",), "timed_loop", "trace_loop"), (Comparison, ("broadcast", "local"), "broadcast", "local")],
)
def test_what_is_compared_takes_turns_at_being_first(
    kind: type[Measurement], loops: tuple[str, ...], first: str, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[str] = []
    run = kind.run

    def noted(self: Measurement, task: Callable[..., Any], *arguments: Any) -> list[Any]:
        loop = arguments[0].loop if arguments and isinstance(arguments[0], Plan) else ""
        began.append(task.__name__ if kind is Overhead else loop)
        return run(self, task, *arguments)

    monkeypatch.setattr(kind, "run", noted)
    (row,) = measure(kind, [Point(replace(JOB, loops=loops), 3)])
    turns = [name for name in (began[1:] if kind is Overhead else began) if name in (first, second)]
    # The first warms up.
    assert turns == [first, second, first, second, second, first, first, second]
    assert row["alternations"] == 3
