"""Runs the cells of a plan, several at a time, each release by an interpreter of its own.

A cell's result is kept as soon as it is there, so that a matrix that was interrupted goes on where it was. Processes
that run cells (``verify.commands.matrix_child``) keep their ranks from one cell to the next.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import selectors
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import msgspec

from verify.errors import BadInput
from verify.matrix.outcome import cell_not_run, cell_of, cell_without_run, command_of
from verify.matrix.plan import Plan, Planned
from verify.report.documents.matrix import MatrixCell
from verify.report.documents.reading import read
from verify.report.documents.run import Run

NOT_REACHED = "not reached: the time for the whole matrix was over"


class Runner:
    """Runs cells and keeps what came of them."""

    def __init__(
        self, child: Sequence[str], interpreters: Mapping[str, str], keep: Path, deadline: float, cell_limit: float
    ) -> None:
        """
        Args:
            child: what an interpreter is started with.
            interpreters: for each release the Python that has it.
            keep: a folder for results.
            deadline: of the whole, on the monotonic clock.
            cell_limit: seconds for one cell.
        """
        self._child, self._interpreters, self._keep = list(child), interpreters, keep
        self._deadline, self._cell_limit = deadline, cell_limit
        keep.mkdir(parents=True, exist_ok=True)

    def run(self, plan: Plan, jobs: int, done: Callable[[MatrixCell], None]) -> list[MatrixCell]:
        """Every cell of the plan, in its order; ``done`` is told of each as it comes."""
        found: dict[int, MatrixCell] = {}
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        lock = threading.Lock()

        def keep(number: int, cell: MatrixCell) -> None:
            with lock:
                found[number] = cell
                done(cell)

        for number, planned in enumerate(plan.cells):
            kept = cell_not_run(planned, planned.stands) if planned.stands else self._kept(planned)
            if kept is None:
                waiting.put(number)
            else:
                keep(number, kept)

        def work() -> None:
            worker: _Worker | None = None
            try:
                while time.monotonic() < self._deadline:
                    try:
                        number = waiting.get_nowait()
                    except queue.Empty:
                        break
                    planned = plan.cells[number]
                    if worker is None or worker.release != planned.release or not worker.alive:
                        if worker is not None:
                            worker.close()
                        worker = _Worker(self._interpreters[planned.release], self._child, planned.release)
                    cell = self._ran(worker, planned)
                    keep(number, cell)
            finally:
                if worker is not None:
                    worker.close()

        threads = [threading.Thread(target=work, name=f"matrix {n}", daemon=True) for n in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, planned in enumerate(plan.cells):
            if number not in found:
                found[number] = cell_not_run(planned, NOT_REACHED, command_of(planned))
        return [found[number] for number in range(len(plan.cells))]

    def _place(self, planned: Planned) -> Path:
        name = hashlib.sha256(json.dumps([planned.release, *planned.options]).encode()).hexdigest()[:16]
        return self._keep / f"{name}.json"

    def _kept(self, planned: Planned) -> MatrixCell | None:
        try:
            kept = msgspec.json.decode(self._place(planned).read_bytes(), type=MatrixCell)
        except (OSError, msgspec.MsgspecError):
            return None
        return msgspec.structs.replace(kept, row=planned.row, column=planned.column)

    def _ran(self, worker: _Worker, planned: Planned) -> MatrixCell:
        began = time.monotonic()
        limit = min(self._cell_limit, max(1.0, self._deadline - began))
        document = self._place(planned).with_suffix(".run.json")
        answer = worker.ask({"options": planned.options, "json": str(document)}, limit)
        seconds = time.monotonic() - began
        if answer is None:
            ended = time.monotonic() >= self._deadline
            return cell_not_run(
                planned, NOT_REACHED if ended else f"no verdict within {limit:.0f} s", command_of(planned)
            )
        cell = self._judged(planned, answer, document, seconds)
        self._place(planned).write_bytes(msgspec.json.encode(cell))
        return cell

    def _judged(self, planned: Planned, answer: Mapping[str, Any], document: Path, seconds: float) -> MatrixCell:
        if answer["said"]:
            return cell_without_run(planned, command_of(planned), answer["status"], answer["said"], seconds)
        try:
            run = read(document)
        except BadInput as error:
            return cell_not_run(planned, str(error), command_of(planned))
        assert isinstance(run, Run)
        return cell_of(planned, run, seconds)


class _Worker:
    """A process that runs one cell after another."""

    def __init__(self, interpreter: str, child: Sequence[str], release: str) -> None:
        self.release = release
        self._process = subprocess.Popen(
            [interpreter, *child], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True,
        )  # fmt: skip

    @property
    def alive(self) -> bool:
        """Whether it can be asked for another cell."""
        return self._process.poll() is None

    def ask(self, cell: Mapping[str, Any], limit: float) -> dict[str, Any] | None:
        """Has it run a cell; None if it gave no answer within ``limit`` seconds, or died. It has ended then."""
        questions, answers = self._process.stdin, self._process.stdout
        assert questions is not None
        assert answers is not None
        try:
            questions.write(json.dumps(cell) + "\n")
            questions.flush()
            line = _line(answers, limit)
            return dict(json.loads(line))
        except (OSError, ValueError):
            self.close()
            return None

    def close(self) -> None:
        """Ends it, with the ranks that it started: they leave when it does."""
        with suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _line(answers: IO[str], limit: float) -> str:
    """The next line; empty if none comes in time or ever.

    Nothing is buffered before: there is one answer to a question.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(answers, selectors.EVENT_READ)
        if not selector.select(limit):
            return ""
    return answers.readline()


def usable(interpreter: str) -> bool:
    """Whether a Python is there."""
    return os.access(interpreter, os.X_OK)
