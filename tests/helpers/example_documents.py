"""A document of every kind, as small as it can be."""

from __future__ import annotations

from typing import Any

from example_reports import clean

from verify.report.document import build_document

GPU = {"rank": 0, "gpu": "NVIDIA H200", "gpu_uuid": "a", "torch": "2.11.0", "python": "3.12"}
ENVIRONMENT = [GPU, GPU | {"rank": 1}]
SPREAD = {"p50": 2.0, "min": 1.5, "p100": 2.5, "values": [1.5, 2.0, 2.5]}
PARTS = {part: [1.0, 0.5] for part in ("forward", "all_gather", "broadcast", "idle", "rest")}
BENCH: dict[str, Any] = {
    "schema": 1,
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
OVERHEAD: dict[str, Any] = {
    "schema": 1,
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
    "expected": {"check": "ranks_agree", "step": 7, "rank": 1}, "caught": True, "placed": True,
}  # fmt: skip
FAULTS: dict[str, Any] = {
    "schema": 1,
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
FUZZ: dict[str, Any] = {
    "schema": 1, "kind": "fuzz", "verdict": "pass", "seed": 0, "world_size": 2, "device": "cpu", "cases": 1000,
    "cases_per_minute": 500.0, "environment": [], "notes": [], "command": "verify fuzz",
    "properties": [
        {"name": "ranks_agree", "loop": "*", "verdict": "pass", "summary": "all", "first_divergence": None,
         "compared": {"steps": 1000, "elements": 64000}},
    ],
}  # fmt: skip
MUTANTS = {
    "schema": 1,
    "kind": "mutants",
    "environment": [],
    "mutants": [{"mutant": "half", "what": "halves", "cases_needed": 3, "properties": {"exact": 3}}],
}
KINDS = {"run": build_document(clean()), "bench": BENCH, "overhead": OVERHEAD, "faults": FAULTS, "fuzz": FUZZ,
         "mutants": MUTANTS}  # fmt: skip
