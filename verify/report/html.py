"""A presentation as one page that needs no other file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup, escape

from verify.report import svg
from verify.report.sections.blocks import MARKS, WORDS, Block, Card, Presentation, Table, slug
from verify.text import literal

# Blocks that may stand beside each other, with the class of what holds them.
_SIDE_BY_SIDE = {"Strips": "grids", "Chart": "figures", "TokenMap": "figures", "Image": "figures"}


def page(shown: Presentation) -> str:
    """The whole page. No character of the presentation is markup, and none is hidden."""
    blocks = [block for section in shown.sections for block in section.blocks]
    return _template().render(shown=shown, commands=[block.command for block in blocks if isinstance(block, Card)])


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("verify.report", "page"),
        autoescape=True,
        finalize=_literal,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    shapes, words = ({verdict: mark.partition(" ")[i] for verdict, mark in MARKS.items()} for i in (0, 2))
    environment.globals.update(svg=svg, words=words, sentences=WORDS, marks=shapes)
    environment.filters.update(breakable=_breakable, column=_column, anchor=slug)
    environment.filters.update(kind=_kind, grouped=_grouped, side_by_side=lambda block: _SIDE_BY_SIDE[_kind(block)])
    return environment.get_template("page.html.jinja")


def _literal(value: Any) -> Any:
    """Characters that a browser would act on or hide are shown as escapes; autoescape comes after this."""
    return literal(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breakable(name: str) -> Markup:
    """A name that may go on in the next line after punctuation: names of users' loops are long and phones narrow."""
    return Markup("<wbr>").join(escape(literal(part)) for part in re.split(r"(?<=[._:/-])", name))


def _column(table: Table, number: int) -> str:
    """The classes of a column: whether it holds numbers, and whether a phone leaves it out."""
    return ("number " if table.right(number) else "") + ("minor" if table.headings[number] in table.minor else "")


def _kind(block: Block) -> str:
    return type(block).__name__


def _grouped(blocks: Iterable[Block]) -> list[list[Block]]:
    """Blocks in order; pictures that follow each other stand side by side."""
    groups: list[list[Block]] = []
    for block in blocks:
        beside = _SIDE_BY_SIDE.get(_kind(block))
        if groups and beside and _SIDE_BY_SIDE.get(_kind(groups[-1][0])) == beside:
            groups[-1].append(block)
        else:
            groups.append([block])
    return groups
