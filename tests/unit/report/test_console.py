"""The report as a person reads it: whole texts, and nothing that a user names is acted upon."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from example_reports import COMMAND, EXAMPLES, clean, dead_and_hung, one_bit, passing, rank_report, ranks_differ, report
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from verify.report.console import print_presentation
from verify.report.message import failure_text, rank_failure_text
from verify.report.sections.run import present_run
from verify.runner.run_report import RunReport
from verify.text import literal
from verify.verdict import Compared, Difference, Divergence, Finding, Verdict

SNAPSHOTS = Path(__file__).with_name("snapshots")


def printed(shown: RunReport, width: int = 80, encoding: str = "utf-8") -> str:
    """What a log of that width would hold."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    print_presentation(present_run(shown.document), Console(file=file, width=width, force_terminal=False, _environ={}))
    return "\n".join(line.rstrip() for line in raw.getvalue().decode(encoding).splitlines()) + "\n"


@pytest.mark.parametrize("name", EXAMPLES)
def test_whole_text(name: str) -> None:
    assert printed(EXAMPLES[name]()) == (SNAPSHOTS / f"{name}.txt").read_text(encoding="utf-8")


def test_every_snapshot_is_compared() -> None:
    assert {path.stem for path in SNAPSHOTS.glob("*.txt")} == set(EXAMPLES)


def test_the_order_of_a_failure() -> None:
    """What, which loop, step, ranks, index, both values, ULPs, how many of how many, details, the command."""
    shown = replace(one_bit().findings[1], details=("and so on",))
    text = failure_text(shown, COMMAND)
    parts = [
        *(
            "ranks_agree",
            "(local)",
            "differ in x_t",
            "step 7",
            "ranks 0 and 1",
            "index [3, 5]",
            "0xbee00000",
            "-0.4375",
        ),
        *("0xbee00001", "1 ULP apart", "1 of 1024 elements", "and so on", f"reproduce: {COMMAND}"),
    ]
    places = [text.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)


HOSTILE = ["[bold red]x[/]", "[/nonsense]", "<script>alert(1)</script>", "a\x1b[31mred", "b\rc", "\u202edesrever",
           ":smile:", "line\nbreak", "\udcff", "naïve", "日本"]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_are_shown_literally(name: str, encoding: str) -> None:
    shown = printed(report([ranks_differ(1.0, 2.0, 7, name)], target=name, notes=(name,)), 200, encoding)
    expected = literal(name, line_breaks=False).encode(encoding, "backslashreplace").decode(encoding)
    assert f"FAIL ranks_agree ({expected}): rank 0 of {expected}" in shown
    assert all(character.isprintable() or character == "\n" for character in shown)


@given(st.text())
@settings(deadline=None)
def test_literal_text_has_no_control_characters(text: str) -> None:
    shown = literal(text)
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    shown.encode("utf-8")
    if text.isprintable():
        assert shown == text


def test_no_control_codes_where_there_is_no_terminal() -> None:
    assert "\x1b" not in printed(one_bit())


def test_colour_on_a_terminal_only_repeats_the_words() -> None:
    file = io.StringIO()
    print_presentation(
        present_run(one_bit().document),
        Console(file=file, width=80, force_terminal=True, color_system="standard", _environ={}),
    )
    assert "\x1b[" in file.getvalue()
    assert "✗ FAIL step 7" in file.getvalue()


def table_of(text: str) -> list[list[str]]:
    """The rows of the first table; a cell's lines are joined."""
    lines = text.split("\n\n")[0].splitlines()[2:]
    rule = next(i for i, line in enumerate(lines) if "╇" in line)
    heading = [
        "".join(map(str.strip, column)) for column in zip(*(line.split("┃") for line in lines[:rule]), strict=True)
    ]
    return [heading, *([cell.strip() for cell in line.split("│")] for line in lines[rule + 1 :])]


def differing_in(*loops: str) -> RunReport:
    findings = [replace(ranks_differ(1.0, 2.0, 48, loop), name="parallelism_engaged") for loop in loops]
    return report(findings, collectives={})


def test_a_narrow_terminal_is_shown_fewer_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert table_of(printed(differing_in("broadcast", "local"), 80)) == [
        ["check", "broadcast", "local", "steps", "elements"],
        ["parallelism_engaged", "✗ FAIL step 48", "✗ FAIL step 48", "49", "104,448"],
    ]
    for width in (60, 40):
        text = printed(differing_in("broadcast", "local"), width)
        heading, first, *second = table_of(text)
        assert heading == ["check", "broadcast", "local"]
        assert [*first, *(cell for row in second for cell in row if cell)] in (
            ["parallelism_engaged", "✗ FAIL step 48", "✗ FAIL step 48"],
            ["parallelism_engaged", "✗ FAIL", "✗ FAIL", "step 48", "step 48"],
        )


