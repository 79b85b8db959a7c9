"""How a target and what it is made with are named by one text: ``FILE.py:NAME?family=wan&layers=2``."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qsl, urlencode

from verify.errors import BadInput


def with_options(name: str, options: Sequence[str]) -> str:
    """The one text, of ``--target`` and every ``--target-option``.

    Raises:
        BadInput: an option is not ``K=V``, or is given twice.
    """
    pairs = [option.partition("=") for option in options]
    for option, (key, equals, _) in zip(options, pairs, strict=True):
        if not equals or not key.isidentifier():
            raise BadInput.of("--target-option", option, "K=V, where K is the name of an argument", "write it so")
        if [other for other, *_ in pairs].count(key) > 1:
            raise BadInput.of("--target-option", option, "each argument once", f"give {key} once")
    return name + ("?" + urlencode([(key, value) for key, _, value in pairs]) if pairs else "")


def split_options(target: str) -> tuple[str, dict[str, str]]:
    """The name, and what the target is made with, of the one text."""
    name, _, query = target.partition("?")
    return name, dict(parse_qsl(query, keep_blank_values=True))


def given_options(target: str) -> list[str]:
    """The values of ``--target-option`` that the one text stands for."""
    return [f"{key}={value}" for key, value in split_options(target)[1].items()]
