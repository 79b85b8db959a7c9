"""What pytest says beside pass and fail: findings in the JUnit file, a summary, and what want of GPUs left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from verify.report.documents.parts import Check
from verify.report.markdown import markdown_table
from verify.report.sections.blocks import Table
from verify.text import literal
from verify.verdict import Finding, Verdict

RUNNING = pytest.StashKey[pytest.Item]()
_WANT_OF_GPUS = re.compile(r"needs (\d+) GPU")
_MOST_FAILURES = 20
_OUTCOMES = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")


def record_finding(config: pytest.Config, finding: Finding | Check, message: str = "") -> None:
    """Attaches a finding to the test that runs now: properties of its case in the file of ``--junitxml``.

    Args:
        config: of the session.
        finding: what a check said.
        message: the whole text of a failure; the finding's summary if empty.
    """
    step = finding.first_divergence.step if finding.first_divergence else None
    record(
        config, finding.name, finding.loop, finding.verdict, "" if step is None else step, message or finding.summary
    )


def record(config: pytest.Config, check: str, loop: str, verdict: Verdict, step: int | str, message: str) -> None:
    """Attaches five properties, in this order and always all of them, so that several findings can be told apart."""
    item = config.stash.get(RUNNING, None)
    if item is not None:
        values = {"check": check, "loop": loop, "verdict": str(verdict), "step": step, "message": message}
        item.user_properties += values.items()


def not_run(skipped: Sequence[Any], found: int) -> list[str]:
    """A line for each number of GPUs for want of which tests did not run.

    Args:
        skipped: pytest's reports of skipped tests.
        found: GPUs of this machine.
    """
    wanted: dict[int, list[str]] = {}
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        if match := _WANT_OF_GPUS.search(reason):
            wanted.setdefault(int(match[1]), []).append(report.nodeid)
    lines = []
    for needed, names in sorted(wanted.items()):
        files = Counter(name.split("::")[0] for name in names)
        where = ", ".join(f"{count} in {file}" for file, count in files.items())
        lines.append(f"not run for want of GPUs: {len(names)} that need {needed}, found {found} ({where})")
    return lines


def summary(stats: dict[str, list[Any]], exitstatus: int, lines: Sequence[str]) -> str:
    """A session as Markdown: outcome, counts, what was left out, failures.

    Args:
        stats: pytest's reports by outcome.
        exitstatus: pytest's; 5 is that no test ran.
        lines: what want of GPUs left out.
    """
    outcome = {0: "✓ pass", 1: "✗ fail", 5: "? unknown: no test ran"}.get(
        exitstatus, f"? unknown: exit status {exitstatus}"
    )
    counts = [(name, len(stats.get(name, ()))) for name in _OUTCOMES]
    shown = [(name, str(count)) for name, count in counts if count]
    parts = [f"## {outcome}\n", markdown_table(Table(["tests", "count"], shown))]
    parts += [f"- {line}\n" for line in lines]
    reasons = Counter(r.longrepr[2] for r in stats.get("skipped", ()) if isinstance(r.longrepr, tuple))
    if reasons:
        parts.append(markdown_table(Table(["skipped because", "tests"], [(r, str(n)) for r, n in reasons.items()])))
    broken = [*stats.get("failed", ()), *stats.get("error", ())]
    for report in broken[:_MOST_FAILURES]:
        text = literal(f"{report.nodeid}\n{report.longreprtext}")
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        parts.append(f"{fence}text\n{text}\n{fence}\n")
    if len(broken) > _MOST_FAILURES:
        parts.append(f"and {len(broken) - _MOST_FAILURES} more\n")
    return "\n".join(parts)
