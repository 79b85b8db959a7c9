"""Finding what a user points at: ``path/to/file.py:name`` or ``package.module:name``.

A file is run once in a process and kept as long as its bytes stay the same, so that its globals live from request to
request, as an engine's do. It is run again once it, or a neighbour that it imports, has been edited. Of a
``package.module`` the module's own file is looked at, and nothing else of the package.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from verify.errors import BadInput

_LOOP_SIGNATURE = "loop(denoiser, request, x_0, group, observe) -> x_final"
_OWN_PACKAGE = __name__.partition(".")[0]
# The digest that a module's file had when the module was made, for as long as the module lives.
_digests: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()


def load_object(option: str, reference: str) -> Any:
    """The object that ``reference`` names; ``option`` is the flag it came from, for messages.

    Raises:
        BadInput: it is malformed, or there is no such file, module or name, or the file cannot be imported.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise BadInput.of(option, reference, "FILE.py:NAME or PACKAGE.MODULE:NAME", "separate the two by a colon")
    module = load_file(option, place) if place.endswith(".py") or "/" in place else _from_name(option, place)
    try:
        return getattr(module, name)
    except AttributeError:
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
        known = [n for n in own if callable(vars(module)[n]) and not n.startswith("_")][:5]
        has = f"it defines {', '.join(known)}" if known else "it defines no public function"
        raise BadInput.of(option, reference, f"a name that {place} defines", f"{has}; correct the name") from None
    except Exception as error:  # A module may have a __getattr__ of its own.
        raise BadInput.of(option, reference, f"a name that {place} defines", in_words(error)) from error


def load_loop(reference: str) -> Any:
    """The loop that ``reference`` names, after a look at its signature.

    Raises:
        BadInput: it cannot be found, called, or called with the five arguments of a loop.
    """
    loop = load_object("--loop", reference)
    if not callable(loop):
        raise BadInput.of("--loop", reference, f"a function {_LOOP_SIGNATURE}", f"it is a {type(loop).__name__}")
    try:
        inspect.signature(loop).bind(*range(5))
    except TypeError as error:
        raise BadInput.of(
            "--loop", reference, f"a function {_LOOP_SIGNATURE}", f"five positional arguments do not fit it ({error})"
        ) from None
    except ValueError:
        pass  # A builtin without a signature: calling it will tell.
    if inspect.iscoroutinefunction(loop) or inspect.isgeneratorfunction(loop):
        raise BadInput.of("--loop", reference, f"a plain function {_LOOP_SIGNATURE}", "make it neither async nor yield")
    return loop


def reference_to(loop: Any) -> str:
    """Where ranks find a function: they are other processes, and import it from its file or module.

    Raises:
        BadInput: they cannot, as a lambda or a function within another.
    """
    name, module = getattr(loop, "__qualname__", ""), sys.modules.get(getattr(loop, "__module__", None) or "")
    expected = "a function that a file or module defines under its name, since each rank imports it"
    if not callable(loop) or not name.isidentifier() or getattr(module, name, None) is not loop:
        raise BadInput.of("loop", loop, expected, "define it with def at the top of a file")
    assert module is not None
    if module.__package__:  # Its file alone could not resolve imports relative to its package.
        return f"{module.__name__}:{name}"
    path = getattr(module, "__file__", None)
    if path is None or not path.endswith(".py"):
        raise BadInput.of("loop", loop, expected, "write it into a file")
    return f"{os.path.realpath(path)}:{name}"


class _AsWritten(SourceFileLoader):
    """Runs a file as it is now, as Python runs a script: bytecode of another moment is neither looked for nor left.

    Attributes:
        neighbours: the modules in the same folder that the file has imported, by name.
    """

    neighbours: dict[str, ModuleType]

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)

    def exec_module(self, module: ModuleType) -> None:
        _digests[module] = _digest(self.path)
        folder, before = os.path.dirname(self.path), set(sys.modules)
        # A file's own imports find its neighbours, as when it is run as a script.
        with _first_on_path(folder):
            super().exec_module(module)
        near = {name: found for name, found in sys.modules.items() if found is not module and _is_in(folder, name)}
        for name in near.keys() - before:
            _digests.setdefault(near[name], _digest(str(near[name].__file__)))
        # One that another file imported first counts too; what was there before any of them is not a neighbour.
        self.neighbours = {name: found for name, found in near.items() if found in _digests}


def load_file(option: str, place: str) -> ModuleType:
    """The module that a Python file makes; ``option`` is the flag it came from, for messages.

    Raises:
        BadInput: there is no such file, or it cannot be imported.
    """
    if not os.path.isfile(place):  # False, too, for a circle of links and for what may not be looked at.
        raise BadInput.of(option, place, "a Python file", "there is no such file; check the path")
    path = os.path.realpath(place)
    name = f"_loop_file_{abs(hash(path))}"
    if not path.endswith(".py"):
        raise BadInput.of(option, place, "a Python file", "name one that ends in .py")
    known = sys.modules.get(name)
    loader = None if known is None or known.__spec__ is None else known.__spec__.loader
    if known is not None and isinstance(loader, _AsWritten):
        if not _edited(known) and not any(map(_edited, loader.neighbours.values())):
            return known
        for neighbour, found in loader.neighbours.items():
            _forget(neighbour, found)
    spec = importlib.util.spec_from_file_location(name, path, loader=_AsWritten(name, path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _unimportable(option, place, error) from error
    return module


def _from_name(option: str, place: str) -> ModuleType:
    known = sys.modules.get(place)
    if known is not None and (place.partition(".")[0] == _OWN_PACKAGE or not _edited(known)):
        return known
    if known is not None:
        _forget(place, known)
    # ``verify`` finds what ``python -m verify`` finds.
    try:
        with _first_on_path(os.getcwd()):
            module = importlib.import_module(place)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _unimportable(option, place, error) from error
    if getattr(module, "__file__", None):
        _digests[module] = _digest(str(module.__file__))
    return module


def _is_in(folder: str, name: str) -> bool:
    """Whether the module of that name is a file of ``folder``, or part of a package that lies in it."""
    top = name.partition(".")[0]
    file = getattr(sys.modules[name], "__file__", None)
    if top == _OWN_PACKAGE or not file:
        return False
    inner = os.path.relpath(os.path.realpath(file), folder).split(os.sep)
    return inner[0] in (top, f"{top}.py")


def _edited(module: ModuleType) -> bool:
    """Whether the module's file holds other bytes than when the module was made; False where that is not known."""
    return module in _digests and _digests[module] != _digest(str(module.__file__))


def _forget(name: str, module: ModuleType) -> None:
    """Has the next import make the module anew, from its source.

    Python takes bytecode for current if time and size of the source fit, and two edits may lie within a second.
    """
    sys.modules.pop(name, None)
    if _edited(module):
        with suppress(OSError, NotImplementedError):
            os.unlink(importlib.util.cache_from_source(str(module.__file__)))


def _digest(path: str) -> str:
    """SHA-256 of a file; empty if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


@contextmanager
def _first_on_path(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:  # What is imported may have changed it.
            sys.path.remove(folder)


def _unimportable(option: str, place: str, error: BaseException) -> BadInput:
    return BadInput.of(option, place, "something that can be imported", in_words(error))


def in_words(error: BaseException) -> str:
    """An exception by name and text; its own code may fail at the text."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__
