"""What a JSON document has that its schema does not allow, or what in it cannot be shown, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from verify.errors import BadInput

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

_FIX = "write it with this version's --json"
# What reading a document raises that has other parts than those of its kind.
_UNFIT = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


def mismatch(error: ValidationError) -> BadInput:
    """The line for one mismatch that ``jsonschema`` has found."""
    name = f"the document at {error.json_path}"
    value, allowed = error.instance, error.validator_value
    shown: Any = f"a {type(value).__name__}" if isinstance(value, (dict, list)) else value
    if error.validator in ("contains", "not"):
        expected = "checks that add up to the verdict"
    elif error.validator == "required":
        expected = f"one with every part ({error.message})"
    elif error.validator == "additionalProperties":
        expected = f"the parts of the schema and no others ({error.message})"
    else:
        words = {"type": "of type", "const": "equal to", "enum": "one of", "minimum": "at least", "maximum": "at most"}
        said = allowed if not isinstance(allowed, list) else ", ".join(map(str, allowed))
        fits = error.validator in words and isinstance(said, (str, int, float))
        expected = f"a value {words[str(error.validator)]} {said}" if fits else f"another ({error.message[:200]})"
    return BadInput.of(name, shown, expected, _FIX)


@contextmanager
def as_document(kind: str) -> Iterator[None]:
    """Within the block, what a document of that kind lacks or has too much of is bad input.

    Raises:
        BadInput: something in the block could not be read or shown.
    """
    try:
        yield
    except _UNFIT as error:
        raise BadInput.of(
            f"the {kind} document", f"{type(error).__name__}: {error}", "every part of one", _FIX
        ) from None
