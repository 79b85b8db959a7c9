"""What differs between vllm-omni's versions, as far as driving them goes. Nothing else asks for a version.

How many Euler steps a version takes and which it guides is not listed here: that is what is under test, and it is
measured (``measure.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import Any

from verify.errors import Unjudged

PACKAGE = "vllm-omni"


@dataclass(frozen=True)
class Version:
    """How one version is driven.

    Attributes:
        name: the first version known to be like this.
        single_branch: the method of ``Bagel`` that gives one branch's velocity; the parallel loop calls it once a step.
        combine: the static method of ``Bagel`` that combines branch velocities.
        empty_prompt_prefills: whether the pipeline prefills an empty negative prompt (begin and end tokens) or leaves
            the text branch's cache empty.
    """

    name: str
    single_branch: str
    combine: str
    empty_prompt_prefills: bool


# Oldest first.
VERSIONS = (
    Version("0.18.0", "_forward_flow_single_branch", "_combine_cfg", empty_prompt_prefills=True),
    Version("0.22.0", "forward_single_branch", "_combine_cfg", empty_prompt_prefills=False),
    Version("0.30.0", "forward_single_branch", "_combine_cfg", empty_prompt_prefills=False),
)

# A release from before the first of them has no loop to judge.
NO_PARALLEL_LOOP = "its Bagel has no CFG-parallel loop, which came with 0.18.0: there is nothing to judge"

# Other arguments of the single-branch forward, by the name under which upstream prepares them for a branch. Versions
# prepare what they need: the last three are 0.18's.
BRANCH_ARGUMENTS = {
    "cfg_packed_position_ids": "packed_position_ids",
    "cfg_packed_query_indexes": "packed_indexes",
    "cfg_key_values_lens": "key_values_lens",
    "cfg_packed_key_value_indexes": "packed_key_value_indexes",
}


def installed_version() -> str:
    """What is installed.

    Raises:
        Unjudged: it is not.
    """
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise Unjudged(
            f"--target vllm_omni: {PACKAGE} is not installed in this Python, expected one of "
            f"{', '.join(v.name for v in VERSIONS)} or another that can be driven; run this in an environment that has "
            "it, or `tox run -e upstream-0.30.0`"
        ) from None


def version_of(installed: str, bagel_class: Any) -> Version:
    """How the installed version is driven: by its own entry, or by the newest one whose methods it has.

    Raises:
        Unjudged: it lacks a method that every entry needs.
    """
    named = [v for v in VERSIONS if v.name == installed]
    tried = named or list(reversed(VERSIONS))
    missing = []
    for version in tried:
        lacks = [name for name in (version.single_branch, version.combine) if not hasattr(bagel_class, name)]
        if not lacks:
            return version
        missing.append(f"as {version.name} (class Bagel lacks {', '.join(lacks)})")
    if not hasattr(bagel_class, "_combine_cfg"):
        raise Unjudged(f"{PACKAGE} {installed} cannot be driven: {NO_PARALLEL_LOOP}")
    raise Unjudged(
        f"{PACKAGE} {installed} cannot be driven: tried {'; '.join(missing)}; add an entry to "
        "verify/targets/vllm_omni/versions.py"
    )


def cannot_be_driven(installed: str, doing: str, error: Exception) -> Unjudged:
    """The end of an attempt: the version, what is missing, and what was tried."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in ("vllm", "vllm_omni"):
        return Unjudged(
            f"{PACKAGE} {installed} cannot be driven here: {doing} imports {error.name}, a package of others that is "
            "not installed; install it, or `python tests/upstream/install.py VERSION` what the release needs"
        )
    return Unjudged(
        f"{PACKAGE} {installed} cannot be driven: {doing} raised {type(error).__name__}: {error}; versions known to "
        f"work: {', '.join(v.name for v in VERSIONS)}"
    )
