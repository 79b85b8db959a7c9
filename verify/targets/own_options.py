"""A target's own parameters: the arguments of the class or function that makes it, typed by their annotations.

``--target-option K=V`` gives one; ``verify run --target T --help`` lists them, with the lines of an ``Args:`` section
of the docstring; documents show the values that a run had.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from verify.errors import BadInput

_SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_WORDS = {int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class OwnOption:
    """One argument.

    Attributes:
        name: of it.
        kind: its type as annotated; None where it is not.
        default: what it is where it is not given; ``inspect.Parameter.empty`` where it must be.
        help: what the docstring says of it; may be empty.
    """

    name: str
    kind: Any
    default: Any
    help: str

    @property
    def takes(self) -> str:
        """What may be given, in words."""
        if get_origin(self.kind) is Literal:
            return f"one of {', '.join(map(str, get_args(self.kind)))}"
        return _WORDS.get(self.kind, "text")

    @property
    def line(self) -> str:
        """A line of help."""
        default = "" if self.default is inspect.Parameter.empty else f" (default {self.default})"
        return f"{self.name}=V  {self.help or self.takes}{f'; {self.takes}' if self.help else ''}{default}"

    def value(self, target: str, text: str) -> Any:
        """What ``text`` gives.

        Raises:
            BadInput: it is of another type.
        """
        try:
            if get_origin(self.kind) is Literal:
                return next(each for each in get_args(self.kind) if str(each) == text)
            if self.kind is bool:
                return _SWITCH[text.lower()]
            return self.kind(text) if self.kind in (int, float) else text
        except (ValueError, KeyError, StopIteration):
            raise BadInput.of(f"--target-option {self.name} of {target}", text, self.takes, "correct it") from None


def own_options(makes: Any) -> dict[str, OwnOption]:
    """The arguments of what makes a target, by name; none where it has no signature."""
    try:
        parameters = inspect.signature(makes).parameters
        hints = get_type_hints(makes.__init__ if inspect.isclass(makes) else makes)
    except (ValueError, TypeError, NameError):
        return {}
    said = inspect.getdoc(makes) or ""
    if inspect.isclass(makes):
        said += "\n" + (inspect.getdoc(makes.__init__) or "")
    lines = {name: text.strip() for name, text in re.findall(r"^\s+(\w+): (.+)$", said, re.MULTILINE)}
    return {
        name: OwnOption(name, hints.get(name), each.default, lines.get(name, ""))
        for name, each in parameters.items()
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    }


def typed(target: str, makes: Any, given: Mapping[str, str]) -> dict[str, Any]:
    """What was given, as what makes the target takes it.

    Raises:
        BadInput: a value is of another type.
    """
    known = own_options(makes)
    return {name: known[name].value(target, text) if name in known else text for name, text in given.items()}


def values(target: str, makes: Any, given: Mapping[str, str]) -> dict[str, Any]:
    """What each of a target's options is in a run, in JSON's values: as given, else its default."""
    found = {
        name: each.default for name, each in own_options(makes).items() if each.default is not inspect.Parameter.empty
    }
    found |= typed(target, makes, given)
    plain = (int, float, str, bool, type(None))
    return {name: value if isinstance(value, plain) else str(value) for name, value in found.items()}
