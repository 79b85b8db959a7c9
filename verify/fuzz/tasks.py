"""What ranks do with a batch of cases. Hypothesis draws in the controlling process, never here."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import verify.combine
from verify.errors import BadInput
from verify.fuzz.case import Case
from verify.fuzz.layouts import dense, tensor_of
from verify.fuzz.mutants import MUTANTS
from verify.fuzz.properties import FORMULA, REPEATABLE, Property
from verify.fuzz.subject import SILENT, Combine, CombineRaised, Outcome, Subject, equal
from verify.ranks.rank import Rank
from verify.targets.finding import find_target
from verify.targets.loading import load_object
from verify.verdict import Difference

OWN = "verify.combine:combine_cfg"
MUTANT = "mutant:"
# Before the name of a target whose own combine is meant.
OF_TARGET = "target:"

RANKS_AGREE = "ranks_agree"
INPUTS_UNCHANGED = "inputs_unchanged"
GATHERED = "gathered"
CONCURRENT = "concurrent_work"
STREAM = "other_stream"
CUDA_GRAPH = "cuda_graph"
COMPLETES = "completes"
EXACT = "exact_cases"


@dataclass(frozen=True)
class Problem:
    """A property that a case breaks on one rank.

    Attributes:
        case: the number of the case in the batch.
        name: the property's name.
        text: what is wrong.
        difference: where it is wrong, if two tensors were compared.
    """

    case: int
    name: str
    text: str
    difference: Difference | None = None


@dataclass
class BatchReport:
    """What one rank found in a batch.

    Attributes:
        digests: for each case two digests: of the result in its layout, and on fresh contiguous tensors.
        elements: for each property and case, how many elements were compared.
        problems: which properties do not hold, and for which case.
    """

    digests: list[tuple[bytes, bytes]] = field(default_factory=list)
    elements: dict[str, dict[int, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, case: int, name: str, outcome: Outcome) -> None:
        """Notes the outcome of a property for a case."""
        if outcome.elements:
            self.elements.setdefault(name, {})[case] = outcome.elements
        if outcome.problem:
            self.problems.append(Problem(case, name, outcome.problem, outcome.difference))


def find_combine(reference: str, rank: int) -> Combine:
    """The combine under test: this package's, a mutant's, a target's, or a user's ``FILE_OR_MODULE:NAME``."""
    if reference == OWN:
        return verify.combine.combine_cfg
    if reference.startswith(MUTANT):
        return MUTANTS[reference.removeprefix(MUTANT)].build(rank)
    if reference.startswith(OF_TARGET):
        return combine_of(reference.removeprefix(OF_TARGET))
    combine: Combine = load_object("--combine", reference)
    return combine


def combine_of(target: str) -> Combine:
    """The combine that a target offers: its attribute ``combine``, with the arguments of ``combine_cfg``.

    Raises:
        BadInput: it offers none.
    """
    combine: Combine | None = getattr(find_target(target), "combine", None)
    if not callable(combine):
        expected = "a target with an attribute combine: a function with combine_cfg's arguments"
        raise BadInput.of("--target", target, expected, "give it one, or name the function with --combine")
    return combine


def evaluate(rank: Rank, cases: Sequence[Case], combine_reference: str) -> BatchReport:
    """Evaluates every property of every case on this rank. All ranks call the collectives of each case together."""
    combine = find_combine(combine_reference, rank.rank)
    report = BatchReport()
    subjects: list[Subject | None] = []
    with torch.no_grad():
        for number, case in enumerate(cases):
            rank.status.activity(str(case)[:60])
            subject = Subject(case, combine, rank.device)
            travelled = _travel(rank, case)  # Before anything that may raise: the other ranks wait for it.
            try:
                report.digests.append(_judge(report, number, subject, travelled, rank))
                subjects.append(subject)
            except CombineRaised as raised:
                report.digests.append((b"", b""))
                report.add(number, COMPLETES, Outcome(0, str(raised)))
                subjects.append(None)
        _again(report, CONCURRENT, subjects, _busy(rank.device))
        if rank.device.type == "cuda":
            _again(report, STREAM, subjects, _other_stream(rank.device))
            for number, judged in enumerate(subjects):
                if judged is not None and judged.case.size:
                    report.add(number, CUDA_GRAPH, _captured(judged))
    return report


def results(rank: Rank, case: Case, combine_reference: str) -> list[Tensor]:
    """The result in the case's layout and on fresh contiguous tensors, for the message when digests differ."""
    combine = find_combine(combine_reference, rank.rank)
    subject = Subject(case, combine, rank.device)
    with torch.no_grad():
        # Computed again: a difference that does not come back is a finding too.
        return [subject.fresh().cpu(), subject.fresh(dense(case, rank.device)).cpu()]


