"""The catalogue as its users meet it: written in ten lines, run from a file, described on a page, never hanging."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from verify.commands.cli import main
from verify.errors import BadInput
from verify.faults import FAULTS, runner
from verify.faults.registry import Fault, Wiring, fault
from verify.faults.runner import Judged, judged, run_fault
from verify.ranks.failure.awaited import awaited
from verify.ranks.failure.calls import Calls, entry
from verify.ranks.failure.failure import RankFailure
from verify.ranks.failure.report import RankReport, RankState
from verify.report.documents.faults import Expected, Injected
from verify.runner.job import Job
from verify.runner.one_request import blank_report
from verify.runner.run_report import RunReport
from verify.verdict import Compared, Divergence, Finding, Verdict

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "verify" / "faults" / "README.md"
# What a hung fault may take beyond its limit: starting Python, ranks and the control, on a busy machine.
BEYOND = 200.0
HANGING = [name for name, one in FAULTS.items() if one.hangs]


def recipe() -> str:
    """The fault that the page shows."""
    (code,) = re.findall(r"```python\n(.*?)```", (PAGE).read_text(encoding="utf-8"), re.S)
    return str(code)


def test_a_fault_is_written_in_ten_lines_run_caught_and_placed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len([line for line in recipe().splitlines() if line.strip()]) <= 10
    file, out = tmp_path / "mine.py", tmp_path / "matrix.json"
    file.write_text(recipe())
    try:
        assert main(["faults", "--from", str(file), "--json", str(out)]) == 0
    finally:
        registered = FAULTS.pop("slot_zeroed")
    assert registered.summary == "A gathered slot is lost on rank 0."
    control, row = json.loads(out.read_text())["faults"]
    assert (control["fault"], control["verdict"]) == ("clean", "pass")
    assert (row["fault"], row["fired"][0], row["step"], row["rank"]) == ("slot_zeroed", "ranks_agree", 11, 0)
    assert row["caught"] and row["placed"]
    assert "the first tensor that differs in step 11 is gathered slot 1 (text), on rank 0" in row["message"]
    assert "1 of 1 faults caught, 1 placed, the clean control passed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a file that registers faults; decorate one with @fault(...)"),
        ("raise OSError('no')", "expected something that can be imported; OSError: no"),
        (None, "there is no such file; check the path"),
    ],
)
def test_a_file_without_faults(text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    assert main(["faults", "--from", str(file)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_a_fault_that_needs_more_ranks_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faults", "--only", "one_ulp_on_rank_2"]) == 2
    assert "--world-size is 2, expected 3 for the fault one_ulp_on_rank_2; use that" in capsys.readouterr().err


def test_a_fault_that_cannot_be_registered() -> None:
    def undescribed(wiring: Wiring) -> None: ...

    def weight_changed(wiring: Wiring) -> None:
        """A name that is taken."""

    right = {"source": "none", "breaks": "loop", "caught_by": "ranks_agree"}
    with pytest.raises(BadInput, match="the docstring of undescribed is ''"):
        fault(**right)(undescribed)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="the name of a fault is 'weight_changed', expected one that no other fault has"):
        fault(**right)(weight_changed)  # type: ignore[arg-type]
    said = "caught_by of undescribed is 'rank_agree', expected one of environments_agree, "
    with pytest.raises(BadInput, match=said):
        fault(**right | {"caught_by": "rank_agree"})(undescribed)  # type: ignore[arg-type]
    for wrong in ({"caught_by": "unknown", "or_by": "collective"}, {"or_by": "collectives"}):
        with pytest.raises(
            BadInput, match=rf"or_by of undescribed is '{wrong['or_by']}', expected one of environments_agree, "
        ):
            fault(**right | wrong)(undescribed)  # type: ignore[arg-type]


def row_of(one: Fault, report: RunReport) -> Injected:
    """What is made of a run of a fault that took three seconds."""
    return judged(one, report, 3.0).row


def test_a_hang_judged_too_early_is_judged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine slower than its clean control foretold must not be told that the suite misses a fault."""
    limits: list[float] = []
    due: list[bool] = [False, True]

    def judge(one: Fault, job: Job, kept: object) -> Judged:
        limits.append(job.timeout)
        found = row_of(one, blank_report(Job()))
        placed = due.pop(0)
        return Judged(structs.replace(found, seconds=1.0, caught=placed, placed=placed), ended=False)

    monkeypatch.setattr(runner, "_run", judge)
    row = run_fault(FAULTS["rank_local_skip"], Job(timeout=90.0), 2, hang_limit=3.0)
    assert limits == [3.0, 90.0]
    assert (row.placed, row.seconds) == (True, 2.0)
    due.append(True)
    run_fault(FAULTS["rank_local_skip"], Job(timeout=90.0), 2, hang_limit=3.0)
    assert limits == [3.0, 90.0, 3.0]


