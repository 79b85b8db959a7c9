"""What the options ``--verify-...`` say. Loads without torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from verify.options.table import RUN, TARGET_OPTION

if TYPE_CHECKING:
    from verify.runner.job import Job

# The gate chooses its requests itself; the rest is as `verify run` has it.
GATE_OPTIONS = [
    option
    for option in RUN.options
    if (option.field or option is TARGET_OPTION)
    and not (option.field.startswith("request.") or option.switch or option.negatable)
]
COUNTS = {"require-gpus": "fail, not skip, what needs up to N GPUs"}
_KEPT = pytest.StashKey["Settings"]()


@dataclass(frozen=True)
class Settings:
    """What was asked of the gate.

    Attributes:
        given: the value of each option of ``verify run``, by its name; its default where none was given.
        asked: whether anything was: without, the plugin does nothing.
        named: whether a target or loop was named, so that a session that judges none of its claims has failed.
        require_gpus: up to how many GPUs must be there.
        markdown: where the summary goes.
    """

    given: Mapping[str, Any]
    asked: bool
    named: bool
    require_gpus: int = 0
    markdown: str | None = None

    @property
    def subject(self) -> str:
        """What is judged, as it was named."""
        return f"loop {self.given['loop']}" if self.given["loop"] else f"target {self.given['target']}"

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return str(self.given["device"])

    @property
    def job(self) -> Job:
        """The job of the plain text request: what `verify run` would do with these options.

        Raises:
            BadInput: a preset or a combination of options that there is not.
        """
        from verify.commands.run import job_of

        return job_of(argparse.Namespace(command="run", **self.given))

    def checked(self) -> Settings:
        """These settings, if a session can begin with them.

        Raises:
            BadInput: an option names what there is not.
        """
        from verify.errors import BadInput
        from verify.report.disk import check_writable
        from verify.targets.finding import find_target
        from verify.targets.loading import load_loop

        find_target(self.job.target)
        if self.given["loop"]:
            load_loop(self.given["loop"])
        for option, allowed in (("device", ("cpu", "cuda")), ("backend", (None, "gloo", "nccl"))):
            if self.given[option] not in allowed:
                names = ", ".join(name for name in allowed if name)
                raise BadInput.of(f"--{option}", self.given[option], f"one of {names}", "choose one")
        ranks = self.given["world_size"]
        if ranks is not None and not 1 <= ranks <= 64:
            raise BadInput.of("--world-size", ranks, "an integer from 1 to 64", "choose one in that range")
        if not 0 <= self.require_gpus <= 64:
            raise BadInput.of("--require-gpus", self.require_gpus, "a number from 0 to 64", "choose one")
        if self.markdown:
            check_writable(self.markdown)
        return self


def settings_of(config: pytest.Config) -> Settings:
    """The settings of a session; read once."""
    if _KEPT not in config.stash:
        config.stash[_KEPT] = _read(config.option)
    return config.stash[_KEPT]


def _read(option: Any) -> Settings:
    defaults = {each.name: False if each.switch else each.default for each in RUN.options}
    given = {each.name: getattr(option, f"verify_{each.name}", None) for each in GATE_OPTIONS}
    found = {name: value for name, value in given.items() if value is not None}
    named = "target" in found or "loop" in found
    gpus = getattr(option, "verify_require_gpus", None)
    settings = Settings(defaults | found, named, named, gpus or 0, getattr(option, "verify_markdown", None))
    # A checkout of this suite judges its own loops where nothing is named.
    return replace(settings, asked=True, named=False) if getattr(option, "verify_own", False) else settings