@pytest.mark.parametrize("loops", [("broadcast", "local", "round_robin"), ("a" * 70, "b" * 70), ("x" * 300,)])
def test_where_no_table_fits_each_verdict_has_a_line(loops: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    shown = printed(differing_in(*loops), 40).split("\n\n")[0].splitlines()[2:]
    assert shown == [
        "parallelism_engaged",
        *(f"  {loop}: ✗ FAIL step 48" for loop in loops),
        "  steps: 49",
        f"  elements: {52224 * len(loops):,}",
    ]


def test_a_log_has_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert table_of(printed(differing_in("a" * 40, "b" * 40), 80))[0][:3] == ["check", "a" * 40, "b" * 40]


def test_before_step_0() -> None:
    shown = printed(report([ranks_differ(1.0, 2.0, -1)]))
    assert "✗ FAIL before step 0" in shown
    assert "where: before step 0, ranks 0 and 1, index [3, 5]" in shown
    assert "step -1" not in shown.replace("after step -1", "")


def test_a_check_that_judged_only_some_loops() -> None:
    shown = printed(report([passing("finite", "broadcast"), passing("ranks_agree", "local")]))
    rows = [line.split("│") for line in shown.splitlines() if "│" in line]
    assert [[cell.strip() for cell in row[:3]] for row in rows] == [
        ["finite", "✓ pass", ""],
        ["ranks_agree", "", "✓ pass"],
    ]


def test_an_unjudged_check_is_explained() -> None:
    finding = Finding("cache_frozen", "local", Verdict.UNKNOWN, "no context holds a cache: there was nothing to freeze")
    shown = printed(report([passing("finite", "local"), finding]))
    assert "UNKNOWN cache_frozen (local): no context holds a cache" in shown
    assert "usually" not in shown
    assert shown.splitlines()[-1].startswith("? unknown; exit status 3")


@pytest.mark.parametrize(
    ("values", "ulp", "expected"),
    [
        ((float("nan"), float("nan")), None, "both are NaN, with different bytes; 1 of 4 elements differ"),
        ((float("nan"), 1.0), None, "one of them is a NaN; 1 of 4 elements differ"),
        ((0.0, -0.0), 1, "1 ULP apart, equal as numbers and not as bytes; 1 of 4 elements differ"),
        ((3, 4), None, "integers, which have no ULP; 1 of 4 elements differ"),
        ((float("inf"), 1.0), 9, "9 ULP apart; 1 of 4 elements differ"),
    ],
)
def test_how_far_apart(values: tuple[float, float], ulp: int | None, expected: str) -> None:
    difference = Difference((0,), ("0x0", "0x1"), values, ulp, 1, 4, ulp)
    divergence = Divergence(0, (0, 1), "x_t", difference=difference)
    finding = Finding("ranks_agree", "local", Verdict.FAIL, "they differ", Compared(1, 4), divergence)
    assert f"  {expected}\n" in failure_text(finding)


def test_the_greatest_distance_is_told_where_several_differ() -> None:
    difference = Difference((0,), ("0x0", "0x1"), (1.0, 2.0), 1, 3, 4, 12)
    divergence = Divergence(0, (0, 1), "x_t", difference=difference)
    finding = Finding("ranks_agree", "local", Verdict.FAIL, "they differ", Compared(1, 4), divergence)
    assert "1 ULP apart; 3 of 4 elements differ, at most 12 ULP" in failure_text(finding)


def test_many_details_are_counted() -> None:
    details = tuple(f"detail {i}" for i in range(20))
    finding = Finding("finite", "local", Verdict.FAIL, "not finite", Compared(1, 1), details=details)
    assert "  detail 7\n  and 12 more\n" in failure_text(finding)


@pytest.mark.parametrize("culprit", ["first", "last"])
def test_a_long_stack_keeps_both_ends(culprit: str) -> None:
    """Tracebacks end with the cause, stack dumps begin with it."""
    lines = [f"line {i}" for i in range(1000)]
    lines[0 if culprit == "first" else -1] = "the cause"
    stuck = rank_report(0, "raised", "raised X", 0, "", "\n".join(lines))
    failure = replace(dead_and_hung(), failure={**(dead_and_hung().failure or {}), "ranks": [stuck]}).document.failure
    assert failure is not None
    text = rank_failure_text(failure)
    assert "    the cause" in text
    assert "    ... 960 lines left out ..." in text
    assert len(text.splitlines()) == 43


def test_a_pass_prints_no_failure_and_no_command() -> None:
    shown = printed(clean())
    assert "FAIL" not in shown
    assert "reproduce" not in shown


@pytest.mark.parametrize(
    ("example", "expected"),
    [(clean, "✓ pass; exit status 0"), (one_bit, "✗ FAIL; exit status 1"), (dead_and_hung, "? unknown; exit status 3")],
)
def test_the_last_line_is_the_verdict(example: Callable[[], RunReport], expected: str) -> None:
    assert printed(example()).splitlines()[-1].startswith(expected)


def in_detail(detail: Any) -> str:
    file = io.StringIO()
    shown = present_run(one_bit().document)
    print_presentation(shown, Console(file=file, width=160, force_terminal=False, _environ={}), detail)
    return file.getvalue()


def test_quiet_and_verbose() -> None:
    quiet, usual, verbose = (in_detail(detail) for detail in ("quiet", "usual", "verbose"))
    assert "FAIL ranks_agree (local)" in quiet
    assert quiet.splitlines()[-1] == usual.splitlines()[-1]
    assert "━" not in quiet
    assert len(quiet) < len(usual) < len(verbose)
