"""Looking at the settings before a loop, in each of its steps and after it, in the thread that computes; and putting
back what a task changed.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from verify.environment.properties import BY_NAME, PROPERTIES, Kind, read, said
from verify.environment.variables import can_change_bits

BEFORE, VELOCITY, OBSERVE, AFTER = "before", "velocity", "observe", "after"
THREAD = "thread"

_FAST = tuple(setting for setting in PROPERTIES if not setting.slow)
_SLOW = tuple(setting for setting in PROPERTIES if setting.slow)


def kind_of(name: str) -> Kind:
    """What a difference in a setting means; a variable that can change bits must be equal, as what it decides."""
    if name == THREAD:
        return Kind.SHOWN
    return BY_NAME[name].kind if name in BY_NAME else Kind.ALIKE


class Look(NamedTuple):
    """One look.

    Attributes:
        step: in which; -1 before the loop.
        moment: ``before``, at a ``velocity``, at an ``observe``, or ``after`` the loop.
        sample: which of the samples was seen.
    """

    step: int
    moment: str
    sample: int


@dataclass(frozen=True)
class Seen:
    """What was seen in one loop on one rank: the settings as JSON values, once each, and when each was seen."""

    samples: tuple[Mapping[str, Any], ...]
    looks: tuple[Look, ...]

    @property
    def before(self) -> Mapping[str, Any]:
        """The settings that the loop began with."""
        return self.samples[self.looks[0].sample]


class SettingsWatch:
    """Samples the settings; the first sample is taken when it is made.

    A look at a step costs about 20 microseconds, one before or after a loop some tens more.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._samples: list[tuple[Any, ...]] = []
        self._variables: dict[str, str] = {}
        self._slow: tuple[Any, ...] = ()
        self._looks: list[Look] = []
        self.look(-1, BEFORE)

    def seen(self) -> Seen:
        """What was seen so far."""
        return Seen(tuple(map(_described, self._samples)), tuple(self._looks))

    def look(self, step: int, moment: str) -> None:
        """Notes what the settings of the calling thread are now."""
        try:
            fast = tuple([setting.read() for setting in _FAST])
        except RuntimeError:
            fast = tuple([read(setting) for setting in _FAST])
        if moment in (BEFORE, AFTER):
            self._slow = tuple([read(setting) for setting in _SLOW])
        if moment != VELOCITY:  # Reading all variables takes longer than all else, so once a step is enough.
            self._variables = dict(os.environ)
        own = threading.get_ident() == self._thread
        sample = (fast, self._slow, own, self._variables)
        # Almost always the last one; a loop that changes settings in each step goes to and fro between a few.
        for number in range(len(self._samples) - 1, -1, -1):
            if self._samples[number] == sample:
                break
        else:
            number = len(self._samples)
            self._samples.append(sample)
        self._looks.append(Look(step, moment, number))


def _described(sample: tuple[Any, ...]) -> dict[str, Any]:
    fast, slow, own, variables = sample
    settings = {s.name: said(value) for s, value in zip((*_FAST, *_SLOW), (*fast, *slow), strict=True)}
    known = {name: value for name, value in sorted(variables.items()) if can_change_bits(name)}
    return settings | {THREAD: "the task's" if own else "another"} | known


def current() -> dict[str, Any]:
    """The settings now, as JSON values."""
    return {setting.name: said(read(setting)) for setting in PROPERTIES}


class Held:
    """The settings, variables and working directory that a rank's tasks begin with.

    What is set while a target is imported and prepared stays, as in an engine. What a loop sets while running is
    undone, so that it neither judges itself nor spoils the next.
    """

    def __init__(self) -> None:
        self.adopt()

    def adopt(self) -> None:
        """What is set now is what the next tasks begin with."""
        self._values = tuple(read(setting) for setting in _FAST)
        self._variables = dict(os.environ)
        self._folder = _folder()

    def restore(self) -> None:
        """Puts back what differs. A setting without a writer stays as it is: the next look tells."""
        # A setting may depend on one that is put back after it.
        for _ in range(2):
            for setting, value in zip(_FAST, self._values, strict=True):
                if setting.write is not None and read(setting) != value:
                    with contextlib.suppress(RuntimeError, ValueError, TypeError):
                        setting.write(value)
        if os.environ != self._variables:
            os.environ.clear()
            os.environ.update(self._variables)
        if self._folder is not None and _folder() != self._folder:
            with contextlib.suppress(OSError):
                os.chdir(self._folder)


def _folder() -> str | None:
    with contextlib.suppress(OSError):
        return os.getcwd()
    return None
