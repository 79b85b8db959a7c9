"""``verify bench``: what the broadcast costs, and what verifying costs."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from verify.commands.report import check_outputs, progress_for, show
from verify.commands.run import job_of
from verify.errors import BadInput
from verify.options.option import reproducing
from verify.options.table import COMMANDS
from verify.ranks.local.forkserver import fork_server

if TYPE_CHECKING:
    from verify.bench.points import Point
    from verify.report.documents.parts import Document

_Item = TypeVar("_Item")


def execute(arguments: argparse.Namespace) -> int:
    """Measures, prints tables and returns 0: a benchmark judges nothing. 3 if some point was not measured at all."""
    began = time.monotonic()
    fork_server()
    from verify.bench.session import Session
    from verify.errors import Unjudged
    from verify.report.disk import write_document

    check_outputs(arguments)

    def save(document: Document) -> None:
        # Standard output takes one document: the last.
        if arguments.json and arguments.json != "-":
            write_document(document, arguments.json)

    if arguments.forwards:
        return _forwards(arguments)
    session = Session(_points(arguments), arguments.overhead, _command(arguments), save, arguments.time_limit, began)
    problem: Unjudged | None = None
    with progress_for(arguments) as progress:
        try:
            session.measure(progress)
        except Unjudged as reason:
            problem = reason
    document = session.document
    if session.measured:
        show(document, arguments)
    if problem:
        raise problem
    if document.incomplete:
        print(f"verify: incomplete: {document.incomplete}", file=sys.stderr)
    return 0 if session.every_point else 3


def _forwards(arguments: argparse.Namespace) -> int:
    """Times one forward pass of another target beside the built-in one's."""
    import msgspec

    from verify.bench.forwards import forwards
    from verify.report.documents.bench import Forwards, Network
    from verify.report.documents.parts import head

    began = time.monotonic()
    measured = [forwards(point.job, point.alternations) for point in _points(arguments)]
    document = Forwards(
        **head(_command(arguments), measured[0]["environment"], measured[0]["notes"]),
        forwards=tuple(msgspec.convert(row, Network) for each in measured for row in each["rows"]),
        timings={"total": time.monotonic() - began},
    )
    return show(document, arguments)


def _points(arguments: argparse.Namespace) -> list[Point]:
    from verify.bench.points import Point, settings

    if arguments.time_limit is not None and not 0 < arguments.time_limit <= 86400:
        raise BadInput.of("--time-limit", arguments.time_limit, "seconds above 0 and up to 86400", "choose one")
    if arguments.cuda_graph and arguments.device != "cuda":
        raise BadInput.of("--cuda-graph with --device", arguments.device, "cuda", "leave --cuda-graph out")
    sides = _listed("--sizes", arguments.sizes, int, "different numbers of pixels separated by commas, such as 256,512")
    expected = "an integer of at least 1, or one for each of --sizes"
    alternations = _listed("--alternations", arguments.alternations, int, expected, repeated=True)
    if min(alternations) < 1 or len(alternations) not in (1, len(sides)):
        raise BadInput.of("--alternations", arguments.alternations, expected, "choose one")
    graphed = None
    if arguments.cuda_graph and arguments.cuda_graph != "all":
        graphed = _listed("--cuda-graph", arguments.cuda_graph, int, "some of --sizes, separated by commas")
        if not set(graphed) <= set(sides):
            raise BadInput.of("--cuda-graph", arguments.cuda_graph, "some of --sizes", "add the size there")
    base = job_of(arguments)
    jobs = settings(
        replace(base, target=arguments.forwards) if arguments.forwards else base,
        sides,
        _listed("--presets", arguments.presets, str, "different names of presets"),
        _listed("--world-sizes", arguments.world_sizes, int, "different numbers of ranks, such as 2,3"),
        _listed("--cfg-intervals", arguments.cfg_intervals, _interval, "different intervals, such as 0.4:1.0,0.0:1.0"),
        _listed("--timestep-counts", arguments.timestep_counts, int, "different integers, such as 25,50"),
    )
    return [
        Point(
            job.checked(),
            alternations[index % len(alternations)],
            bool(arguments.cuda_graph) and (graphed is None or job.request.height in graphed),
        )
        for index, job in enumerate(jobs)
    ]


def _listed(
    option: str, text: str | None, read: Callable[[str], _Item], expected: str, repeated: bool = False
) -> list[_Item]:
    if text is None:
        return []
    try:
        items = [read(item) for item in text.split(",")]
        if repeated or len(set(items)) == len(items):
            return items
    except ValueError:
        pass
    raise BadInput.of(option, text, expected, "correct it")


def _interval(text: str) -> tuple[float, float]:
    low, high = text.split(":")
    return float(low), float(high)


def _command(arguments: argparse.Namespace) -> str:
    return reproducing("bench", COMMANDS["bench"], vars(arguments))
