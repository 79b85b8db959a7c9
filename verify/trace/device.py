"""Waiting for a device."""

from __future__ import annotations

import torch


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all that it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
