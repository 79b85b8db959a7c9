"""Every kind of document as sections for people."""

from __future__ import annotations

from functools import singledispatch

from verify.report.documents import bench as b
from verify.report.documents.faults import Faults
from verify.report.documents.fuzz import Envelope, Fuzz, Mutants
from verify.report.documents.machine import Doctor
from verify.report.documents.matrix import Matrix
from verify.report.documents.parts import Document
from verify.report.documents.run import Run
from verify.report.documents.suite import Controls, Mutation
from verify.report.sections.bench import present_bench, present_forwards, present_overhead
from verify.report.sections.blocks import Presentation
from verify.report.sections.envelope import present_envelope
from verify.report.sections.faults import present_faults
from verify.report.sections.fuzz import present_fuzz, present_mutants
from verify.report.sections.machine import present_machine
from verify.report.sections.matrix import present_matrix
from verify.report.sections.run import present_run
from verify.report.sections.suite import present_controls, present_mutation


@singledispatch
def present(document: Document) -> Presentation:
    """The document for people."""
    raise TypeError(f"a {type(document).__name__} has no sections")


present.register(Run, present_run)
present.register(Fuzz, present_fuzz)
present.register(Mutants, present_mutants)
present.register(Envelope, present_envelope)
present.register(Faults, present_faults)
present.register(b.Bench, present_bench)
present.register(b.Overhead, present_overhead)
present.register(b.Forwards, present_forwards)
present.register(Doctor, present_machine)
present.register(Matrix, present_matrix)
present.register(Controls, present_controls)
present.register(Mutation, present_mutation)
