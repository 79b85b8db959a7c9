"""What a machine can run, for people."""

from __future__ import annotations

from verify.report.documents.machine import Doctor, Engine, Folder
from verify.report.sections.blocks import Bullets, Presentation, Section, Table
from verify.report.sections.plain import present

_GIB = 2**30


def present_machine(d: Doctor) -> Presentation:
    """Versions and hardware, the presets that fit, and what is missing."""
    cuda = f"CUDA {d.cuda}" if d.cuda else "without CUDA"
    nccl = f", NCCL {d.nccl}" if d.nccl else ""
    subject = [
        f"Python {d.python}, torch {d.torch} {cuda}{nccl}, {d.system}",
        f"backends: {', '.join(d.backends) or 'none'}",
        f"cpu: {d.cores} cores, {size(d.memory)} of memory available",
        *_gpus(d),
    ]
    missing = [f"{p.name} (for {p.needed_for})" for p in d.packages if p.version is None]
    engines = [f"{name} {'can be imported' if there else 'is not installed'}" for name, there in d.engines.items()]
    variables = ", ".join(f"{name}={value}" for name, value in d.variables.items())
    told = [
        f"packages missing: {', '.join(missing) or 'none'}",
        f"engines: {', '.join(engines)}",
        *(f"{name}: {_folder(folder)}" for name, folder in d.folders.items()),
        f"variables that can change bits: {variables or 'none set'}",
    ]
    said = "text guidance takes 2 ranks, text and image guidance 3; ranks that share a GPU use gloo"
    target = [_target(d.target)] if d.target else []
    sections = [*target, Section("Presets", [_presets(d)]), Section("Surroundings", [Bullets(told)])]
    return present(d, "What this machine can run", said, sections, subject=subject)


def _target(it: Engine) -> Section:
    headings = ["guidance", "ranks", "branches, in rank order", "refused"]
    rows = [[g.kind, str(len(g.branches) or "-"), ", ".join(g.branches) or "-", g.refusal] for g in it.guidance]
    told = [f"{it.reference} calls itself {it.name}"]
    told += [f"loop {loop} is held to {expected}" for loop, expected in it.loops.items()]
    told += [f"it also offers: {', '.join(it.offers)}"] if it.offers else []
    return Section("Target", [Bullets(told), Table(headings, rows)])


def _gpus(d: Doctor) -> list[str]:
    if d.gpu_trouble:
        return [f"gpus: could not be asked: {d.gpu_trouble}"]
    return [
        f"gpu {gpu.index}: {gpu.name}, compute capability {gpu.capability}, {size(gpu.free)} free of {size(gpu.memory)}"
        for gpu in d.gpus
    ] or ["gpus: none"]


def size(count: int | None) -> str:
    """Bytes for a person."""
    if count is None:
        return "an unknown amount"
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / 2**20:.1f} MiB"


def _presets(d: Doctor) -> Table:
    headings = ["preset", "weights a rank", "ranks on cpu", "on GPUs of their own", "on shared GPUs"]
    rows = []
    for fits in d.presets:
        over_nccl = fits.nccl_ranks if "nccl" in d.backends else 0
        most = (fits.cpu_ranks, over_nccl, fits.gloo_cuda_ranks)
        rows.append([fits.preset, size(fits.weights), *map(_up_to, most)])
    return Table(headings, rows)


def _up_to(ranks: int | None) -> str:
    if ranks is None:
        return "unknown"
    return f"up to {ranks}" if ranks else "none"


def _folder(folder: Folder | None) -> str:
    if folder is None:
        return "no such folder"
    return f"{folder.path}, {size(folder.free)} free" + ("" if folder.writable else ", not writable")
