"""The verdicts on the installed vllm-omni, and its negative controls: ``PYTHONPATH=. python THIS_FILE OUT_DIR``.

Writes a JSON file a run, and one for the controls: upstream's own loop with one thing wrong, put in through its group
(``broken_upstream.py``). Prints both; ``PYTHONPATH=. python tests/upstream/table.py FILE ...`` sets the runs of several
releases side by side. Exit status 0, or 3 if something could not be judged: whether the verdicts are those that a
release should have is for the tests to say.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from msgspec.structs import astuple
from table import table

from verify.report.disk import write_document
from verify.report.documents.parts import SCHEMA, Made
from verify.report.documents.suite import Control, Controls
from verify.request import DenoiseRequest
from verify.runner.job import Job
from verify.runner.run import run_job
from verify.runner.run_report import RunReport
from verify.targets.vllm_omni.versions import installed_version
from verify.verdict import Verdict

LOOPS = Path(__file__).with_name("broken_upstream.py")
IMAGE_SCALE = {2: 1.0, 3: 1.5}
# At 12 points a step falls on the bound of the default interval.
RUNS = {"2": (2, 50), "3": (3, 50), "2-bound": (2, 12)}
CONTROLS = {
    "nothing": "right",
    "initial broadcast dropped": "no_broadcast",
    "gathered order swapped": "swapped_everywhere",
    "gathered order swapped on the last rank": "swapped_on_last_rank",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = f"upstream-{installed_version()}-{arguments.device}"
    documents = []
    for name, (world_size, points) in RUNS.items():
        report = judged(world_size, arguments.device, points)
        documents.append(report.document)
        write_document(documents[-1], arguments.out / f"{stem}-{name}.json")
    print(table(documents))
    controls = [
        control(wrong, loop, judged(world_size, arguments.device, loop=loop))
        for world_size in IMAGE_SCALE
        for wrong, loop in CONTROLS.items()
    ]
    document = Controls(
        schema=SCHEMA,
        command=f"PYTHONPATH=. python tests/upstream/verdicts.py OUT_DIR --device {arguments.device}",
        made=Made.now(),
        environment=documents[0].environment,
        notes=(),
        controls=tuple(controls),
    )
    write_document(document, arguments.out / f"{stem}-controls.json")
    for row in controls:
        print(" | ".join(str(value) for value in astuple(row)))
    verdicts = [d.verdict for d in documents] + [row.verdict for row in controls]
    return 3 if Verdict.UNKNOWN in verdicts else 0


def judged(world_size: int, device: str, points: int = 50, loop: str | None = None) -> RunReport:
    request = DenoiseRequest(num_timesteps=points, cfg_img_scale=IMAGE_SCALE[world_size])
    reference = None if loop is None else f"{LOOPS}:{loop}"
    return run_job(Job(request=request, target="vllm_omni", loop_reference=reference, device=device))


def control(wrong: str, loop: str, report: RunReport) -> Control:
    """One row: what was wrong, and what the checks made of it."""
    failed = [finding for finding in report.findings if finding.verdict is Verdict.FAIL]
    placed = [f.first_divergence for f in failed if f.name in ("ranks_agree", "matches_reference")]
    first = next((place for place in placed if place is not None), None)
    step = None if first is None else first.step
    return Control(
        release=installed_version(),
        ranks=report.world_size,
        what_is_wrong=wrong,
        verdict=report.verdict,
        checks_that_failed=tuple(finding.name for finding in failed),
        first_at_step="before 0" if step is not None and step < 0 else step,
        between_ranks=None if first is None else first.ranks,
    )


if __name__ == "__main__":
    sys.exit(main())
