"""The versions of the denoising loop. Each fits on one screen."""

from __future__ import annotations

from verify.loops.broadcast import broadcast
from verify.loops.local import local
from verify.loops.reference import reference
from verify.loops.round_robin import round_robin
from verify.protocols import Loop

LOOPS: dict[str, Loop] = {
    "reference": reference,
    "broadcast": broadcast,
    "local": local,
    "round_robin": round_robin,
}

__all__ = ["LOOPS", "broadcast", "local", "reference", "round_robin"]
