"""The document of ``verify doctor``."""

from __future__ import annotations

from verify.report.documents.parts import Count, Document, Part


class Gpu(Part, frozen=True):
    """One GPU; memory in bytes."""

    index: Count
    name: str
    capability: str
    memory: Count
    free: Count


class Fits(Part, frozen=True):
    """How many ranks of a preset fit: in main memory, on GPUs of their own, on GPUs that they share."""

    preset: str
    weights: Count
    cpu_ranks: Count | None
    nccl_ranks: Count
    gloo_cuda_ranks: Count


class Folder(Part, frozen=True):
    """A folder that ranks need."""

    path: str
    writable: bool
    free: Count


class Package(Part, frozen=True):
    """A package, its version (None where it is missing), and what needs it."""

    name: str
    version: str | None
    needed_for: str


class Guidance(Part, frozen=True):
    """One kind of guidance: the branches that a target evaluates for it, or why the target refuses it."""

    kind: str
    branches: tuple[str, ...]
    refusal: str


class Engine(Part, frozen=True):
    """What of a target can be judged.

    Attributes:
        reference: where it was found.
        name: what it calls itself.
        loops: what each of its loops is held to.
        offers: the optional parts of a target that it has.
        guidance: the kinds of guidance.
    """

    reference: str
    name: str
    loops: dict[str, str]
    offers: tuple[str, ...]
    guidance: tuple[Guidance, ...]


class Doctor(Document, frozen=True, tag="doctor"):
    """What a machine can run."""

    python: str
    system: str
    torch: str
    cuda: str | None
    nccl: str | None
    backends: tuple[str, ...]
    cores: Count
    memory: Count | None
    gpus: tuple[Gpu, ...]
    gpu_trouble: str | None
    presets: tuple[Fits, ...]
    packages: tuple[Package, ...]
    engines: dict[str, bool]
    variables: dict[str, str]
    folders: dict[str, Folder | None]
    target: Engine | None = None
