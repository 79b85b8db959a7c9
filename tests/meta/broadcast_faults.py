"""Faults of the catalogue in the loop that broadcasts ``x_t``."""

from __future__ import annotations

from typing import Any
from unittest import mock

from verify.faults import denoiser, group, steps
from verify.loops import LOOPS
from verify.protocols import Loop


def _in_broadcast(broken: Loop) -> Loop:
    def loop(denoiser: Any, request: Any, x_0: Any, group: Any, observe: Any) -> Any:
        with mock.patch.dict(LOOPS, {"local": LOOPS["broadcast"]}):
            return broken(denoiser, request, x_0, group, observe)

    return loop


weight_changed = _in_broadcast(denoiser.weight_changed)
gemm_in_reduced_precision = _in_broadcast(denoiser.gemm_in_reduced_precision)
kv_row_swapped = _in_broadcast(denoiser.kv_row_swapped)
gathered_slot_corrupted = _in_broadcast(group.gathered_slot_corrupted)
one_ulp_middle_step = _in_broadcast(steps.one_ulp_middle_step)
