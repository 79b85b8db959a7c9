"""What one option is, and what is made of it: a parser's argument, a field of a job, words of a command line."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """One option of a command.

    ``Option("--seed", "of the noise", "request.seed", default=0, type=int)`` gives the parser an argument, fills the
    field ``seed`` of the job's request, and writes ``--seed 3`` into the command that reproduces a job with seed 3.

    Attributes:
        flag: as it is written: ``--num-timesteps``; a positional argument is written without dashes.
        help: one line; the default is added to it.
        field: the field of a job that it fills: ``window``, ``request.seed``, ``options.preset``. Empty: none.
        into: makes the field's value of what was parsed.
        shown: makes what a reproducing command shows of a whole job; the field's value if left out.
        default: None leaves the field as the job has it.
        type: makes a value of a word.
        metavar: what help calls the value.
        nargs, const: as argparse has them.
        switch: whether it takes no value.
        negatable: whether it is a switch that ``--no-...`` turns off, and is left open where neither is given.
        repeated: whether it may be given several times.
        always: whether a reproducing command names it even at its default.
        reproduces: whether it decides what is computed; where output goes and how much is printed do not.
        short: a second spelling.
        instead_of: a flag of the same command that excludes this one.
    """

    flag: str
    help: str
    field: str = ""
    into: Callable[[Any], Any] | None = None
    shown: Callable[[Any], Any] | None = None
    default: Any = None
    type: Callable[[str], Any] = str
    metavar: str | tuple[str, str] | None = None
    nargs: int | str | None = None
    const: Any = None
    switch: bool = False
    negatable: bool = False
    repeated: bool = False
    always: bool = False
    reproduces: bool = True
    short: str = ""
    instead_of: str = ""

    @property
    def name(self) -> str:
        """Under which a parser keeps the value."""
        return self.flag.lstrip("-").replace("-", "_")

    @property
    def told(self) -> str:
        """What help says of it."""
        known = self.default is not None and not self.repeated and not self.switch
        default = f" (default {' '.join(self.words_of(self.default))})" if known else ""
        return (self.help + default).replace("%", "%%")

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        """Adds it to a parser, or to a group of one."""
        flags = [self.short, self.flag] if self.short else [self.flag]
        settings: dict[str, Any] = {"help": self.told, "default": self.default}
        if self.switch:
            settings |= {"action": "store_true", "default": False}
        elif self.negatable:
            settings |= {"action": argparse.BooleanOptionalAction}
        else:
            settings |= {"type": self.type, "metavar": self.metavar, "nargs": self.nargs, "const": self.const}
            settings |= {"action": "append"} if self.repeated else {}
        if self.flag.startswith("--"):
            settings["dest"] = self.name
        elif self.nargs is None:
            settings.pop("default")  # It is required.
        parser.add_argument(*flags, **settings)

    def words_of(self, value: Any) -> list[str]:
        """The values of a command line that are parsed to ``value``."""
        if isinstance(value, float):
            return [f"{value:g}" if float(f"{value:g}") == value else repr(value)]
        if isinstance(value, (list, tuple)):
            return [word for each in value for word in self.words_of(each)]
        return [str(value)]

    def words(self, value: Any) -> list[str]:
        """What a reproducing command line says; nothing where the value is the default's and need not be named."""
        absent = value is None or (value is False and not self.negatable) or value in ("", (), [])
        if not self.reproduces or absent or (not self.always and _plain(value) == _plain(self.default)):
            return []
        if self.repeated:
            return [word for each in value for word in (self.flag, *self.words_of(each))]
        if self.negatable:
            return [self.flag if value else f"--no-{self.flag.removeprefix('--')}"]
        flag = [self.flag] if self.flag.startswith("--") else []
        return flag if self.switch or (self.const is not None and value == self.const) else flag + self.words_of(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Group:
    """Options that help shows together."""

    title: str
    options: Sequence[Option]


@dataclass(frozen=True)
class Command:
    """One command of the command line.

    Attributes:
        summary: what it does, in one line.
        groups: its options.
        examples: command lines to begin with.
    """

    summary: str
    groups: Sequence[Group]
    examples: Sequence[str] = ()

    @property
    def options(self) -> Iterator[Option]:
        """All of its options, in the order of help and of a reproducing command line."""
        return (option for group in self.groups for option in group.options)

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options to a parser."""
        for group in self.groups:
            shown = parser.add_argument_group(group.title)
            exclusive: dict[str, argparse._MutuallyExclusiveGroup] = {}
            partners = {option.instead_of for option in group.options if option.instead_of}
            for option in group.options:
                key = option.instead_of or (option.flag if option.flag in partners else "")
                if key and key not in exclusive:
                    exclusive[key] = shown.add_mutually_exclusive_group()
                option.add_to(exclusive[key] if key else shown)

    def fields(self, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The fields given, by part of a job: ``request``, ``options``, ``options.bagel``, and the rest under ''."""
        found: dict[str, dict[str, Any]] = {"request": {}, "options": {}, "options.bagel": {}, "": {}}
        for option in self.options:
            value = given[option.name]
            if option.field and value is not None:
                part, _, name = option.field.rpartition(".")
                found[part][name] = option.into(value) if option.into else value
        return found


def reproducing(name: str, command: Command, values: Mapping[str, Any]) -> str:
    """The command line that gives a command these values, by the name of each option."""
    words = ["verify", name]
    for option in command.options:
        words += option.words(values.get(option.name))
    return shlex.join(words)


def values_of(command: Command, job: Any) -> dict[str, Any]:
    """What each option of a command would have to be to give ``job``."""
    return {option.name: _value(option, job) for option in command.options}


def _value(option: Option, job: Any) -> Any:
    if option.shown is not None:
        return option.shown(job)
    value = job
    for name in option.field.split("."):
        value = getattr(value, name) if name and value is not None else None
    return value
