"""What a run found, as Python hands it over."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from verify.report.documents.parts import Check, Failure, Made, finite, head
from verify.report.documents.rounding import Rounding
from verify.report.documents.run import Judged, Picture, Replica, Run, Schedule
from verify.verdict import EXIT_STATUS, Finding, Verdict

_WIDTH = 100


@dataclass(frozen=True, repr=False)
class RunReport:
    """What a run found. ``print`` shows it in one screen, as does a notebook.

    Attributes:
        verdict: the merge of the findings; unknown where there are none.
        target: whose loops were judged.
        request: what was denoised and with which network.
        steps: Euler steps of the schedule.
        guided_steps: how many of them are guided.
        world_size: ranks.
        backend: gloo or nccl; empty if ranks never started.
        device: cpu or cuda.
        environment: what each rank ran on, in rank order.
        findings: what each check says of each loop.
        collectives: for each loop, how often rank 0 called each collective.
        timings: seconds, by loop and phase.
        notes: what a reader must know beside the verdict.
        failure: for a run that did not finish: the task, its cause, and a report for each rank.
        command: what reproduces the run.
        replicas: for a run of several processes that a launcher started: each replica's global ranks and their hosts,
            in rank order. ``world_size`` is then the size of one replica, and ``environment`` has one entry a process.
        requests: where several were judged, each one's fields, and its verdict or why the target refused it; the first
            is ``request``.
        picture: what the final latent stands for, where it was asked for: see :class:`Picture`.
        made: when and from what.
    """

    verdict: Verdict
    target: str
    request: Mapping[str, Any]
    steps: int
    guided_steps: int
    world_size: int
    backend: str
    device: str
    environment: Sequence[Mapping[str, Any]] = ()
    findings: Sequence[Finding] = ()
    collectives: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    failure: Mapping[str, Any] | None = None
    command: str = ""
    replicas: Sequence[Mapping[str, Any]] = ()
    requests: Sequence[Mapping[str, Any]] = ()
    picture: Mapping[str, Any] | None = None
    made: Made = field(default_factory=Made.now, compare=False)

    @property
    def exit_status(self) -> int:
        """0 pass, 1 fail, 3 unknown."""
        return EXIT_STATUS[self.verdict]

    @property
    def document(self) -> Run:
        """The report as its JSON document."""
        return Run(
            **head(self.command, self.environment, self.notes, self.made),
            verdict=self.verdict,
            target=self.target,
            request=finite(self.request),
            schedule=Schedule(steps=self.steps, guided_steps=self.guided_steps),
            world_size=self.world_size,
            backend=self.backend,  # type: ignore[arg-type]
            device=self.device,  # type: ignore[arg-type]
            checks=tuple(Check.of(finding) for finding in self.findings),
            collectives={loop: dict(counts) for loop, counts in self.collectives.items()},
            timings={name: round(seconds, 6) for name, seconds in self.timings.items()},
            failure=None if self.failure is None else msgspec.convert(self.failure, Failure),
            replicas=tuple(msgspec.convert(replica, Replica) for replica in self.replicas),
            requests=tuple(msgspec.convert(finite(request), Judged) for request in self.requests),
            rounding=tuple(
                msgspec.convert(finite({"loop": finding.loop, **finding.data["rounding"]}), Rounding)
                for finding in self.findings
                if "rounding" in finding.data
            ),
            picture=None if self.picture is None else msgspec.convert(self.picture, Picture),
        )

    def text(self, width: int = _WIDTH) -> str:
        """What ``verify run`` prints, without colours."""
        from rich.console import Console

        from verify.report.console import print_presentation
        from verify.report.sections.run import present_run

        file = io.StringIO()
        print_presentation(present_run(self.document), Console(file=file, width=width, force_terminal=False))
        return file.getvalue()

    def to_html(self) -> str:
        """The page of ``verify run --html``; it needs no other file."""
        from verify.report.html import page
        from verify.report.sections.run import present_run

        return page(present_run(self.document))

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        from verify.report.sections.run import present_run

        return f"<RunReport {present_run(self.document).title}; print() shows it>"

    def _repr_html_(self) -> str:
        """In a notebook, whose own styles the page must not touch."""
        page = html.escape(self.to_html())
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40rem; border: 0" title="verify run"></iframe>'