def report_of(*ranks: RankReport) -> RunReport:
    """A run that ended as these ranks did."""
    return replace(blank_report(Job()), failure=RankFailure("a loop", list(ranks), 3.0).to_dict())


def slow(step: int, activity: str) -> RankReport:
    return RankReport(0, RankState.HUNG, "is slow", step, activity, "stack")


def test_a_hang_whose_collective_is_not_named_is_not_placed() -> None:
    compiles = FAULTS["one_rank_compiles"]
    busy, waits = RankReport(1, RankState.HUNG, "did not finish in time", 2, trace="sleep"), "all_gather 1 of step 3"
    row = row_of(compiles, report_of(busy, slow(2, waits)))
    assert (row.caught, row.placed, row.collective) == (True, True, waits)
    assert row.message.endswith("; rank 0 waits in all_gather 1 of step 3, which rank 1 never joined")
    for activity, named in (("all_gather 1 of step 4", "all_gather 1 of step 4"), ("velocity of gen", "")):
        row = row_of(compiles, report_of(busy, slow(2, activity)))
        assert (row.caught, row.placed, row.collective) == (True, False, named)
    over_nccl = replace(report_of(busy, slow(5, "finishing")), backend="nccl")
    assert not row_of(compiles, over_nccl).placed


def calls(gathers: int) -> Calls:
    """What a rank of the local loop has called by then: x_0 once, then a gather a step."""
    made = [("broadcast", 1, 0), ("all_gather", 2, 0), *(("all_gather", 1, step) for step in range(1, gathers))]
    return Calls(len(made), b"".join(entry(*call) for call in made))


def test_a_hang_is_placed_by_what_was_called_where_hosts_run_ahead() -> None:
    """As over NCCL: rank 0 of one fault stands seven steps further on, rank 1 of the other in the next velocity."""
    busy = RankReport(1, RankState.HUNG, "did not finish in time", 2, "velocity of text", "stack", calls=calls(3))
    ahead = RankReport(0, RankState.HUNG, "did not finish in time", 9, "velocity of gen", "stack", calls=calls(11))
    row = row_of(FAULTS["one_rank_compiles"], report_of(busy, ahead))
    assert (row.placed, row.step, row.rank, row.collective) == (True, 3, 1, "all_gather 1 of step 3")
    alone = RankReport(1, RankState.HUNG, "did not finish in time", 41, "velocity of gen", "stack", calls=calls(42))
    done = RankReport(0, RankState.FINISHED, "finished its part", 48, "finishing", calls=calls(41))
    row = row_of(FAULTS["bound_rule_differs_on_one_rank"], report_of(alone, done))
    assert (row.placed, row.step, row.rank, row.collective) == (True, 41, 1, "all_gather 1 of step 41")
    assert row.message == "rank 1 waits in all_gather 1 of step 41, which rank 0 never joined (rank 0 has finished)"


OTHER_DTYPE = FAULTS["broadcast_in_another_dtype"]


def ended(rank: int = 1, step: int = 8, name: str = "collectives") -> RunReport:
    """A run of that fault whose loop came to its end, as over NCCL, and which check found what where."""
    divergence = Divergence(step, (0, rank), name)
    found = Finding(name, "broken", Verdict.FAIL, "in another dtype", Compared(49, 91), divergence)
    return replace(blank_report(Job()), verdict=Verdict.FAIL, findings=(found,))


