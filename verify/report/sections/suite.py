"""Documents of this repository's own tests, for people."""

from __future__ import annotations

from verify.report.documents.suite import Controls, Mutation
from verify.report.sections.blocks import Block, Presentation, Section, Table, shown
from verify.report.sections.plain import present
from verify.verdict import Verdict


def present_controls(d: Controls) -> Presentation:
    """One row a fault in an engine's own loop."""
    headings = ["release", "ranks", "what is wrong", "verdict", "checks that failed", "first at step", "between ranks"]
    rows = [
        [c.release, str(c.ranks), c.what_is_wrong, str(c.verdict), ", ".join(c.checks_that_failed) or "-",
         shown(c.first_at_step), ", ".join(map(str, c.between_ranks or ())) or "-"]
        for c in d.controls
    ]  # fmt: skip
    failed = sum(c.verdict is Verdict.FAIL for c in d.controls)
    said = f"{failed} of {len(d.controls)} loops fail; one without a fault is among them to show that it passes"
    return present(d, "An engine's own loop with one thing wrong", said, [Section("Controls", [Table(headings, rows)])])


def present_mutation(d: Mutation) -> Presentation:
    """One row a file, then every change that no test notices."""
    headings = ["file", "mutants", "killed", "timed out", "survived", "explained", "score, %"]
    files = [
        [f.file, *map(str, (f.mutants, f.killed, f.timed_out, f.survived, f.explained)), shown(f.score)]
        for f in d.files
    ]
    blocks: list[Block] = [Table(headings, files)]
    if d.survivors:
        survivors = [[f"{s.file}:{s.line}", s.mutation, s.why_nothing_notices] for s in d.survivors]
        blocks.append(
            Table(["where", "mutation", "why nothing notices"], survivors, "Mutants that survive", folded=True)
        )
    said = f"{d.killed} of {d.mutants} mutants killed, {d.timed_out} timed out, {d.explained} explained: {d.score}"
    minutes = None if d.minutes is None else {"total": 60 * d.minutes}
    return present(d, "The verifier's own code with one thing wrong", said, [Section("Files", blocks)], d.verdict,
                   [d.tool], minutes)  # fmt: skip