def _judge(
    report: BatchReport, number: int, subject: Subject, travelled: list[Tensor], rank: Rank
) -> tuple[bytes, bytes]:
    before = subject.laid.snapshot()
    out = subject.run()
    plain = subject.fresh(dense(subject.case, rank.device))
    for name, check in REPEATABLE.items():
        report.add(number, name, check(subject))
    report.add(
        number, GATHERED, equal(subject.fresh(travelled), plain, "the result changes once the branches have travelled")
    )
    # Each of these is judged on one rank only: it follows from bits that are equal on all ranks, or ranks_agree fails.
    if number % rank.world_size == rank.rank:
        for name, check in FORMULA.items():
            report.add(number, name, _guarded(check, subject))
    changed = 0 if subject.laid.unchanged_since(before) else 1
    elements = sum(buffer.numel() for buffer in before)
    report.add(number, INPUTS_UNCHANGED, Outcome(elements, "the combine writes to its inputs" if changed else ""))
    return _digest(out), _digest(plain)


def _guarded(check: Property, subject: Subject) -> Outcome:
    """The outcome of ``check``, or none where the result has another shape or dtype: that is a finding of its own."""
    out = subject.run()
    if (out.shape, out.dtype) != (subject.gen.shape, subject.gen.dtype):
        return SILENT
    return check(subject)


def _travel(rank: Rank, case: Case) -> list[Tensor]:
    """The branches, each received from the rank that evaluates it in a loop."""
    own = dense(case, rank.device)
    if not case.size:
        return own  # There is no byte to send.
    arrived: list[Tensor] = []
    for first in range(0, len(own), rank.world_size):
        mine = first + rank.rank
        # A rank without a branch sends NaNs: nobody may read them.
        sent = own[mine] if mine < len(own) else torch.full_like(own[0], float("nan"))
        arrived += rank.group.all_gather(sent)[: len(own) - first]
    return arrived


def _digest(tensor: Tensor) -> bytes:
    """The digest of shape, dtype and bytes."""
    head = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy()
    return hashlib.blake2b(head + flat.tobytes(), digest_size=16).digest()


def _again(report: BatchReport, name: str, subjects: Sequence[Subject | None], condition: Any) -> None:
    """Computes every result again under ``condition`` and compares."""
    with condition:
        again = [None if s is None else _attempt(s) for s in subjects]
    for number, (subject, seen) in enumerate(zip(subjects, again, strict=True)):
        words = name.replace("_", " ")
        if subject is not None and seen is None:
            report.add(number, name, Outcome(1, f"the combine raises under {words}"))
        elif subject is not None and seen is not None:
            report.add(number, name, equal(seen, subject.run(), f"the result changes under {words}"))


def _attempt(subject: Subject) -> Tensor | None:
    try:
        return subject.fresh()
    except CombineRaised:  # :func:`_again` reports it.
        return None


@contextmanager
def _busy(device: torch.device) -> Iterator[None]:
    """Computes products meanwhile: on another stream of a GPU, or in another thread on a CPU."""
    stop = threading.Event()
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    matrix = torch.ones(256 if stream else 96, 256 if stream else 96, device=device)

    def work() -> None:
        while not stop.is_set():
            if stream is None:
                matrix @ matrix
                continue
            with torch.cuda.stream(stream):
                for _ in range(32):
                    matrix @ matrix
            stream.synchronize()

    thread = threading.Thread(target=work, daemon=True)
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(device))
    thread.start()
    try:
        yield
        if stream is not None:
            torch.cuda.current_stream(device).synchronize()
    finally:
        stop.set()
        thread.join()


@contextmanager
def _other_stream(device: torch.device) -> Iterator[None]:
    """Switches to a stream that is not the default one."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)
    stream.synchronize()


def _captured(subject: Subject) -> Outcome:
    """Compares the replay of a CUDA graph with the eager result."""
    device = subject.device
    stream = torch.cuda.Stream(device)
    torch.cuda.synchronize(device)
    try:
        # Not torch.cuda.graph: it empties the allocator's cache each time, for thousands of cases.
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                out = subject.fresh()
            finally:
                graph.capture_end()
        stream.synchronize()
        out.zero_()
        graph.replay()
        torch.cuda.synchronize(device)
    except (RuntimeError, CombineRaised) as error:
        return Outcome(1, f"the combine cannot be captured in a CUDA graph: {str(error).strip().splitlines()[-1]}")
    return equal(out, subject.run(), "a CUDA graph's replay gives other bits than eager")


def evaluate_exact(
    rank: Rank, cases: Sequence[Case], answers: Sequence[tuple[int, ...]], combine_reference: str
) -> BatchReport:
    """Compares every result with the one right answer, on this rank."""
    combine = find_combine(combine_reference, rank.rank)
    report = BatchReport()
    for number, (case, answer) in enumerate(zip(cases, answers, strict=True)):
        bits = np.array(answer, dtype=case.form.unsigned).reshape(case.tokens, case.channels)
        wanted = tensor_of(bits, case.form, rank.device)
        try:
            with torch.no_grad():
                out = Subject(case, combine, rank.device).run()
            report.add(number, EXACT, equal(out, wanted, "not the one right answer of an exact case"))
        except CombineRaised as raised:
            report.add(number, COMPLETES, Outcome(0, str(raised)))
    return report


def describe(rank: Rank) -> dict[str, Any]:
    """What this rank runs on."""
    return {"rank": rank.rank, **rank.environment()}
