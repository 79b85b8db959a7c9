"""A document of every kind, as small as it can be."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from example_reports import clean

from verify.report.documents.parts import Part
from verify.report.documents.reading import document_of
from verify.report.sections.blocks import Block, Presentation
from verify.report.sections.present import present


def json_of(document: Part) -> dict[str, Any]:
    """A document, or a part of one, as a file holds it."""
    made: dict[str, Any] = json.loads(json.dumps(msgspec.to_builtins(document)))
    return made


def presented(document: dict[str, Any]) -> Presentation:
    """A document from a file, for people."""
    return present(document_of(document))


def blocks_of(document: dict[str, Any], kind: type[Block]) -> list[Any]:
    """All blocks of one kind, in reading order."""
    return [b for section in presented(document).sections for b in section.blocks if isinstance(b, kind)]


HEAD: dict[str, Any] = {"schema": 2, "made": None, "notes": [], "environment": []}
GPU = {"rank": 0, "gpu": "NVIDIA H200", "gpu_uuid": "a", "torch": "2.11.0", "python": "3.12"}
ENVIRONMENT = [GPU, GPU | {"rank": 1}]
SPREAD = {"p50": 2.0, "min": 1.5, "p100": 2.5, "values": [1.5, 2.0, 2.5]}
PARTS = {part: [1.0, 0.5] for part in ("forward", "all_gather", "broadcast", "idle", "rest")}
BENCH: dict[str, Any] = HEAD | {
    "kind": "bench",
    "timings": {},
    "command": "verify bench --sizes 256",
    "points": [
        {
            "preset": "7b", "height": 256, "width": 256, "world_size": 2, "backend": "gloo", "device": "cuda",
            "cfg_interval": [0.4, 1.0], "steps": 49, "guided_steps": 41, "alternations": 10, "notes": ["they share"],
            "forward": {"forward_s": 0.1, "ratio": 1.25, "matmul_flops_per_s": 6e14},
            "loops": {"local": {"seconds": SPREAD, "parts": PARTS, "over_limit": 2.5, "broadcast_share_of_step": 5e-5}},
            "sentences": ["no measurable difference between local and broadcast (within ± 0.10 %)"],
        }
    ],
    "environment": ENVIRONMENT,
}  # fmt: skip
OVERHEAD: dict[str, Any] = HEAD | {
    "kind": "overhead",
    "timings": {},
    "command": "verify bench --overhead",
    "overhead": [
        {
            "preset": "7b",
            "height": 1024,
            "notes": [],
            "loops": {
                "local": {
                    "bare_s": SPREAD,
                    "recorded_s": SPREAD,
                    "verified_s": SPREAD,
                    "verified_over_bare": {"ratio": 1.009, "low": 1.006, "high": 1.012, "pairs": 10},
                }
            },
        }
    ],
    "environment": ENVIRONMENT,
}
FAULT = {
    "fault": "one bit", "verdict": "fail", "fired": ["ranks_agree"], "step": 7, "rank": 1, "seconds": 1.0, "source": "",
    "summary": "a bit flips", "breaks": "group", "message": "rank 0 and rank 1 differ",
    "expected": {"check": "ranks_agree", "step": 7, "rank": 1}, "caught": True, "placed": True,
}  # fmt: skip
FAULTS: dict[str, Any] = HEAD | {
    "kind": "faults",
    "command": "verify faults",
    "world_size": 2,
    "device": "cpu",
    "verdict": "fail",
    "seconds": 12.0,
    "faults": [
        FAULT | {"fault": "clean control", "expected": None},
        FAULT,
        FAULT | {"fault": "two bits", "placed": False},
        FAULT | {"fault": "three bits", "caught": False, "placed": False},
    ],
    "environment": [{"rank": 0, "cpu": "x86"}, {"rank": 1, "cpu": "x86"}],
}
FUZZ: dict[str, Any] = HEAD | {
    "profile": "fast", "combine": "own", "backend": "gloo", "replays": {}, "failure": None, "timings": {},
    "kind": "fuzz", "verdict": "pass", "seed": 0, "world_size": 2, "device": "cpu", "cases": 1000,
    "cases_per_minute": 500.0, "environment": [], "notes": [], "command": "verify fuzz",
    "properties": [
        {"name": "ranks_agree", "loop": "*", "verdict": "pass", "summary": "all", "first_divergence": None,
         "details": [], "data": {}, "compared": {"steps": 1000, "elements": 64000}},
    ],
}  # fmt: skip
MUTANTS: dict[str, Any] = HEAD | {
    "command": "verify fuzz --mutants",
    "profile": "fast",
    "seed": 0,
    "device": "cpu",
    "timings": {},
    "kind": "mutants",
    "environment": [],
    "mutants": [{"mutant": "half", "what": "halves", "cases_needed": 3, "properties": {"exact": 3}}],
}
KINDS = {"run": json_of(clean().document), "bench": BENCH, "overhead": OVERHEAD, "faults": FAULTS, "fuzz": FUZZ,
         "mutants": MUTANTS}  # fmt: skip
