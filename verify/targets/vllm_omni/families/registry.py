"""The families that have an adapter, by name."""

from __future__ import annotations

import importlib

from verify.errors import BadInput
from verify.targets.vllm_omni.families.family import Family

# An adapter is the one subclass of Family in the module of its name.
FAMILIES = (
    "qwen_image", "flux", "sd3", "wan2_2", "sdxl", "ovis_image", "omnigen2",
    "hunyuan_video", "longcat_image", "flux2_klein", "sana_video", "cosmos3",
)  # fmt: skip


def family_named(name: str) -> type[Family]:
    """The adapter of that name.

    Raises:
        BadInput: there is none.
    """
    if name not in FAMILIES:
        raise BadInput.of("--target-option family", name, f"one of {', '.join(FAMILIES)}", "choose one")
    module = importlib.import_module(f"{__package__}.{name}")
    return next(
        found
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, Family) and found.__module__ == module.__name__
    )