def test_where_a_loop_ends_all_the_same_a_check_must_fail_and_place_it() -> None:
    row = row_of(OTHER_DTYPE, ended())
    assert (row.caught, row.placed, row.fired, row.step, row.rank) == (True, True, ("collectives",), 8, 1)
    due = Expected(check="collectives", step=8, rank=1)
    assert (row.message, row.expected) == ("in another dtype", due)
    assert judged(OTHER_DTYPE, ended(), 3.0).ended
    for elsewhere in (ended(step=9), ended(rank=0)):
        row = row_of(OTHER_DTYPE, elsewhere)
        assert (row.caught, row.placed) == (True, False)
    assert not row_of(OTHER_DTYPE, ended(name="ranks_agree")).caught
    assert not row_of(FAULTS["rank_dies"], ended()).caught


def test_where_it_does_not_end_that_check_changes_nothing() -> None:
    died = RankReport(1, RankState.DIED, "was killed by SIGABRT", 7, "broadcast 2 of step 8")
    peer = RankReport(0, RankState.RAISED, "raised RuntimeError", 8)
    row, to_the_end = judged(OTHER_DTYPE, report_of(died, peer), 3.0)
    assert (row.caught, row.placed, to_the_end, row.fired) == (True, True, False, ("unknown",))
    assert OTHER_DTYPE.expected == "unknown, stuck in broadcast 2 of step 8; collectives where the loop ends"


@pytest.mark.parametrize("name", ["collectives", "ranks_agree"])
def test_a_loop_that_ends_is_not_run_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More time would change nothing, whatever was found."""
    runs: list[Job] = []

    def judge(one: Fault, job: Job, kept: object) -> Judged:
        runs.append(job)
        return judged(one, ended(name=name), 1.0)

    monkeypatch.setattr(runner, "_run", judge)
    row = run_fault(OTHER_DTYPE, Job(timeout=90.0), 2, hang_limit=3.0)
    assert (row.caught, len(runs)) == (name == "collectives", 1)


def test_ranks_that_all_wait_in_one_collective_miss_nobody() -> None:
    both = [RankReport(rank, RankState.HUNG, "did not finish in time", 2, "all_gather 1 of step 3") for rank in (0, 1)]
    assert "awaited" not in RankFailure("a loop", both, 3.0).to_dict()


def test_where_ranks_wait_in_several_collectives_the_first_is_told() -> None:
    said = awaited(
        [
            RankReport(0, RankState.HUNG, "", 4, "all_gather 1 of step 5"),
            RankReport(1, RankState.HUNG, "", 2, "broadcast 1 of step 3"),
            RankReport(2, RankState.FINISHED, "", 48),
            RankReport(3, RankState.WAITING, "", 2, "broadcast 1 of step 3"),
        ]
    )
    assert str(said) == (
        "ranks 1 and 3 wait in broadcast 1 of step 3, which ranks 0 and 2 never joined (rank 2 has finished)"
    )


@pytest.mark.nightly
@pytest.mark.parametrize("name", HANGING)
def test_a_fault_that_hangs_leaves_nothing_running(name: str) -> None:
    """As a user runs it; what is left is read from /proc, whoever its parent is by then."""
    mark, began = f"verify-test-{uuid.uuid4()}", time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "verify", "faults", "--only", name, "--world-size", str(FAULTS[name].least_ranks)],
        cwd=ROOT,
        env=os.environ | {"VERIFY_TEST_MARK": mark},
        capture_output=True,
        text=True,
        timeout=BEYOND,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 faults caught, 1 placed" in done.stdout
    assert time.monotonic() - began < BEYOND
    assert _running(mark) == {}


def _running(mark: str) -> dict[int, str]:
    """Processes whose environment holds ``mark``."""
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                if mark.encode() in (process / "environ").read_bytes():
                    found[int(process.name)] = (process / "cmdline").read_text(errors="replace")
            except OSError:
                continue
    return found


def test_what_is_left_running_would_be_seen() -> None:
    mark = f"verify-test-{uuid.uuid4()}"
    sleeper = subprocess.Popen(["sleep", "60"], env=os.environ | {"VERIFY_TEST_MARK": mark})
    try:
        assert set(_running(mark)) == {sleeper.pid}
    finally:
        sleeper.kill()
        sleeper.wait()
