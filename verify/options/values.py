"""What the values of some options are made of, and how a reproducing command writes them."""

from __future__ import annotations

from typing import Any

from verify.errors import BadInput


def names(text: str) -> tuple[str, ...]:
    """``a,b`` as two names."""
    return tuple(text.split(","))


def ids(text: str) -> tuple[int, ...]:
    """``1,2`` as two numbers.

    Raises:
        BadInput: it holds something else.
    """
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise BadInput.of("--prompt-ids", text, "whole numbers, separated by commas", "correct it") from None


def listed(ids: tuple[int, ...] | None) -> str | None:
    """Two numbers as ``1,2``."""
    return None if ids is None else ",".join(map(str, ids))


def named_ranks(job: Any) -> Any:
    """None where a set of requests may need other numbers of ranks, unless the user named one."""
    return job.ranks if getattr(job, "request_set", "one") == "one" else job.world_size
