"""Finding the target that ``--target`` names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from verify.errors import BadInput
from verify.expected import ANY, LOOP_KINDS, Exchanges
from verify.options.targets import split_options
from verify.targets.loading import in_words, load_object
from verify.targets.own_options import own_options, typed, values
from verify.targets.protocol import REFERENCE, Target, default_loops

# Loaded only when named: neither may make the other's imports a requirement.
_NAMED = {
    "builtin": "verify.targets.builtin:BuiltinTarget",
    "vllm_omni": "verify.targets.vllm_omni.target:VllmOmniTarget",
    "vllm_omni_family": "verify.targets.vllm_omni.families.target:FamilyTarget",
    "vllm_omni_lance": "verify.targets.vllm_omni.lance:LanceTarget",
}
_OPTIONAL = ("branches", "schedule", "explain", "resume", "layout")


# What each name led to, and the target made of it.
_targets: dict[str, tuple[Any, Target]] = {}


def find_target(name: str) -> Target:
    """The target of that name, ``FILE.py:NAME`` or ``PACKAGE.MODULE:NAME``; one in a process, until its file is edited.

    Raises:
        BadInput: there is none, it cannot be imported, or it lacks what a target must have.
    """
    place, options = split_options(name)
    if place not in _NAMED and ":" not in place:
        raise BadInput.of(
            "--target", name, f"{', '.join(_NAMED)}, FILE.py:NAME or PACKAGE.MODULE:NAME", "name one of these"
        )
    found = load_object("--target", _NAMED.get(place, place))
    if name not in _targets or _targets[name][0] is not found:
        _targets[name] = found, _checked(name, _instance(name, found, options))
    return _targets[name][1]


def _instance(name: str, found: Any, options: Mapping[str, str]) -> Any:
    """The target itself, where a class or a function that makes one was named."""
    makes = inspect.isclass(found) or (inspect.isroutine(found) and not hasattr(found, "prepare"))
    if options:
        _require_arguments(name, found if makes else None, options)
        arguments = typed(split_options(name)[0], found, options)
        try:
            return found(**arguments)
        except Exception as error:
            raise BadInput(f"--target {name}: making it with these options raised {in_words(error)}") from error
    if inspect.isclass(found) or (inspect.isroutine(found) and not hasattr(found, "prepare")):
        try:
            found = found()
        except Exception as error:
            raise BadInput.of(
                "--target", name, "a target, or a class or function that makes one of no arguments",
                f"calling it raised {in_words(error)}",
            ) from error  # fmt: skip
    return found


def options_of(name: str) -> dict[str, Any]:
    """The target's own options and their values in a run; of a named one none, since its options are the suite's.

    Raises:
        BadInput: as :func:`find_target`.
    """
    place, options = split_options(name)
    found = load_object("--target", _NAMED.get(place, place))
    return values(place, found, options) if inspect.isclass(found) or inspect.isroutine(found) else {}


def options_told(name: str) -> list[str]:
    """A line of help for each of a target's own options.

    Raises:
        BadInput: as :func:`find_target`.
    """
    place, _ = split_options(name)
    found = load_object("--target", _NAMED.get(place, place))
    makes = found if inspect.isclass(found) or inspect.isroutine(found) else None
    return [] if makes is None else [option.line for option in own_options(makes).values()]


def _require_arguments(name: str, makes: Any, options: Mapping[str, str]) -> None:
    try:
        known = inspect.signature(makes).parameters if makes is not None else {}
    except ValueError:
        return  # A builtin without a signature: calling it will tell.
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for option in options:
        if option not in known:
            takes = f"one of {', '.join(known)}" if known else "none: it takes no arguments"
            raise BadInput.of(
                f"--target-option of {split_options(name)[0]}", option, takes, "leave it out or correct it"
            )


def _checked(name: str, target: Any) -> Target:
    """The same object, seen to have what the suite will use.

    Raises:
        BadInput: it has not; the message names the attribute.
    """
    if not isinstance(getattr(target, "name", None), str):
        _refuse(name, target, "name", "a str: what reports call it")
    loops, expects = getattr(target, "loops", None), getattr(target, "expects", None)
    if not isinstance(loops, Mapping) or not all(isinstance(k, str) and callable(v) for k, v in loops.items()):
        _refuse(name, target, "loops", "a mapping from names to loops(denoiser, request, x_0, group, observe)")
    assert isinstance(loops, Mapping)
    if REFERENCE not in loops:
        _refuse(
            name, target, "loops", f"a {REFERENCE!r} among them: the loop in one process that the others are held to"
        )
    if len(loops) < 2:
        _refuse(name, target, "loops", "one besides the reference: there is nothing to judge")
    kinds = (*LOOP_KINDS, ANY)
    judged = [loop for loop in loops if loop != REFERENCE]
    if not isinstance(expects, Mapping) or not all(
        isinstance(expects.get(loop), Exchanges) or expects.get(loop) in kinds for loop in judged
    ):
        known = ", ".join((*LOOP_KINDS[1:], ANY))
        _refuse(name, target, "expects", f"for each loop but the reference one of {known}, or Exchanges")
    if not callable(getattr(target, "prepare", None)):
        _refuse(name, target, "prepare", "a method prepare(request, options, rank, device) -> Prepared")
    try:
        inspect.signature(target.prepare).bind(*range(4))
    except TypeError:
        _refuse(name, target, "prepare", "a method that takes (request, options, rank, device)")
    for optional in _OPTIONAL:
        if hasattr(target, optional) and not callable(getattr(target, optional)):
            _refuse(name, target, optional, "a method, or not there at all")
    if not set(default_loops(target)) <= set(loops) - {REFERENCE}:
        _refuse(name, target, "default", "names of its loops other than the reference")
    found: Target = target
    return found


def _refuse(name: str, target: Any, attribute: str, expected: str) -> None:
    value = getattr(target, attribute, None)
    shown = "missing" if not hasattr(target, attribute) else f"a {type(value).__name__}"
    if isinstance(value, Mapping):
        shown = "{" + ", ".join(f"{k!r}: {repr(v) if isinstance(v, str) else '...'}" for k, v in value.items()) + "}"
    raise BadInput(
        f"--target {name}: attribute {attribute} is {shown}, expected {expected}; see Target in "
        "verify/targets/protocol.py"
    )
