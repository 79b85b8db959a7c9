"""How loops were judged by rounding, for people."""

from __future__ import annotations

from collections.abc import Sequence

from verify.report.documents.rounding import Deviates, Rounding
from verify.report.sections.blocks import Block, Cell, Paragraph, Section, Table, shown
from verify.verdict import Verdict

_MOST_ROWS = 40


def section(judged: Sequence[Rounding]) -> Section:
    """Each loop's decision, what came nearest to its limit, what lies beyond, and how well the distribution fits."""
    return Section("Rounding", [block for each in judged for block in _of_loop(each)])


def _of_loop(judged: Rounding) -> list[Block]:
    said = (
        f"{judged.loop}: {judged.decision}. {judged.equal} of {judged.judged} steps are equal in every byte"
        f"; {judged.draws} draws of randomised rounding for each of the others. A step that deviates by rounding alone "
        f"is called not explained with a probability of at most {judged.false_alarm:g} in the whole loop."
    )
    blocks: list[Block] = [Paragraph(said)]
    if judged.nearest:
        caption = f"What came nearest to its limit in {judged.loop}, as root mean squares over what rounding does"
        blocks.append(Table(_HEADINGS, [_row(each) for each in judged.nearest], caption))
    if judged.exceeding:
        rows = [_row(each) for each in judged.exceeding[:_MOST_ROWS]]
        blocks.append(Table(_HEADINGS, rows, f"What is not explained in {judged.loop}", folded=True))
    if judged.fits:
        rows = [
            [fit.kind, shown(fit.freedom), f"{level.level:g}", str(level.above), shown(level.expected),
             Cell("refuted", Verdict.UNKNOWN) if fit.refuted else "fits"]
            for fit in judged.fits for level in fit.levels
        ]  # fmt: skip
        headings = ["kind", "degrees of freedom", "level", "draws above", "expected", "tail"]
        blocks.append(Table(headings, rows, f"How the distribution fits the draws, {judged.loop}", folded=True))
    return blocks


_HEADINGS = ("step", "ranks", "what", "seen", "explained up to", "probability")


def _row(each: Deviates) -> list[str | Cell]:
    index = f" {each.index[0] if len(each.index) == 1 else list(each.index)}" if each.index else ""
    beyond = float(each.seen) > float(each.allowed)
    seen = f"{float(each.seen):.3g}"
    return [
        str(each.step),
        ", ".join(map(str, each.ranks)),
        each.kind + index,
        Cell(seen, Verdict.FAIL) if beyond else seen,
        f"{float(each.allowed):.3g}",
        f"{each.probability:.1e}",
    ]
