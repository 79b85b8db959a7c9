"""One benchmark, from its first point to its document. The document is saved whenever more is known."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from verify.bench.budget import Budget
from verify.bench.comparison import Comparison
from verify.bench.overhead import Overhead
from verify.bench.points import Point, measure
from verify.errors import Unjudged
from verify.ranks.failure.failure import RankFailure
from verify.ranks.plan import place
from verify.report.documents.bench import Bench
from verify.report.documents.bench import Overhead as OverheadDocument
from verify.report.documents.parts import finite, head
from verify.runner.run import pool_for
from verify.runner.tracing import Progress
from verify.tasks.stage import describe_rank


class Session:
    """What is measured, how long that may take, and what is known so far.

    Attributes:
        kind: the key under which the document keeps its points.
    """

    def __init__(
        self,
        points: Sequence[Point],
        overhead: bool,
        command: str,
        save: Callable[[Bench | OverheadDocument], None],
        time_limit: float | None = None,
        began: float | None = None,
    ) -> None:
        """``began`` is the monotonic time from which ``time_limit`` counts; now if left out."""
        self.kind = "overhead" if overhead else "points"
        self._points = points
        self._save = save
        self._began = time.monotonic() if began is None else began
        spent = time.monotonic() - self._began
        self._budget = Budget(None if time_limit is None else max(0.0, time_limit - spent))
        self._known: dict[str, Any] = {
            **head(command),
            "kind": "overhead" if overhead else "bench",
            "incomplete": "nothing has been measured yet",
            "time_limit_s": time_limit,
            self.kind: [],
            "timings": {},
        }

    @property
    def document(self) -> Bench | OverheadDocument:
        """What is known so far; ``incomplete`` says what is missing, and is empty once nothing is."""
        if self.kind == "overhead":
            return msgspec.convert(self._known, OverheadDocument)
        return msgspec.convert(self._known, Bench)

    @property
    def measured(self) -> bool:
        """Whether any point was."""
        return bool(self._known[self.kind])

    @property
    def every_point(self) -> bool:
        """Whether each point was measured at least once."""
        done = self._known[self.kind]
        return len(done) == len(self._points) and all(point["alternations"] for point in done)

    def measure(self, progress: Progress | None = None) -> None:
        """Measures every point.

        Raises:
            Unjudged: this machine cannot, or a rank failed; the document then holds what came before, and says so.
        """
        try:
            largest = max((point.job for point in self._points), key=lambda job: job.ranks)
            pool = pool_for(place(largest.ranks, largest.device, largest.backend).spec)
            self._known["environment"] = finite(pool.run(describe_rank, largest.options))
            self._known["timings"]["starting"] = time.monotonic() - self._began
            what = Overhead if self.kind == "overhead" else Comparison
            measure(what, self._points, self._budget, self._keep, progress)
        except Unjudged as reason:
            self._end(str(reason))
            if isinstance(reason, RankFailure):
                self._known["failure"] = reason.to_dict()
            self._save(self.document)
            raise
        self._end(self._missing())
        self._save(self.document)

    def _keep(self, done: list[dict[str, Any]]) -> None:
        self._known[self.kind] = done
        self._end(f"under way: {self._missing()}")
        self._save(self.document)

    def _end(self, incomplete: str) -> None:
        self._known["incomplete"] = incomplete
        self._known["timings"]["total"] = time.monotonic() - self._began

    def _missing(self) -> str:
        done = self._known[self.kind]
        short = [
            f"{point.name}: {made} of {point.alternations} alternations"
            for index, point in enumerate(self._points)
            if (made := done[index]["alternations"] if index < len(done) else 0) < point.alternations
        ]
        return "; ".join(short)
