"""The page of a run: what it shows, in which order, and that nothing a user names is markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from example_documents import KINDS, blocks_of, presented
from example_reports import EXAMPLES, clean, dead_and_hung, drifting, one_bit, report

from verify.checks.records import CHECKS
from verify.report.html import page
from verify.report.markdown import markdown
from verify.report.sections.blocks import Card
from verify.report.sections.run import present_run
from verify.runner.run_report import RunReport
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
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def page_of(made: RunReport) -> str:
    return page(present_run(made.document))


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_report_is_one_well_formed_page(example: str) -> None:
    made = EXAMPLES[example]()
    text = page_of(made)
    parsed = Page(text)
    assert "link" not in parsed.tags
    assert not [value for name, value in parsed.attributes if name == "src"]
    assert {value[0] for name, value in parsed.attributes if name == "href"} == {"#"}
    assert not re.search(r"url\(|@import|https?:", text)
    assert str(made.verdict) in parsed.text[: parsed.text.index("builtin")].lower()
    assert made.to_html() == text


@pytest.mark.parametrize("kind", KINDS)
def test_so_is_every_other_document(kind: str) -> None:
    shown = presented(KINDS[kind])
    parsed = Page(page(shown))
    assert shown.title in parsed.text
    assert all(row[0] in parsed.text for block in blocks_of(KINDS[kind], Card) for row in block.facts)


def test_culprit_then_bars_then_checks_then_evidence_then_environment() -> None:
    text = page_of(one_bit())
    order = ["h1", 'id="what-is-at-fault"', 'id="agreement-step-by-step"', 'id="checks"', 'id="what-failed"',
             'id="environment"']  # fmt: skip
    places = [text.index(heading, text.index("<main>")) for heading in order]
    assert places == sorted(places)


def test_every_link_leads_somewhere() -> None:
    late, early = one_bit().findings[1], drifting().findings[0]
    for made in (report([late, replace(early, name="loops_agree")]), dead_and_hung()):
        parsed = Page(page_of(made))
        anchors = {value for name, value in parsed.attributes if name == "id"}
        assert {value[1:] for name, value in parsed.attributes if name == "href"} <= anchors


def test_claims_stand_beside_the_names_of_checks() -> None:
    assert CHECKS["ranks_agree"].claim in Page(page_of(clean())).text


def test_a_command_can_be_copied() -> None:
    text = page_of(one_bit())
    assert f"<pre>{one_bit().command}</pre><button" in text
    assert "navigator.clipboard" in text


def test_names_of_users_are_text() -> None:
    finding = one_bit().findings[1]
    hostile = Finding(finding.name, HOSTILE, finding.verdict, HOSTILE, finding.compared, finding.first_divergence,
                      (HOSTILE,), {"location": {"tensor": HOSTILE, "step": 1, "rank": 0}})  # fmt: skip
    environment = [{"rank": 0, HOSTILE: HOSTILE}, {"rank": 1, HOSTILE: "other"}]
    made = report([hostile], target=HOSTILE, notes=[HOSTILE], command=HOSTILE, environment=environment,
                  collectives={HOSTILE: {HOSTILE: 1}}, timings={HOSTILE: 1.0})  # fmt: skip
    text = page_of(made)
    parsed = Page(text)
    assert parsed.tags.count("script") == 1  # Ours.
    assert "\x1b" not in text
    assert "<script>alert(1)</script>" in parsed.text
    fences = markdown(present_run(made.document)).split("```")
    outside = "".join(fences[::2])
    assert "<script" not in re.sub(r"`[^`]*`", "", outside).replace("\\<script", "")


def test_what_differs_is_drawn_and_what_was_not_compared_is_no_agreement() -> None:
    text = page_of(drifting())
    assert "differs from step 3 on" in Page(text).text
    assert 'class="map"' in text and 'class="chart"' in text
    unjudged = Finding("ranks_agree", "local", Verdict.UNKNOWN, "one rank has nobody to agree with")
    assert 'class="agree"' not in page_of(report([unjudged], world_size=1))


def test_the_page_of_a_run_that_did_not_finish_says_why_and_folds_stacks() -> None:
    parsed = Page(page_of(dead_and_hung()))
    assert "Unknown: it could not be judged" in parsed.text
    assert "rank 2 was killed by SIGKILL after step 5" in parsed.text
    assert "stack of rank 0" in parsed.text
    assert parsed.tags.count("details") == 3


def test_environments_are_marked_where_they_matter() -> None:
    ranks = [{"rank": 0, "host": "a", "tf32": True}, {"rank": 1, "host": "b", "tf32": False}]
    text = page_of(report(clean().findings, environment=ranks))
    assert text.count('<tr class="differs">') == 1
    assert "1 property differs" in text


def test_colour_is_never_alone() -> None:
    text = page_of(drifting())
    for verdict, shape in (("fail", "M5 1h6l4"), ("pass", "circle")):
        if f'word {verdict}"' in text:
            assert shape in text


def test_a_notebook_shows_the_page_apart_from_its_own() -> None:
    shown = clean()._repr_html_()
    parsed = Page(shown)
    assert parsed.tags == ["iframe"]
    assert dict(parsed.attributes)["srcdoc"] == clean().to_html()


def test_a_report_prints_itself() -> None:
    assert str(one_bit()) == one_bit().text()
    assert len(one_bit().text().splitlines()) < 25
    assert repr(one_bit()).startswith("<RunReport fail: ranks_agree (local) at step 7 | builtin tiny")
