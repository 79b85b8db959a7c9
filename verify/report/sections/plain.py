"""What the presentations of documents that are no runs have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from verify.report.documents.parts import Document
from verify.report.sections import environment
from verify.report.sections.blocks import Presentation, Section
from verify.verdict import EXIT_STATUS, Verdict


def present(
    document: Document,
    title: str,
    said: str,
    sections: Sequence[Section],
    verdict: Verdict | None = None,
    subject: Sequence[str] = (),
    timings: Mapping[str, float] | None = None,
) -> Presentation:
    """A presentation under the document's title, command, notes, hardware and versions."""
    status = f"exit status {EXIT_STATUS[verdict]}" if verdict is not None else ""
    total = (timings or {}).get("total")
    spent = "" if total is None else f" in {total:.1f} s" if status else f"{total:.1f} s in all"
    return Presentation(
        title=title if verdict is None else f"{verdict}: {title}",
        verdict=verdict,
        heading=title,
        said=said,
        subject=subject,
        notes=document.notes,
        sections=[*sections, *([environment.section(document.environment)] if document.environment else [])],
        command=document.command,
        made=environment.made_line(document),
        closing=status + spent,
    )
