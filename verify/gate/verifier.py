"""What a test asks to be judged, and how a finding becomes an assertion."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from verify.fuzz.session import FuzzJob, run_fuzz
from verify.fuzz.tasks import OF_TARGET
from verify.gate.claims import CLAIMED, COMBINE, VERDICT, WHOLE, Claim
from verify.gate.findings import record, record_finding
from verify.gate.settings import settings_of
from verify.report.documents.fuzz import Fuzz
from verify.report.message import failure_text, rank_failure_text
from verify.request import DenoiseRequest
from verify.runner.job import Job
from verify.runner.run import job_for, run_job
from verify.runner.run_report import RunReport
from verify.verdict import Finding, Verdict


class Verifier:
    """Judges loops for tests. The fixture ``verifier`` is one."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self._reports: dict[Job, RunReport] = {}
        self._fuzzed: dict[Job, Fuzz] = {}
        self._told: list[RunReport] = []

    def run(self, request: DenoiseRequest | None = None, **changes: Any) -> RunReport:
        """Judges a request as :func:`verify.run` does; what is not said is as the options ``--verify-...`` have it.

        Args:
            request: what to denoise; the plain text request if left out.
            changes: ``target``, ``loop`` (a function, or where it is: ``FILE.py:NAME``), ``world_size``, and whatever
                else :func:`verify.run` takes.

        Raises:
            BadInput: something handed over cannot be used.
        """
        job = settings_of(self.config).job
        return self.report(job_for(replace(job, request=request or job.request), **changes))

    def report(self, job: Job) -> RunReport:
        """The job's report; each job runs once in a session."""
        if job not in self._reports:
            self._reports[job] = run_job(job)
        return self._reports[job]

    def assert_pass(self, report: RunReport, check: str | None = None, loop: str | None = None) -> None:
        """Fails, with the whole message, unless a report passes.

        Args:
            report: what :meth:`run` returned.
            check: only this check of it; all, and at least one, if left out.
            loop: only this loop of it.
        """
        __tracebackhide__ = True
        self._assert_finished(report)
        chosen = [f for f in report.findings if check in (None, f.name) and loop in (None, f.loop)]
        if not chosen:
            there = ", ".join(sorted({f"{f.name} ({f.loop})" for f in report.findings}))
            pytest.fail(f"nothing says {check or 'anything'} of {loop or 'any loop'}; there is {there}", pytrace=False)
        failed = [finding for finding in chosen if not finding.verdict.holds]
        if not failed and check is None and loop is None and not report.verdict.holds:
            pytest.fail(f"the verdict is {report.verdict}: {'; '.join(report.notes)}", pytrace=False)
        self._end(report, failed, chosen)

    def assert_explained(self, request: DenoiseRequest | None = None, **changes: Any) -> RunReport:
        """Judges a request as :meth:`run` does, and fails unless rounding explains every step that is not equal.

        Args:
            request: as for :meth:`run`.
            changes: likewise; ``false_alarm`` and ``draws`` among them.

        Returns:
            The report, whose verdict is ``pass`` where every byte is equal, else ``explained by rounding``.
        """
        __tracebackhide__ = True
        report = self.run(request, **{"reference": "rounding"} | changes)
        self.assert_pass(report)
        return report

    def _assert_verdict(self, report: RunReport, whole: bool) -> None:
        """The report as a whole. Unless ``whole``, checks that have a claim of their own are only named."""
        __tracebackhide__ = True
        self._assert_finished(report)
        failed = [f for f in report.findings if not f.verdict.holds]
        names = ", ".join(f"{f.name} ({f.loop})" for f in failed) or "; ".join(report.notes)
        rest = [failure_text(f, report.command) for f in failed if whole or f.name not in CLAIMED]
        text = "\n\n".join([f"the verdict is {report.verdict}: {names}", *rest])
        record(self.config, VERDICT, "*", report.verdict, "", text if failed else "every check passes")
        if not report.verdict.holds:
            pytest.fail(text, pytrace=False)

    def _end(self, report: RunReport, failed: list[Finding], chosen: list[Finding]) -> None:
        __tracebackhide__ = True
        for finding in failed or chosen:
            text = failure_text(finding, report.command) if failed else ""
            record_finding(self.config, finding, text)
        if failed:
            # Those that failed before those that could not be judged.
            failed.sort(key=lambda finding: finding.verdict is not Verdict.FAIL)
            pytest.fail("\n\n".join(failure_text(f, report.command) for f in failed), pytrace=False)

    def _assert_finished(self, report: RunReport) -> None:
        __tracebackhide__ = True
        failure = report.document.failure
        if failure is not None:
            text = rank_failure_text(failure, report.command)
            record(self.config, "", failure.task, report.verdict, "", text)
            pytest.fail(text, pytrace=False)
        if not report.findings:
            text = "nothing was judged: " + "; ".join(report.notes)
            record(self.config, "", "", report.verdict, "", text)
            pytest.fail(text, pytrace=False)

    def assert_claim(self, claim: Claim) -> None:
        """Fails unless a claim about the target holds."""
        __tracebackhide__ = True
        if claim.problem:
            pytest.fail(claim.problem, pytrace=False)
        if claim.way == COMBINE:
            self._assert_property(claim)
            return
        report = self.report(claim.job)
        if claim.check == VERDICT:
            self._assert_verdict(report, claim.way in WHOLE)
            return
        self._assert_finished(report)
        found = [f for f in report.findings if (f.name, f.loop) == (claim.check, claim.loop)]
        if not found:
            pytest.skip(f"{claim.check} has nothing to say of {claim.loop} run this way")
        self.assert_pass(report, claim.check, claim.loop)
        if not found[0].compared.elements:
            pytest.fail(f"{claim.check} compared nothing", pytrace=False)

    def _assert_property(self, claim: Claim) -> None:
        __tracebackhide__ = True
        job = claim.job
        if job not in self._fuzzed:
            combine = OF_TARGET + job.target
            self._fuzzed[job] = run_fuzz(FuzzJob("fast", combine=combine, device=job.device, backend=job.backend))
        document = self._fuzzed[job]
        if document.failure is not None:
            pytest.fail(rank_failure_text(document.failure, document.command), pytrace=False)
        found = [check for check in document.properties if check.name == claim.check]
        if not found:
            pytest.fail("nothing was judged: " + "; ".join(document.notes), pytrace=False)
        text = failure_text(found[0], document.replays.get(claim.check, document.command))
        record_finding(self.config, found[0], "" if found[0].verdict.holds else text)
        if not found[0].verdict.holds:
            pytest.fail(text, pytrace=False)
