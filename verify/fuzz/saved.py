"""Failing cases as small files, and what reproduces them."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verify.errors import BadInput
from verify.fuzz.boundary import GUIDED_STEPS_AGREE, Bounds
from verify.fuzz.case import Case
from verify.report.disk import write_whole

KIND = "fuzz case"


@dataclass(frozen=True)
class Saved:
    """A failing case on disk, and on what it failed.

    Attributes:
        broken: the property that the case breaks.
        what: what was wrong.
        combine: what was under test, as given to ``--combine``.
        world_size, device, backend: those of the ranks.
        case: the case itself.
    """

    broken: str
    what: str
    combine: str
    world_size: int
    device: str
    backend: str | None
    case: Case | Bounds

    def write(self, folder: Path) -> Path:
        """Writes the case into ``folder``. The file's name holds the property and a digest of the case.

        Raises:
            BadInput: it cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput.of("--save", str(folder), "a folder that can be made", str(error)) from None
        case = self.case.explicit() if isinstance(self.case, Case) else self.case
        digest = hashlib.sha256(json.dumps(case.to_dict()).encode()).hexdigest()[:8]
        path = folder / f"{self.broken}-{digest}.json"
        document = {
            "schema": 1,
            "kind": KIND,
            "property": self.broken,
            "what": self.what,
            "combine": self.combine,
            "world_size": self.world_size,
            "device": self.device,
            "backend": self.backend,
            "case": case.to_dict(),
        }
        write_whole(path, json.dumps(document, indent=1) + "\n")
        return path


def read_saved(path: str) -> Saved:
    """The case in a file that :meth:`Saved.write` wrote.

    Raises:
        BadInput: the file is no such thing.
    """
    try:
        data: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput.of("--replay", path, "a readable file", f"{type(error).__name__}: {error}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadInput.of("--replay", path, "a JSON file that verify fuzz saved", f"it is none: {error}") from None
    try:
        if data["kind"] != KIND or data["schema"] != 1:
            raise ValueError(f"it is a {data['kind']!r} of schema {data['schema']!r}")
        boundary = data["property"] == GUIDED_STEPS_AGREE
        case = Bounds.from_dict(data["case"]) if boundary else Case.from_dict(data["case"])
        return Saved(
            str(data["property"]),
            str(data["what"]),
            str(data["combine"]),
            int(data["world_size"]),
            str(data["device"]),
            data["backend"],
            case,
        )
    except (KeyError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise BadInput.of("--replay", path, "a file that verify fuzz saved", f"it is none: {why}") from None


def replay_command(path: Path) -> str:
    """The command that evaluates a saved case again."""
    return shlex.join(["verify", "fuzz", "--replay", str(path)])
