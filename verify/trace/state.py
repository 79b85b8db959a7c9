"""What a loop could spoil and must leave as it is: weights, buffers, contexts, hooks and functions.

Bytes are digested before and after the loop. In between PyTorch's version counters tell of writes, also of those that
are put right before the end. Writing through NumPy or a pointer moves no counter: it shows only if it lasts.
"""

from __future__ import annotations

import hashlib
import os
import sys
import types
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from verify.trace.digest import digests
from verify.trace.leaves import leaves_of, stamps_of, version_of
from verify.trace.network import networks_of

WEIGHTS, CONTEXTS, FUNCTIONS, HOOKS = "weights", "contexts", "functions", "hooks"
# Looked at by whoever knows what the rank has joined.
GROUPS = "process groups"
_MOST_NAMES = 8
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
# Where a patch would change what judges: the suite's own code, and the functions that networks are written with.
_TORCH = os.path.dirname(torch.__file__)
_PATCHABLE = ("torch", "torch.nn.functional", "torch.linalg", "torch.Tensor")


@dataclass(frozen=True)
class Change:
    """Something that the loop changed.

    Attributes:
        part: weights, contexts, functions, hooks or process groups.
        name: which of them, e.g. ``layers.1.mlp.weight``.
        step: the step in which the change was seen; None if only the end shows it.
        lasting: whether it is still there at the end.
    """

    part: str
    name: str
    step: int | None
    lasting: bool


@dataclass(frozen=True)
class StateRecord:
    """The state under one loop on one rank.

    Attributes:
        before: for each part, the digest of all of it before the loop.
        changes: what the loop changed, earliest first.
        elements: bytes digested.
        differs: the parts that were other before this loop than before the first loop on this rank.
    """

    before: Mapping[str, str]
    changes: tuple[Change, ...]
    elements: int
    differs: tuple[str, ...] = ()


class StateWatch:
    """Watches the state under a denoiser while a loop runs. Made before the loop, read after it."""

    def __init__(self, denoiser: Any) -> None:
        self._denoiser = denoiser
        self._tensors, self._hooks = _held(denoiser)
        self._digests = _known(self._tensors)
        self._functions = dict(_functions())
        self._versions = {name: version_of(tensor) for name, tensor in self._tensors.items()}
        self._own = dict(leaves_of(denoiser))
        self._own_digests = _leaf_digests(self._own)
        self._own_versions = stamps_of(self._own)
        self._seen: dict[tuple[str, str], int] = {}
        self._step = 0

    def before(self) -> dict[str, str]:
        """For each part the digest of all of it before the loop."""
        return {
            WEIGHTS: _combined(self._digests),
            CONTEXTS: _combined(self._own_digests),
            HOOKS: _combined({name: str(count) for name, count in self._hooks.items()}),
        }

    def entering(self) -> None:
        """The loop asks for a velocity: what was written to the denoiser since the last one is the loop's doing."""
        now = dict(leaves_of(self._denoiser))
        stamps = stamps_of(now)
        for name in self._own_versions.keys() | stamps.keys():
            if self._own_versions.get(name) != stamps.get(name):
                self._seen.setdefault((CONTEXTS, name), self._step)
        self._own_versions = stamps

    def left(self) -> None:
        """A velocity has been given: what the denoiser has done to itself meanwhile is its own affair."""
        self._own_versions = stamps_of(dict(leaves_of(self._denoiser)))

    def look(self, step: int) -> None:
        """``step`` is done. Never waits for the device."""
        for name, tensor in self._tensors.items():
            version = version_of(tensor)
            if version != self._versions[name]:
                self._versions[name] = version
                self._seen.setdefault((WEIGHTS, name), step)
        self._step = step + 1

    def record(self, first: Mapping[str, str] | None = None) -> StateRecord:
        """What became of the state. ``first``: :meth:`before` of the first loop on this rank."""
        self.entering()
        lasting = {(part, name) for part, names in self._lasting() for name in names}
        # A denoiser may be handed things for the length of a call; weights may not be touched at all.
        changes = [
            Change(part, name, step, (part, name) in lasting)
            for (part, name), step in self._seen.items()
            if part != CONTEXTS or (part, name) in lasting
        ]
        changes += [Change(*key, None, True) for key in sorted(lasting - self._seen.keys())]
        changes.sort(key=lambda change: (change.step is None, change.step or 0, change.part != WEIGHTS))
        before = self.before()
        differs = () if first is None else tuple(part for part, value in before.items() if first.get(part) != value)
        size = sum(tensor.nbytes for tensor in self._tensors.values())
        size += sum(leaf.nbytes if isinstance(leaf, Tensor) else 1 for leaf in self._own.values())
        return StateRecord(before, tuple(changes[:_MOST_NAMES]), size, differs)

    def _lasting(self) -> Iterator[tuple[str, list[str]]]:
        """What is other now than before the loop, part by part."""
        tensors, hooks = _held(self._denoiser)
        yield WEIGHTS, _unlike(self._digests, _digested(tensors))
        yield HOOKS, _unlike(self._hooks, hooks)
        functions = dict(_functions())
        yield (
            FUNCTIONS,
            [
                name
                for name, function in self._functions.items()
                if name in functions and functions[name] is not function and not _by_torch(name, functions[name])
            ],
        )
        # Of the denoiser's own fields only what the loop was seen to write: a denoiser may keep scratch memory.
        own = _leaf_digests(dict(leaves_of(self._denoiser)))
        yield (
            CONTEXTS,
            [name for part, name in self._seen if part == CONTEXTS and own.get(name) != self._own_digests.get(name)],
        )


