"""What the section of every document is headed by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verify.report.environment import one_line
from verify.report.tables import Bars, Section, Table


def headed(
    document: Mapping[str, Any],
    title: str,
    tables: Sequence[Table],
    sentences: Sequence[str],
    notes: Sequence[str] = (),
    bars: Sequence[Bars] = (),
) -> Section:
    """A section under the document's command, hardware and versions."""
    command = document.get("command") or "the command was not recorded"
    environment = one_line(document["environment"])
    return Section(title, command, environment, notes, tables, sentences, document.get("verdict", ""), bars)


def listed(document: Mapping[str, Any], part: str) -> list[Mapping[str, Any]]:
    """The results that a document keeps under ``part``.

    Raises:
        ValueError: they are no list, or there are none.
    """
    if not isinstance(document[part], list) or not document[part]:
        raise ValueError(f"{part} is no list of results")
    return list(document[part])
