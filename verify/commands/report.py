"""``verify report``: a JSON document for people."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from verify.errors import BadInput


def check_outputs(arguments: argparse.Namespace) -> None:
    """Finds out before a long run whether what it is to write can be written, each to a place of its own.

    Raises:
        BadInput: one cannot.
    """
    from verify.report.document import check_writable

    taken = {os.path.realpath(arguments.document): "the document"} if hasattr(arguments, "document") else {}
    for option in ("json", "html", "markdown"):
        path = getattr(arguments, option, None)
        if not path:
            continue
        if path != "-" or option == "json":
            check_writable(path)
        place = path if path == "-" else os.path.realpath(path)
        if place in taken:
            raise BadInput.of(f"--{option}", path, f"another file than {taken[place]}", "give each a name of its own")
        if place == "-" or not os.path.exists(place) or os.path.isfile(place):  # A device takes everything.
            taken[place] = f"--{option}"


def write_outputs(document: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Writes the page and the summary that were asked for.

    Raises:
        BadInput: the document cannot be used, or a file cannot be written.
    """
    for path, text in _made(document, arguments):
        _write(path, text)


def _made(document: dict[str, Any], arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Where to and what; all of it is made before any of it is written."""
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
    return [(path, text()) for path, text in ((arguments.html, page), (arguments.markdown, summary)) if path]


def _write(path: str, text: str) -> None:
    from verify.report.document import write_whole

    if path == "-":
        sys.stdout.write(text)
    else:
        write_whole(path, text)


def execute(arguments: argparse.Namespace) -> int:
    """Writes what was asked for, or prints the report; returns 0: it judges nothing anew."""
    from verify.report.document import load_json, validate
    from verify.report.mismatch import as_document
    from verify.report.sections import kind_of

    document = load_json(arguments.document)
    kind = kind_of(document)
    if kind == "run":  # Somebody else may have written it; what this command has just made needs no schema.
        validate(document)
    if arguments.png and importlib.util.find_spec("matplotlib") is None:
        raise BadInput.of("--png", arguments.png, "matplotlib to be installed", "install it or use --html")
    if arguments.png and arguments.trend:
        raise BadInput("--trend and --png were both given, expected one of them; leave one out")
    check_outputs(arguments)
    with as_document(kind):
        if arguments.trend:
            _trend(document, arguments)
        elif arguments.html or arguments.markdown or arguments.png:
            _write_all(document, arguments)
        else:
            _print(document, kind)
    return 0


def _write_all(document: Any, arguments: argparse.Namespace) -> None:
    made = _made(document, arguments)
    if arguments.png:
        from verify.report.document import report_of
        from verify.report.plots import write_plots, write_section_plots
        from verify.report.sections import kind_of, section_of

        if kind_of(document) == "run":
            write_plots(report_of(document), Path(arguments.png))
        else:
            write_section_plots(section_of(document), Path(arguments.png))
    for path, text in made:
        _write(path, text)


def _print(document: Any, kind: str) -> None:
    from rich.console import Console

    from verify.report.console import print_report, print_section
    from verify.report.document import report_of
    from verify.report.sections import section_of

    if kind == "run":
        print_report(report_of(document), Console())
    else:
        print_section(section_of(document), Console())


def _trend(document: Any, arguments: argparse.Namespace) -> None:
    from verify.report.html import section_page
    from verify.report.tables import markdown_section
    from verify.report.trend import earlier, trend

    section = trend(document, earlier(Path(arguments.trend)))
    page, summary = section_page(section), markdown_section(section)
    if arguments.html:
        _write(arguments.html, page)
    if arguments.markdown or not arguments.html:
        _write(arguments.markdown or "-", summary)
