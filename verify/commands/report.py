"""``verify report``: a JSON document for people."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("document", metavar="FILE", help="what a command wrote with --json")
    add_outputs(parser)
    parser.add_argument("--png", metavar="DIR", help="write a run's plots as PNG files to DIR")
    parser.add_argument("--trend", metavar="DIR", help="set its timings beside those of the documents in DIR")


def add_outputs(parser: argparse._ActionsContainer) -> None:
    """The options that write a report for people."""
    parser.add_argument("--html", metavar="FILE", help="write a self-contained page to FILE; - for standard output")
    parser.add_argument("--markdown", metavar="FILE", help="write a summary to FILE; - for standard output")


def check_outputs(arguments: argparse.Namespace) -> None:
    """Finds out before a long run whether its reports can be written.

    Raises:
        BadInput: one cannot.
    """
    from verify.report.document import check_writable

    for path in (arguments.html, arguments.markdown):
        if path and path != "-":
            check_writable(path)


def write_outputs(document: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Writes the page and the summary that were asked for.

    Raises:
        BadInput: the document cannot be used, or a file cannot be written.
    """
    from verify.report.document import report_of
    from verify.report.html import run_page, section_page
    from verify.report.markdown import run_markdown
    from verify.report.sections import kind_of, section_of
    from verify.report.tables import markdown_section

    page: Callable[[], str]
    summary: Callable[[], str]
    if kind_of(document) == "run":
        report = report_of(document)
        page, summary = partial(run_page, report), partial(run_markdown, report)
    else:
        section = section_of(document)
        page, summary = partial(section_page, section), partial(markdown_section, section)
    for path, text in ((arguments.html, page), (arguments.markdown, summary)):
        if path:
            _write(path, text())


def _write(path: str, text: str) -> None:
    from verify.report.document import write_whole

    if path == "-":
        sys.stdout.write(text)
    else:
        write_whole(path, text)


def execute(arguments: argparse.Namespace) -> int:
    """Writes what was asked for, or prints the report; returns 0: it judges nothing anew."""
    from rich.console import Console

    from verify.errors import BadInput
    from verify.report.console import print_report, say
    from verify.report.document import load_json, report_of, validate
    from verify.report.sections import kind_of, section_of
    from verify.report.tables import markdown_section

    document = load_json(arguments.document)
    kind = kind_of(document)
    if kind == "run":  # Somebody else may have written it; what this command has just made needs no schema.
        validate(document)
    if arguments.png and kind != "run":
        raise BadInput.of("--png", arguments.png, f"a run's document, not one of kind {kind}", "leave it out")
    check_outputs(arguments)
    if arguments.trend:
        return _trend(document, arguments)
    write_outputs(document, arguments)
    if arguments.png:
        from verify.report.plots import write_plots

        write_plots(report_of(document), Path(arguments.png))
    if not (arguments.html or arguments.markdown or arguments.png):
        if kind == "run":
            print_report(report_of(document), Console())
        else:
            say(Console(), markdown_section(section_of(document)))
    return 0


def _trend(document: Any, arguments: argparse.Namespace) -> int:
    from verify.errors import BadInput
    from verify.report.html import section_page
    from verify.report.tables import markdown_section
    from verify.report.trend import earlier, trend

    if arguments.png:
        raise BadInput("--trend and --png were both given, expected one of them; leave one out")
    section = trend(document, earlier(Path(arguments.trend)))
    if arguments.html:
        _write(arguments.html, section_page(section))
    if arguments.markdown or not arguments.html:
        _write(arguments.markdown or "-", markdown_section(section))
    return 0