# The tensors last digested in this process, with their counts of writes, and their digests: after one loop, before the
# next. Whoever writes to them meanwhile moves a count; a tensor in another's place is another object.
_LAST: dict[str, tuple[weakref.ref[Tensor], int, str]] = {}


def _digested(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    found = dict(zip(tensors, digests(tensors.values()), strict=True))
    _LAST.clear()
    for name, tensor in tensors.items():
        _LAST[name] = weakref.ref(tensor), version_of(tensor), found[name]
    return found


def _known(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The digests of tensors: those of the last time where no tensor is another one, or was written to, since."""
    for name, tensor in tensors.items():
        last = _LAST.get(name)
        if last is None or last[0]() is not tensor or last[1] != version_of(tensor) or tensor.is_inference():
            return _digested(tensors)
    return {name: _LAST[name][2] for name in tensors}


def _held(denoiser: Any) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The parameters and buffers of its networks, and how many hooks each module has that has any; in one walk."""
    weights: dict[str, Tensor] = {}
    hooks: dict[str, int] = {}
    for number, network in enumerate(networks_of(denoiser)):
        prefix = f"network {number}: " if number else ""
        seen: set[int] = set()
        for name, module in _modules(network):
            for own, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    weights[prefix + (f"{name}.{own}" if name else own)] = tensor
            count = sum(len(getattr(module, kind, ())) for kind in _HOOKS)
            if count:
                hooks[prefix + (name or type(module).__name__)] = count
    return weights, hooks


def _modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As ``named_modules``, in a quarter of its time: that passes each module through a generator for each level."""
    waiting, seen = [("", network)], {id(network)}
    while waiting:
        name, module = waiting.pop()
        yield name, module
        for own, child in module._modules.items():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                waiting.append((f"{name}.{own}" if name else own, child))


def _functions() -> Iterator[tuple[str, Any]]:
    """Every function that a patch could replace under the reference."""
    own = [name for name in sys.modules if name == "verify" or name.startswith("verify.")]
    for where in (*_PATCHABLE, *own):
        holder = torch.Tensor if where == "torch.Tensor" else sys.modules.get(where)
        for name, value in list(vars(holder).items()) if holder is not None else ():
            if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
                yield f"{where}.{name}", value
            elif isinstance(value, type) and value.__module__ == where and where.startswith("verify."):
                for method, function in list(vars(value).items()):
                    if isinstance(function, types.FunctionType):
                        yield f"{where}.{name}.{method}", function


def _by_torch(name: str, function: Any) -> bool:
    """Whether PyTorch has put a function of its own in the place of another, as its compiler does when it is loaded."""
    code = getattr(function, "__code__", None)
    return name.startswith("torch.") and code is not None and code.co_filename.startswith(_TORCH)


def _leaf_digests(leaves: Mapping[str, Any]) -> dict[str, str]:
    tensors = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor)}
    found = dict(zip(tensors, digests(tensors.values()), strict=True))
    return found | {name: repr(leaf) for name, leaf in leaves.items() if name not in found}


def _combined(values: Mapping[str, str]) -> str:
    return hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()


def _unlike(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
