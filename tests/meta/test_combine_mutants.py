"""The fuzzer verified: every wrong combine is caught by the fast profile, shrunk, saved and replayed.

``verify fuzz --mutants`` prints the table.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from verify.envelope.conditions import CONDITIONS
from verify.envelope.envelope import EnvelopeJob, run_envelope
from verify.envelope.explanations import EXPLANATIONS
from verify.errors import BadInput
from verify.fuzz.boundary import GUIDED_STEPS_AGREE, HOST_ON_ONE_RANK, TENSOR_RULE, Bounds, decisions, judge_boundary
from verify.fuzz.case import FLOATS, LAYOUTS, Case, Values
from verify.fuzz.drawing import draw
from verify.fuzz.engine import Fuzzer
from verify.fuzz.exact import exact_cases
from verify.fuzz.layouts import dense, lay_out
from verify.fuzz.mutants import MUTANTS
from verify.fuzz.mutation import hunt
from verify.fuzz.saved import Saved, read_saved
from verify.fuzz.session import FuzzJob, fuzz_boundary, run_fuzz, run_replay
from verify.fuzz.strategies import cases, schedules
from verify.fuzz.tasks import MUTANT, OWN, evaluate
from verify.ranks.local.pool import RankPool
from verify.ranks.plan import place
from verify.runner.run import pool_for
from verify.verdict import Verdict

CPU = torch.device("cpu")
# What must see each mutant: the property that its fault is about, whatever else sees it.
SEEN_BY = {
    "eps dropped": "non_finite",
    "clamp max dropped": "oracle",
    "norm in float32": "one_factor",
    "norm in bfloat16": "oracle",
    "norm over tokens": "rows_independent",
    "scales swapped": "oracle",
    "image ignored": "oracle",
    "writes to gen": "inputs_unchanged",
    "shuffled sum on one rank": "ranks_agree",
    "bf16 on one rank": "ranks_agree",
    "sign of zero": "renorm_min_one",
    "sign of zero on one rank": "ranks_agree",
    "one ULP on one rank": "ranks_agree",
    "other formula when large": "renorm_min_one",
    "renorm_min halved": "oracle",
    HOST_ON_ONE_RANK: GUIDED_STEPS_AGREE,
}


@pytest.fixture(scope="module")
def pool() -> RankPool:
    return pool_for(place(2, "cpu").spec)


def test_every_mutant_has_its_property() -> None:
    assert set(SEEN_BY) == {*MUTANTS, HOST_ON_ONE_RANK}


# By day one mutant for each property; the night adds the rest.
BY_DAY = (
    "eps dropped",
    "clamp max dropped",
    "norm in float32",
    "norm over tokens",
    "writes to gen",
    "sign of zero",
    "one ULP on one rank",
    HOST_ON_ONE_RANK,
)


def test_each_property_sees_a_mutant_by_day() -> None:
    assert {SEEN_BY[mutant] for mutant in BY_DAY} == set(SEEN_BY.values())


@pytest.mark.parametrize(
    "mutant", [pytest.param(name, marks=() if name in BY_DAY else pytest.mark.nightly) for name in SEEN_BY]
)
def test_mutant(pool: RankPool, mutant: str) -> None:
    caught = hunt(pool, mutant, "fast", seed=0)
    assert SEEN_BY[mutant] in caught.properties, f"{mutant} was seen by {caught.properties} only"
    print(f"{mutant}: {SEEN_BY[mutant]} needed {caught.properties[SEEN_BY[mutant]]} cases")


def test_the_exact_cases_alone_see_a_wrong_formula(pool: RankPool) -> None:
    fuzzer = Fuzzer(pool, MUTANT + "image ignored")
    assert {failure.name for failure in fuzzer.judge_exact(exact_cases())} == {"exact_cases"}


def test_a_failure_shrinks_and_replays_in_a_fresh_process(tmp_path: Path) -> None:
    found = run_fuzz(FuzzJob(cases=48, combine=MUTANT + "one ULP on one rank", save=tmp_path))
    assert found.verdict is Verdict.FAIL
    assert found.exit_status == 1
    words = shlex.split(found.replays["ranks_agree"])
    saved = read_saved(words[-1])
    assert isinstance(saved.case, Case)
    assert saved.case.size == 1, f"not shrunk: {saved.case}"
    finished = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2]
    )
    assert finished.returncode == 1, finished.stdout + finished.stderr
    (check,) = [p for p in found.properties if p.name == "ranks_agree"]
    assert check.first_divergence is not None
    assert check.first_divergence.bits is not None
    for said in (
        "FAIL ranks_agree",
        "ranks 0 and 1",
        *check.first_divergence.bits,
        found.replays["ranks_agree"],
    ):
        assert said in finished.stdout


def test_a_replay_of_a_mended_combine_passes(tmp_path: Path) -> None:
    found = run_fuzz(FuzzJob(cases=64, combine=MUTANT + "eps dropped", save=tmp_path))
    path = shlex.split(found.replays["non_finite"])[-1]
    assert run_replay(path).verdict is Verdict.FAIL
    assert run_replay(path, combine="verify.combine:combine_cfg").verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "run"}, "it is a 'run'"),
        ({"case": {}}, "KeyError"),
        ({"case": None}, "TypeError"),
    ],
)
def test_a_damaged_case_is_bad_input(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    case = Case("float16", 1, 2, (Values(), Values()))
    path = Saved("oracle", "", OWN, 2, "cpu", None, case).write(tmp_path)
    assert read_saved(str(path)).case == case.explicit()
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadInput, match=said):
        run_replay(str(path))


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (FuzzJob("slow"), "--profile is 'slow'"),
        (FuzzJob(cases=0), "--cases is 0"),
        (FuzzJob(seed=-1), "--seed is -1"),
        (FuzzJob(combine="verify.combine:nothing"), "--combine is"),
        (FuzzJob(device="tpu"), "device is 'tpu'"),
    ],
)
def test_bad_input(job: FuzzJob, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        run_fuzz(job)


def test_a_combine_that_raises_is_a_failure_and_hangs_nobody(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("def combine(gen, *rest):\n    raise ArithmeticError(f'no {gen.dtype}')\n")
    found = run_fuzz(FuzzJob(cases=16, combine=f"{broken}:combine", save=tmp_path))
    (check,) = [p for p in found.properties if p.name == "completes"]
    assert check.verdict is Verdict.FAIL
    assert "ArithmeticError: no torch." in check.summary


def test_one_rank_alone_judges_no_agreement(tmp_path: Path) -> None:
    found = run_fuzz(FuzzJob(cases=16, world_size=1, save=tmp_path))
    assert {p.verdict for p in found.properties if p.name in ("ranks_agree", GUIDED_STEPS_AGREE)} == {Verdict.UNKNOWN}
    assert found.exit_status == 3


def test_the_same_seed_draws_the_same_cases() -> None:
    first = draw(cases(), 64, 5)
    assert first == draw(cases(), 64, 5)
    assert first != draw(cases(), 64, 6)
    assert len(first) > 48


def test_what_is_drawn_is_hard() -> None:
    """Every kind of value and layout that the issue of fuzzing is about occurs."""
    drawn = [case for seed in range(4) for case in draw(cases(), 128, seed)]
    assert {case.layout for case in drawn} == set(LAYOUTS)
    assert {case.dtype for case in drawn} == set(FLOATS)
    assert {0, 1} <= {case.tokens for case in drawn}
    assert max(case.tokens for case in drawn) > 1000
    seen: set[str] = set()
    for case in drawn:
        gen, text, *_ = case.bits().values()
        magnitude, form = gen & (form_sign := case.form.sign - 1), case.form
        seen |= {"equal branches"} if case.size and np.array_equal(gen, text) else set()
        seen |= {"zero norm"} if case.size and not magnitude.any() else set()
        seen |= {"-0"} if (gen == form.sign).any() else set()
        seen |= {"inf"} if (magnitude == form.infinity).any() else set()
        seen |= {"NaN payload"} if (magnitude > form.infinity | 1 << (form.mantissa - 1)).any() else set()
        seen |= {"subnormal"} if ((magnitude > 0) & (magnitude < 1 << form.mantissa)).any() else set()
        seen |= {"nearly equal"} if case.size and 0 < int((gen ^ text).max()) & form_sign < 16 else set()
    assert seen == {"equal branches", "zero norm", "-0", "inf", "NaN payload", "subnormal", "nearly equal"}


def test_a_case_survives_json() -> None:
    for case in draw(cases(), 48, 1):
        explicit = case.explicit()
        for form in (case, explicit):
            again = Case.from_dict(json.loads(json.dumps(form.to_dict())))
            assert again.to_dict() == form.to_dict()
            for name, bits in again.bits().items():
                assert np.array_equal(bits, case.bits()[name])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_hold_the_same_elements(layout: str) -> None:
    values = tuple(Values(patterns=((0, 0xFFFF),), seed=seed) for seed in range(3))
    case = Case("bfloat16", 5, 7, values, layout=layout, offset=3)
    laid = lay_out(case, CPU)
    for view, fresh in zip(laid.branches, dense(case, CPU), strict=True):
        assert torch.equal(view.view(torch.int16), fresh.view(torch.int16))
    strides = {"contiguous": (7, 1), "sliced": (7, 1), "gathered": (7, 1), "transposed": (1, 5), "columns": (13, 1),
               "strided": (14, 2), "expanded": (0, 1)}  # fmt: skip
    assert laid.branches[1].stride() == strides[layout]
    assert (laid.branches[1].storage_offset() % 4 != 0) == (layout in ("sliced", "gathered", "columns"))


def test_a_write_to_padding_is_seen(pool: RankPool, tmp_path: Path) -> None:
    source = tmp_path / "padding.py"
    source.write_text(
        "from verify.combine import combine_cfg\n"
        "def combine(gen, *rest):\n"
        "    out = combine_cfg(gen, *rest)\n"
        "    gen.as_strided((1,), (1,), 0).fill_(7)\n"
        "    return out\n"
    )
    case = Case("float32", 2, 3, (Values(), Values()), layout="sliced", offset=1)
    reports = pool.run(evaluate, [case], f"{source}:combine")
    assert {problem.name for problem in reports[0].problems} == {"inputs_unchanged"}


def test_known_steps_on_the_bound() -> None:
    """Measured before: at shift 3 and (0.4, 1] the rules part at these numbers of timesteps and not at others."""
    for count in (12, 23, 34, 45, 100, 50, 56):
        made = decisions(Bounds(count, 3.0, 0.4, 1.0), CPU)
        assert (made["tensor"] != made["host"]) == (count not in (50, 56)), count


def test_mixed_rules_are_told_as_the_deadlock_they_are(pool: RankPool) -> None:
    bounds = draw(schedules(), 64, 0)
    finding = fuzz_boundary(pool, bounds, 0, HOST_ON_ONE_RANK)
    assert finding.verdict is Verdict.FAIL
    assert "waits in all_gather for ever" in finding.summary
    assert finding.first_divergence is not None
    simplest = Bounds.from_dict(finding.data["case"])
    made = decisions(simplest, CPU)
    step = finding.first_divergence.step
    assert step is not None
    assert made["tensor"][step] != made["host"][step]
    right = fuzz_boundary(pool, bounds, 0)
    assert right.verdict is Verdict.PASS
    assert right.details[0].startswith("if one rank chose its guided steps by the rule tensor and another by host")


def test_guided_steps_of_one_rank_are_not_judged() -> None:
    bounds = Bounds(12, 3.0, 0.4, 1.0)
    assert judge_boundary([bounds], [[decisions(bounds, CPU)]]).verdict is Verdict.UNKNOWN
    two = [[decisions(bounds, CPU)], [{**decisions(bounds, CPU), TENSOR_RULE: (False,) * 11}]]
    assert judge_boundary([bounds], two).summary.startswith("only rank 0 guides step 0 ")


def test_the_envelope_sees_what_changes_bits_and_what_does_not() -> None:
    job = EnvelopeJob(
        conditions=("strides", "dtype of the gather", "gathered slice", "CUDA graph"), dtypes=("bfloat16", "float32")
    )
    found = run_envelope(job)
    verdicts = {(row.condition, row.subject, row.dtype): row.verdict for row in found.rows}
    assert verdicts["dtype of the gather", "combine", "float32"] == "differs"
    assert verdicts["dtype of the gather", "combine", "bfloat16"] == "bitwise"
    assert verdicts["strides", "combine", "float32"] == "within"
    assert verdicts["gathered slice", "forward", "bfloat16"] == "bitwise"
    assert verdicts["CUDA graph", "combine", "float32"] == "unknown"
    for row in found.rows:
        assert bool(row.explanation) == (row.verdict in ("within", "differs"))
        assert bool(row.note) or row.verdict != "unknown"
    assert found.exit_status == 0


def test_an_envelope_out_of_time_is_unknown() -> None:
    found = run_envelope(replace(EnvelopeJob(), timeout=1.0, subjects=("forward",)))
    assert found.exit_status == 3
    assert any("out of time" in row.note or "not done within" in row.note for row in found.rows)


def test_every_condition_has_its_explanations() -> None:
    expected = {(condition, subject) for condition in CONDITIONS for subject in ("combine", "forward")}
    assert set(EXPLANATIONS) == expected - {("attention kernel", "combine")}
