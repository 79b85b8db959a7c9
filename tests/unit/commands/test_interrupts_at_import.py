"""An interrupt while a module is being imported ends the process instead of raising into native code."""

from __future__ import annotations

import importlib
import signal
from pathlib import Path

import pytest

from verify.commands.interrupts import interrupts


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_while_a_module_is_imported(
    number: signal.Signals, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"interrupts_itself_{status}"
    (tmp_path / f"{name}.py").write_text(f"import signal\nsignal.raise_signal({int(number)})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    left: list[int] = []
    with pytest.raises(KeyboardInterrupt), interrupts(leave=left.append):
        importlib.import_module(name)
    assert left == [status]


def test_anywhere_else_it_is_raised() -> None:
    left: list[int] = []
    with pytest.raises(KeyboardInterrupt), interrupts(leave=left.append):
        signal.raise_signal(signal.SIGINT)
    assert left == []
