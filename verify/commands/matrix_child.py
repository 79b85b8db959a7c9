"""A process that runs cells of a matrix: one JSON object a line on standard input, one on standard output."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from verify.commands.cli import _parse
from verify.commands.run import job_of
from verify.errors import BadInput, Unjudged
from verify.ranks.local.forkserver import close_fork_server, fork_server
from verify.report.disk import write_document
from verify.runner.run import run_job
from verify.targets.finding import find_target
from verify.text import one_line


def main() -> None:
    """Answers ``{"options": [...], "json": FILE}`` with ``{"status": N, "said": why there is no document}``."""
    # What engines print belongs to nobody here.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(2, 1)
    warm: set[str] = set()
    try:
        for line in sys.stdin:
            print(json.dumps(_answer(json.loads(line), warm)), file=answers, flush=True)
    finally:
        close_fork_server()


def _answer(cell: dict[str, Any], warm: set[str]) -> dict[str, Any]:
    try:
        job = job_of(_parse(["run", *cell["options"]]))
        function = getattr(find_target(job.target), "warm_up", "")
        if function and function not in warm and job.device == "cpu":
            fork_server().warm_up(function)
            warm.add(function)
        report = run_job(job)
    except BadInput as error:
        return {"status": 2, "said": one_line(str(error))}
    except Unjudged as error:
        return {"status": 3, "said": one_line(str(error))}
    write_document(report.document, cell["json"])
    return {"status": report.exit_status, "said": ""}


if __name__ == "__main__":
    main()
