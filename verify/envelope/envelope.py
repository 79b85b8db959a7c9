"""Which settings must match across ranks: each condition measured on the combine and on the forward pass."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs

from verify.bagel.config import preset
from verify.envelope.conditions import COMPILING, CONDITIONS
from verify.envelope.explanations import explanation
from verify.envelope.measure import DIFFERS, WITHIN, blank, measure
from verify.errors import BadInput, Unjudged
from verify.fuzz.case import FLOATS
from verify.fuzz.tasks import describe
from verify.options.option import reproducing
from verify.options.table import COMMANDS
from verify.ranks.failure.failure import RankFailure
from verify.ranks.local.pool import RankPool
from verify.ranks.plan import place
from verify.report.documents.fuzz import Condition, Envelope
from verify.report.documents.parts import head
from verify.runner.tracing import Progress, Unheard

_LIMIT, _COMPILE_LIMIT = 60.0, 150.0
# Compiling both as the engines run it and as it is checked; the other formats would only cost time.
_COMPILED_DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True)
class EnvelopeJob:
    """What to measure, and where.

    Attributes:
        device: ``cpu`` or ``cuda``.
        preset: the model of the forward pass.
        backend: unused but for the group that a rank joins.
        timeout: seconds for everything; conditions not reached are unknown.
        conditions: which ones.
        subjects: ``combine``, ``forward``.
        dtypes: of the combine; the forward pass is measured in bfloat16 and, unless the model is large, in float32.
    """

    device: str = "cpu"
    preset: str = "tiny"
    backend: str | None = None
    timeout: float = 540.0
    conditions: tuple[str, ...] = tuple(CONDITIONS)
    subjects: tuple[str, ...] = ("combine", "forward")
    dtypes: tuple[str, ...] = tuple(FLOATS)

    def parts(self) -> list[tuple[str, str, str]]:
        """``(condition, subject, dtype)`` in order: a model is built once for all conditions in one dtype."""
        forward = ("bfloat16",) if self.preset == "7b" else ("bfloat16", "float32")
        slow = [c for c in self.conditions if c in COMPILING]
        fast = [c for c in self.conditions if c not in COMPILING]
        parts = []
        for some in (fast, slow):
            combine = [dtype for dtype in self.dtypes if some is fast or dtype in _COMPILED_DTYPES]
            for subject, dtypes in (("combine", combine), ("forward", forward)):
                if subject in self.subjects:
                    parts += [(condition, subject, dtype) for dtype in dtypes for condition in some]
        return parts

    @property
    def command(self) -> str:
        """The command line that measures the same."""
        return reproducing("fuzz", COMMANDS["fuzz"], {"envelope": True} | vars(self))


def run_envelope(job: EnvelopeJob, progress: Progress | None = None) -> Envelope:
    """Measures; a condition that fails, hangs or is not reached is a row that says so.

    Raises:
        BadInput: no such device or preset, or no time to measure in.
    """
    began = time.monotonic()
    preset(job.preset)
    if not 1 <= job.timeout <= 86400:
        raise BadInput.of("--timeout", job.timeout, "seconds from 1 to 86400", "choose one in that range")
    rows: list[Condition] = []
    environment: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="verify-envelope-", ignore_cleanup_errors=True) as folder:
        # What compiling leaves behind goes with the folder.
        caches = (("TORCHINDUCTOR_CACHE_DIR", f"{folder}/inductor"), ("TRITON_CACHE_DIR", f"{folder}/triton"))
        try:
            spec = place(1, job.device, job.backend).spec
            with RankPool(replace(spec, variables=caches)) as pool:
                environment = pool.run(describe)
                rows = _measure_all(pool, job, began + job.timeout, progress or Unheard())
            notes = ["compiled forward passes compile each decoder layer; max-autotune without its CUDA graphs"]
            if job.device == "cuda" and job.preset != "tiny":
                notes.insert(0, "where devices are compared, the forward pass is that of the tiny preset on both")
        except Unjudged as reason:
            notes = [str(reason)]
    return Envelope(
        **head(job.command, environment, notes),
        device=job.device,  # type: ignore[arg-type]
        preset=job.preset,
        rows=tuple(rows),
        timings={"total": round(time.monotonic() - began, 3)},
    )


def _measure_all(pool: RankPool, job: EnvelopeJob, deadline: float, progress: Progress) -> list[Condition]:
    parts = job.parts()
    progress.start("envelope", len(parts))
    rows = []
    for number, (condition, subject, dtype) in enumerate(parts):
        began = time.monotonic()
        limit = min(_COMPILE_LIMIT if condition in COMPILING else _LIMIT, deadline - began)
        row = _measure_one(pool, condition, subject, dtype, job.preset, limit)
        why = explanation(condition, subject) if row.verdict in (WITHIN, DIFFERS) else ""
        rows.append(structs.replace(row, seconds=round(time.monotonic() - began, 3), explanation=why))
        progress.update("envelope", number + 1)
    progress.finish("envelope")
    return rows


def _measure_one(pool: RankPool, condition: str, subject: str, dtype: str, preset: str, limit: float) -> Condition:
    if limit < 1.0:
        return blank(subject, condition, dtype, "out of time before it began")
    name = f"{condition}, {subject}"
    try:
        row: Condition = pool.run(measure, condition, subject, dtype, preset, name=name, timeout=limit)[0]
    except RankFailure as failure:
        hung = any(report.state == "hung" for report in failure.reports)
        note = f"not done within {limit:.0f} s" if hung else failure.cause[:300]
        return blank(subject, condition, dtype, note)
    if "CUDA error" in row.note or "AcceleratorError" in row.note:
        pool.stop()  # Such an error stays with the process.
    return row
