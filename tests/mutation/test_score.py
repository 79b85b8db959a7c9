"""What mutmut left is read as it is: nothing that survived is lost, and no explanation outlives its mutant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import score
from score import Counts, Survivor, counts_of, document, explanations, judged, mutated_files

from verify.report.documents.reading import document_of
from verify.report.markdown import markdown
from verify.report.sections.present import present

SOURCE = '''"""A file."""


def plain(a: int) -> int:
    return a + 1


class Box:
    @classmethod
    def made(cls, a: int) -> int:
        return plain(
            a,
        )
'''
# As mutmut 3.8 writes it: what calls one of the copies, and the copies.
MUTATED = '''"""A file."""


@_mutmut_mutated(mutants_x_plain__mutmut)
def plain(a: int) -> int:
    return a + 1


def x_plain__mutmut_orig(a: int) -> int:
    return a + 1


def x_plain__mutmut_1(a: int) -> int:
    return a - 1


def x_plain__mutmut_2(a: int) -> int:
    return a + 2


class Box:
    @classmethod
    def xǁBoxǁmade__mutmut_orig(cls, a: int) -> int:
        return plain(
            a,
        )

    @classmethod
    def xǁBoxǁmade__mutmut_1(cls, a: int) -> int:
        return plain(
            None,
        )

    @classmethod
    def xǁBoxǁmade__mutmut_2(cls, a: int) -> int:
        return plain(
            )
'''
SPANS = {
    "x_plain__mutmut_orig": [9, 10], "x_plain__mutmut_1": [13, 14], "x_plain__mutmut_2": [17, 18],
    "xǁBoxǁmade__mutmut_orig": [22, 26], "xǁBoxǁmade__mutmut_1": [28, 32], "xǁBoxǁmade__mutmut_2": [34, 37],
}  # fmt: skip
PLAIN = Survivor("pkg/file.py", 5, "plain", "return a + 1", "return a - 1")


def left_by_mutmut(folder: Path, **statuses: int | None) -> tuple[Path, Path, str]:
    (folder / "mutants").mkdir()
    source, mutated = folder / "file.py", folder / "mutants" / "file.py"
    source.write_text(SOURCE, encoding="utf-8")
    mutated.write_text(MUTATED, encoding="utf-8")
    keys = {f"pkg.file.{name}": statuses.get(name, 1) for name in SPANS if not name.endswith("orig")}
    mutated.with_name("file.py.meta").write_text(json.dumps({"exit_code_by_key": keys}), encoding="utf-8")
    mutated.with_name("file.py.spans").write_text(json.dumps({"spans": SPANS}), encoding="utf-8")
    return source, mutated, "pkg/file.py"


def test_all_killed(tmp_path: Path) -> None:
    assert counts_of(*left_by_mutmut(tmp_path, x_plain__mutmut_2=3)) == Counts("pkg/file.py", 4, 0, ())


def test_survivors_are_placed_in_the_source(tmp_path: Path) -> None:
    left = left_by_mutmut(tmp_path, x_plain__mutmut_1=0, xǁBoxǁmade__mutmut_1=0, xǁBoxǁmade__mutmut_2=0)
    counts = counts_of(*left)
    assert (counts.killed, counts.timed_out, counts.mutants) == (1, 0, 4)
    assert counts.survivors == (
        PLAIN,
        Survivor("pkg/file.py", 12, "Box.made", "a,", "None,"),
        Survivor("pkg/file.py", 12, "Box.made", "a, )", ")"),
    )


@pytest.mark.parametrize("status", [-24, 36, 255])
def test_a_mutant_that_hangs_is_noticed_and_told(status: int, tmp_path: Path) -> None:
    assert counts_of(*left_by_mutmut(tmp_path, x_plain__mutmut_1=status)) == Counts("pkg/file.py", 3, 1, ())


@pytest.mark.parametrize("status", [2, 5, 33, 34, 35, -9, -11])
def test_whatever_else_happened_is_no_kill(status: int, tmp_path: Path) -> None:
    """No test, a crash, an interruption: 33 is what mutmut writes where no test reaches the function."""
    assert counts_of(*left_by_mutmut(tmp_path, x_plain__mutmut_1=status)).survivors == (PLAIN,)


def test_a_mutant_that_was_not_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pkg/file\.py: 1 mutants were not run"):
        counts_of(*left_by_mutmut(tmp_path, x_plain__mutmut_1=None))


def explained(*survivors: Survivor) -> dict[tuple[str, str, str, str], str]:
    return {survivor.identity: "nobody can tell" for survivor in survivors}


def test_the_score_is_of_what_is_not_explained() -> None:
    counts = Counts("pkg/file.py", 18, 1, (PLAIN,))
    tables, complaints = judged([counts], {})
    assert complaints == []
    (row,) = tables["files"]
    assert (row["mutants"], row["killed"], row["timed_out"], row["survived"], row["explained"]) == (20, 18, 1, 1, 0)
    assert row["score_%"] == 95.0
    assert tables["survivors"][0]["why_nothing_notices"] == score.UNEXPLAINED
    tables, complaints = judged([counts], explained(PLAIN))
    assert complaints == [] and tables["files"][0]["score_%"] == 100.0
    assert tables["survivors"] == [
        {
            "file": "pkg/file.py",
            "line": 5,
            "mutation": "return a + 1 → return a - 1",
            "why_nothing_notices": "nobody can tell",
        }
    ]


def test_one_file_below_the_score_fails_the_whole() -> None:
    good, bad = Counts("good.py", 1000, 0, ()), Counts("pkg/file.py", 17, 1, (PLAIN,))
    assert judged([good, bad], {})[1] == ["pkg/file.py: 18 of 19 mutants killed, 94.7 %"]
    # Where every mutant is explained nothing was proven.
    assert judged([Counts("pkg/file.py", 0, 0, (PLAIN,))], explained(PLAIN))[1] != []


def test_an_explanation_of_a_mutant_that_is_dead_is_stale() -> None:
    _, complaints = judged([Counts("pkg/file.py", 20, 0, ())], explained(PLAIN))
    assert complaints == [f"stale explanation, no such mutant survived: {PLAIN.identity}"]


def test_the_same_change_made_twice_in_a_function_is_explained_once() -> None:
    twice = (PLAIN, Survivor("pkg/file.py", 9, "plain", "return a + 1", "return a - 1"))
    tables, complaints = judged([Counts("pkg/file.py", 20, 0, twice)], explained(PLAIN))
    assert complaints == [] and tables["files"][0]["explained"] == 2


ENTRY = '[[survivor]]\nfile = "f"\nfunction = "g"\nwas = "a"\nbecomes = "b"\nwhy = """{}"""\n'


def test_explanations_have_reasons_and_come_once(tmp_path: Path) -> None:
    path = tmp_path / "explained.toml"
    path.write_text(ENTRY.format("it is\n so"), encoding="utf-8")
    assert explanations(path) == {("f", "g", "a", "b"): "it is so"}
    for text in (ENTRY.format(" "), 2 * ENTRY.format("so")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="explained twice, or without a reason"):
            explanations(path)


def test_explained_lines_are_still_in_the_source() -> None:
    """The cheap half of what a run of mutmut finds stale."""
    names = {path.as_posix() for path in mutated_files(score.ROOT)}
    for file, function, was, _ in explanations():
        assert file in names
        text = " ".join((score.ROOT / file).read_text(encoding="utf-8").split())
        assert " ".join(was.split()) in text, f"{file}, {function}: {was}"


def test_what_is_mutated_exists_and_so_do_the_tests() -> None:
    names = {path.as_posix() for path in mutated_files(score.ROOT)}
    assert {
        "verify/schedule.py",
        "verify/combine.py",
        "verify/trace/recorder.py",
        "verify/checks/agreement.py",
    } <= names
    for test in score.configured(score.ROOT)["pytest_add_cli_args_test_selection"]:
        assert (score.ROOT / test).exists(), test


def test_the_document_is_a_section() -> None:
    tables, complaints = judged([Counts("pkg/file.py", 18, 1, (PLAIN,))], explained(PLAIN))
    made = document(tables, complaints, {"python": "3.12", "cpu": "x86"}, 90.0)
    text = markdown(present(document_of(made)))
    assert "✓ pass: The verifier's own code with one thing wrong" in text
    assert "| pkg/file.py | 20 | 18 | 1 | 1 | 1 | 100 |" in text
    assert "return a + 1 → return a - 1 | nobody can tell |" in text
    assert "1 explained: 100.00 % of the mutants that are not explained" in text
    assert document(tables, ["something"], {}, 0.0)["verdict"] == "fail"


@pytest.mark.parametrize(("complaint", "status"), [(None, 0), ("stale", 1)])
def test_the_exit_status(
    complaint: str | None,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def counted(*_: object) -> Counts:
        return Counts("pkg/file.py", 19, 0, (PLAIN,))

    told: dict[Any, str] = {} if complaint is None else {("f", "g", "a", "b"): complaint}
    monkeypatch.setattr(score, "counts_of", counted)
    monkeypatch.setattr(score, "mutated_files", lambda root: [Path("pkg/file.py")])
    monkeypatch.setattr(score, "explanations", lambda: told)
    assert score.main(["--judge-only", "--json", str(tmp_path / "m.json")]) == status
    said = capsys.readouterr().out
    assert "pkg/file.py:5: survived: return a + 1 → return a - 1" in said
    assert ("stale explanation" in said) == bool(told)
    assert json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))["kind"] == "mutation"


def test_mutmut_that_does_not_run_is_no_score(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(root: Path) -> None:
        raise FileNotFoundError(f"no mutmut beside {root}")

    monkeypatch.setattr(score, "run_mutmut", fails)
    assert score.main([]) == 2
    assert "mutmut did not run: no mutmut beside" in capsys.readouterr().err
