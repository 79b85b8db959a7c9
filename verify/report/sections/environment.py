"""What ranks ran on, for people: one line, and rank beside rank with the differences first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verify.report.documents.parts import Document
from verify.report.sections.blocks import Block, Cell, Paragraph, Section, Table

# What may differ between ranks without making their bits differ.
MAY_DIFFER = (
    *("host", "gpu_index", "gpu_uuid", "replica", "visible_gpus"),
    *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("interop_threads", "autocast nesting", "inference mode", "gradients", "dispatch modes"),
)
_VERSIONS = {"python": "Python", "torch": "torch", "cuda": "CUDA", "nccl": "NCCL", "driver": "driver"}

Environment = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """One property on every rank.

    Attributes:
        name: of the property; ``variables`` are told one by one.
        values: one a rank, in rank order; None where a rank does not name it.
    """

    name: str
    values: tuple[str | None, ...]

    @property
    def differs(self) -> bool:
        """Whether the ranks do not all say the same."""
        return len(set(self.values)) > 1

    @property
    def matters(self) -> bool:
        """Whether the difference can make bits differ."""
        return self.differs and self.name not in MAY_DIFFER


def rows(environment: Environment) -> list[Row]:
    """Every property that any rank names: those that differ and matter first, then other differences, then the rest."""
    flat = [_flat(rank) for rank in environment]
    names = dict.fromkeys(name for rank in flat for name in rank)
    found = [Row(name, tuple(rank.get(name) for rank in flat)) for name in names]
    return sorted(found, key=lambda row: (not row.matters, not row.differs))


def section(environment: Environment) -> Section:
    """Differences between ranks in a table, and what is equal on all of them in another one that is folded."""
    found = rows(environment)
    differing = [row for row in found if row.differs]
    matter = sum(row.matters for row in found)
    said = "nothing that can change bits differs between ranks"
    if matter:
        said = (
            f"{matter} {'property differs' if matter == 1 else 'properties differ'} between ranks and can change bits"
        )
    if not found:
        said = "no rank reported what it ran on"
    blocks: list[Block] = [Paragraph(said[0].upper() + said[1:] + ".")]
    if differing:
        ranks = [f"rank {rank.get('rank', number)}" for number, rank in enumerate(environment)]
        cells: list[list[str | Cell]] = [
            [Cell(row.name, note="" if row.matters else "may differ", marked=row.matters),
             *("not set" if value is None else value for value in row.values)]
            for row in differing
        ]  # fmt: skip
        blocks.append(Table(["property", *ranks], cells, "What differs between ranks", folded=not matter))
    equal = [[row.name, row.values[0] or ""] for row in found if not row.differs]
    if equal:
        blocks.append(Table(["property", "value"], equal, "The same on every rank", folded=True))
    return Section("Environment", blocks, page_only=True)


def one_line(environment: Environment) -> str:
    """Hardware and versions; ``unknown`` where no rank reported."""
    if not environment:
        return "hardware and versions unknown: no rank reported"
    gpus: dict[str, set[Any]] = {}
    for rank in environment:
        if rank.get("gpu"):
            gpus.setdefault(str(rank["gpu"]), set()).add(rank.get("gpu_uuid", rank.get("gpu_index")))
    words = [f"{len(ids)} x {name}" for name, ids in gpus.items()]
    words += _each(environment, "cpu")
    for key, name in _VERSIONS.items():
        words += [f"{name} {value}" for value in _each(environment, key)]
    return ", ".join(words) or "hardware and versions not recorded"


def made_line(document: Document) -> str:
    """Hardware, versions, date and commit."""
    words = [one_line(document.environment)] if document.environment else []
    if document.made is not None:
        made = document.made
        words += [
            f"verify {made.version}",
            *([f"commit {made.commit}"] if made.commit else []),
            made.date.replace("+00:00", " UTC"),
        ]
    return ", ".join(words)


def with_version(target: str, environment: Environment) -> str:
    """The target with its version, where ranks name one."""
    versions = _each(environment, target)
    return f"{target} {' and '.join(versions)}" if versions else target


def _each(environment: Environment, key: str) -> list[str]:
    return list(dict.fromkeys(_shown(rank[key]) for rank in environment if rank.get(key)))


def _flat(rank: Mapping[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in rank.items():
        if name == "rank":
            continue
        if isinstance(value, Mapping):
            flat |= {str(inner): _shown(given) for inner, given in value.items()}
        else:
            flat[name] = _shown(value)
    return flat


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value)
