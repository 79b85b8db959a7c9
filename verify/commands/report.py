"""``verify report``: a JSON document for people. And how every command writes its document, page and summary."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from verify.commands.streams import discard_output
from verify.errors import BadInput, Unjudged
from verify.options.targets import with_options

if TYPE_CHECKING:
    from rich.console import Console

    from verify.report.console import Detail
    from verify.report.documents.parts import Document
    from verify.report.progress import ProgressReport
    from verify.report.sections.blocks import Presentation

_STANDARD_OUTPUT = "-"


def check_outputs(arguments: argparse.Namespace) -> None:
    """Finds out before a long run whether what it is to write can be written, each to a file of its own.

    Raises:
        BadInput: one cannot.
    """
    from verify.report.disk import check_writable

    taken = {os.path.realpath(arguments.document): "the document"} if hasattr(arguments, "document") else {}
    for option in ("json", "html", "markdown"):
        path = getattr(arguments, option, None)
        if not path:
            continue
        if path != _STANDARD_OUTPUT:
            check_writable(path)
        place = path if path == _STANDARD_OUTPUT else os.path.realpath(path)
        if place in taken:
            raise BadInput.of(f"--{option}", path, f"another file than {taken[place]}", "give each a name of its own")
        # A device takes everything.
        if place == _STANDARD_OUTPUT or not os.path.exists(place) or os.path.isfile(place):
            taken[place] = f"--{option}"


def console_for(arguments: argparse.Namespace) -> Console:
    """Where a command prints: a document, page or summary on standard output has it to itself."""
    from rich.console import Console

    outputs = (getattr(arguments, option, None) for option in ("json", "html", "markdown"))
    return Console(stderr=_STANDARD_OUTPUT in outputs)


def detail_of(arguments: argparse.Namespace) -> Detail:
    """How much a command prints.

    Raises:
        BadInput: both ``--quiet`` and ``--verbose``.
    """
    quiet, verbose = getattr(arguments, "quiet", False), getattr(arguments, "verbose", False)
    if quiet and verbose:
        raise BadInput("--quiet and --verbose were both given, expected one of them; leave one out")
    return "quiet" if quiet else "verbose" if verbose else "usual"


def progress_for(arguments: argparse.Namespace) -> ProgressReport:
    """What tells how far a long command is; nothing where it is to be quiet."""
    from rich.console import Console

    from verify.report.progress import ProgressReport

    return ProgressReport(Console(stderr=True, quiet=detail_of(arguments) == "quiet"))


def show(document: Document, arguments: argparse.Namespace) -> int:
    """Prints a document, writes it, its page and its summary where the command was asked to, returns its exit status.

    A verdict stands whatever becomes of standard output. Files are written first: what is printed knows of them.

    Raises:
        BadInput: a file cannot be written, and there is no verdict.
        Unjudged: a file cannot be written; the verdict has been printed, with the exit status that this means.
    """
    from verify.report.console import print_presentation
    from verify.report.disk import write_document
    from verify.report.sections.present import present

    shown = present(document)
    unwritten = ""
    try:
        if getattr(arguments, "json", None):
            write_document(document, arguments.json)
        write_outputs(shown, arguments)
    except BadInput as error:
        if shown.verdict is None:
            raise
        unwritten = str(error)
        shown = replace(shown, closing="exit status 3, since what was asked for could not be written")
    try:
        print_presentation(shown, console_for(arguments), detail_of(arguments))
        if sys.stdout is not None:
            sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # So rich answers a reader that has gone.
        if shown.verdict is None:
            raise
        discard_output()
    if unwritten:
        raise Unjudged(unwritten)
    return document.exit_status


def write_outputs(shown: Presentation, arguments: argparse.Namespace) -> None:
    """Writes the page and the summary that were asked for; both are made before either is written.

    Raises:
        BadInput: a file cannot be written.
    """
    from verify.report.disk import write_text

    made = []
    if getattr(arguments, "html", None):
        from verify.report.html import page

        made.append((arguments.html, page(shown)))
    if getattr(arguments, "markdown", None):
        from verify.report.markdown import markdown

        made.append((arguments.markdown, markdown(shown)))
    for path, text in made:
        write_text(path, text)


def execute(arguments: argparse.Namespace) -> int:
    """Writes what was asked for, or prints the report; returns 0: it judges nothing anew."""
    from verify.report.documents.reading import read

    document = read(arguments.document)
    if arguments.target:
        _require_target(document, with_options(arguments.target, arguments.target_option or ()))
    check_outputs(arguments)
    if arguments.trend:
        from verify.report.trend import earlier, trend

        shown = trend(document, earlier(Path(arguments.trend)))
        if not arguments.html and not arguments.markdown:
            arguments.markdown = _STANDARD_OUTPUT
        write_outputs(shown, arguments)
    elif arguments.html or arguments.markdown:
        from verify.report.sections.present import present

        write_outputs(present(document), arguments)
    else:
        show(document, arguments)
    return 0


def _require_target(document: Document, wanted: str) -> None:
    """So that a job which publishes one target's page never shows a page left behind by another's.

    Raises:
        BadInput: the document is about another target.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--target", default="builtin")
    parser.add_argument("--target-option", action="append", default=[])
    made, _ = parser.parse_known_args(shlex.split(document.command))
    found = with_options(made.target, made.target_option)
    if found != wanted:
        raise BadInput.of("the document's target", found, wanted, "name another document, or leave --target out")
