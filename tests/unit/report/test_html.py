"""The page of a run: what it shows, in which order, and that nothing a user names is markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from example_reports import EXAMPLES, clean, dead_and_hung, drifting, one_bit, report

from verify.environment.properties import PROPERTIES, Kind
from verify.environment.variables import VISIBLE_DEVICES
from verify.report import environment, evidence
from verify.report.document import build_document, report_of
from verify.report.html import run_page, section_page
from verify.report.markdown import run_markdown
from verify.report.tables import Section, Table
from verify.trace.trace import PRIVATE_ENVIRONMENT
from verify.verdict import Finding, Verdict

VOID = {"meta", "br", "wbr"}
HOSTILE = "<script>alert(1)</script>\"'&[bold]\x1b[31m"


class Page(HTMLParser):
    """Every tag closed in order; text and attributes kept."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_report_is_one_well_formed_page(example: str) -> None:
    made = EXAMPLES[example]()
    page = run_page(made)
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert "link" not in parsed.tags
    assert not [value for name, value in parsed.attributes if name in ("src", "href")]
    assert not re.search(r"url\(|@import|https?:", page)
    first_heading = parsed.text[: parsed.text.index("builtin")]
    assert str(made.verdict) in first_heading.lower()


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_document_and_its_report_give_the_same_page(example: str) -> None:
    made = EXAMPLES[example]()
    document = build_document(made)
    assert build_document(report_of(document)) == document
    assert run_page(report_of(document)) == run_page(made)


def test_verdict_then_checks_then_agreement_then_differences_then_command_then_environment() -> None:
    page = run_page(one_bit())
    order = ["<h1>", "<h2>Checks", "<h2>Agreement", "<h2>What differs", "<h2>To see it again", "<h2>Environment"]
    places = [page.index(heading) for heading in order]
    assert places == sorted(places)


def test_names_of_users_are_text() -> None:
    finding = one_bit().findings[1]
    hostile = Finding(finding.name, HOSTILE, finding.verdict, HOSTILE, finding.compared, finding.first_divergence,
                      (HOSTILE,), {"location": {"tensor": HOSTILE}})  # fmt: skip
    environment = [{"rank": 0, HOSTILE: HOSTILE}, {"rank": 1, HOSTILE: "other"}]
    made = report([hostile], target=HOSTILE, notes=[HOSTILE], command=HOSTILE, environment=environment,
                  collectives={HOSTILE: {HOSTILE: 1}}, timings={HOSTILE: 1.0})  # fmt: skip
    page = run_page(made)
    assert "script" not in Page(page).tags
    assert "\x1b" not in page
    assert "<script>alert(1)</script>" in Page(page).text
    assert "<script" not in section_page(Section(HOSTILE, HOSTILE, HOSTILE, [HOSTILE], [Table([HOSTILE], [[HOSTILE]])]))
    fences = run_markdown(made).split("```")
    outside = "".join(fences[::2])
    assert "<script" not in re.sub(r"`[^`]*`", "", outside).replace("\\<script", "")


def test_the_grid_of_a_pass_agrees_everywhere() -> None:
    for grid in evidence.grids(clean()):
        assert grid.verdict is Verdict.PASS
        assert [strip.said for strip in grid.strips] == ["agrees in 49 of 49 steps"] * 2


def test_the_grid_of_a_failure_shows_the_odd_rank() -> None:
    (grid,) = evidence.grids(drifting())
    assert [strip.states for strip in grid.strips] == [
        (0.0,) * 3 + (0.5,) * 4,
        (0.0,) * 3 + (1.0,) * 4,
        (0.0,) * 3 + (0.5,) * 4,
    ]
    assert grid.strips[1].said == "differs from step 3 on"
    assert "differs from step 3 on" in Page(run_page(drifting())).text


def test_growth_and_map_are_those_of_the_traces() -> None:
    made = drifting()
    (finding,) = made.findings
    series = evidence.growth(finding)
    assert [(s.label, s.mismatched) for s in series] == [
        ("ranks 0 and 1", (0, 0, 0, 2, 3, 3, 3)),
        ("ranks 1 and 2", (0, 0, 0, 2, 3, 3, 3)),
    ]
    assert [bool(ulp) for ulp in series[0].max_ulp] == [False] * 3 + [True] * 4
    tokens = evidence.token_map(made, finding)
    assert tokens is not None
    # Two of three channels of token 2 of a 2 by 2 image.
    assert tokens.rows == ((0, 0), (6, 0))
    assert tokens.what == "x_t after step 3"
    assert 'class="map"' in run_page(made)


def test_a_map_that_does_not_fit_the_image_is_not_drawn() -> None:
    made = drifting()
    (finding,) = made.findings
    finding.data["map"]["tokens"] = "..6"
    assert evidence.token_map(made, finding) is None
    assert 'class="map"' not in run_page(made)


def test_what_nothing_was_compared_in_is_not_shown_as_agreement() -> None:
    unjudged = Finding("ranks_agree", "local", Verdict.UNKNOWN, "one rank has nobody to agree with")
    (grid,) = evidence.grids(report([unjudged], world_size=1))
    assert [strip.said for strip in grid.strips] == ["not compared"]
    assert 'class="agree"' not in run_page(report([unjudged], world_size=1))


def test_the_page_of_a_run_that_did_not_finish_says_why() -> None:
    text = Page(run_page(dead_and_hung())).text
    assert "Unknown: it could not be judged" in text
    assert "rank 2 was killed by SIGKILL after step 5" in text
    assert "No rank reported" not in text


def test_environments_are_marked_where_they_matter() -> None:
    ranks = [
        {"rank": 0, "host": "a", "torch": "2.13.0", "variables": {"NCCL_ALGO": "Ring"}},
        {"rank": 1, "host": "b", "torch": "2.13.0", "variables": {}},
    ]
    rows = environment.rows(ranks)
    assert [(row.name, row.values, row.matters) for row in rows] == [
        ("NCCL_ALGO", ("Ring", None), True),
        ("host", ("a", "b"), False),
        ("torch", ("2.13.0", "2.13.0"), False),
    ]
    page = run_page(report(clean().findings, environment=ranks))
    assert page.count("<tr class=differs>") == 1
    assert "1 property differs" in page
    assert "not set" in page


def test_what_may_differ_is_what_the_check_lets_differ() -> None:
    harmless = {setting.name for setting in PROPERTIES if setting.kind is Kind.SHOWN}
    assert set(environment.MAY_DIFFER) == {*PRIVATE_ENVIRONMENT, *VISIBLE_DEVICES, *harmless}


def test_colour_is_never_alone() -> None:
    page = run_page(drifting())
    for verdict, shape in (("fail", "M5 1h6l4"), ("pass", "circle")):
        if f'word {verdict}"' in page:
            assert shape in page
            assert f"</svg> {verdict}" in page
