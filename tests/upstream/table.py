"""The verdicts of several runs side by side: ``PYTHONPATH=. python tests/upstream/table.py RESULT.json ...``.

Each file is what ``verify run --target vllm_omni --json FILE`` wrote; one column a file, one row a check.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from verify.errors import BadInput
from verify.report.documents.reading import read
from verify.report.documents.run import Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table. Exit status 0, or 2 for what is no result: what a verdict is worth its own run says."""
    paths = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not paths:
            raise BadInput("no file was given, expected results of verify run --json; name at least one")
        documents = [require_run(path) for path in paths]
    except BadInput as error:
        print(f"table: {error}", file=sys.stderr)
        return 2
    print(table(documents))
    return 0


def require_run(path: str) -> Run:
    """The document of a run.

    Raises:
        BadInput: it is another one, or none.
    """
    document = read(path)
    if not isinstance(document, Run):
        raise BadInput.of("the document", path, "one of verify run", "name another")
    return document


def table(documents: Sequence[Run]) -> str:
    """A Markdown table, then one line for each finding that is no pass."""
    columns = [_heading(document) for document in documents]
    names = list(dict.fromkeys(check.name for document in documents for check in document.checks))
    rows = [["check", *columns], ["---"] * (len(columns) + 1)]
    rows += [[name, *(_cell(document, name) for document in documents)] for name in names]
    rows.append(["**verdict**", *(f"**{document.verdict}**" for document in documents)])
    rows.append(["steps, guided", *(_steps(document) for document in documents)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    said = [
        f"- {heading}: {check.name} {check.verdict}: {check.summary}"
        + "".join(f" ({detail})" for detail in check.details[:1])
        for heading, document in zip(columns, documents, strict=True)
        for check in document.checks
        if check.verdict != "pass"
    ]
    said += [
        f"- {heading}: {'; '.join(document.notes[-1:]) or 'no reason given'}"
        for heading, document in zip(columns, documents, strict=True)
        if not document.checks
    ]
    return "\n".join([*lines, *([""] if said else []), *said])


def _heading(document: Run) -> str:
    ranks = document.environment
    version = ranks[0].get("vllm_omni", document.target) if ranks else document.target
    request = document.request
    return (
        f"{version}, {document.world_size} ranks, {document.device}, {request.get('preset', '')}, "
        f"N={request['num_timesteps']}"
    )


def _cell(document: Run, name: str) -> str:
    found = [check for check in document.checks if check.name == name]
    if not found:
        return "not judged"
    # One loop for each target of this kind; were there more, the worst would show.
    verdicts = sorted((check.verdict for check in found), key=["fail", "unknown", "pass"].index)
    elements = sum(check.compared.elements for check in found)
    return f"{verdicts[0]} ({elements:,})"


def _steps(document: Run) -> str:
    """What ranks did, where that is known: gathers are guided steps, for a loop that gathers once in each."""
    counted = document.collectives.values()
    taken = max((check.compared.steps for check in document.checks), default=None)
    guided = next((counts.get("all_gather") for counts in counted), None)
    expected = document.schedule
    return f"{taken}, {guided} (expected {expected.steps}, {expected.guided_steps})"


if __name__ == "__main__":
    sys.exit(main())
