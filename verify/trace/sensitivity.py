"""What a change of the network's inputs changes: whether a wrong loop could have shown at all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sensitivity:
    """What a change of the network's inputs changes, tried on rank 0 at one step.

    Attributes:
        step: the first guided step, or 0.
        equal_branches: pairs of branches with the same velocity that are not meant to be equal.
        unrepeated: branches whose velocity differs when it is computed again.
        deaf: branches whose velocity is the same at another ``x_t``.
        unread: caches, as ``text: keys, layer 3``, that changed no velocity when they were changed.
        guided: whether the step is another when every branch answers as the first; None without guidance.
        sizes: the size of each step as the reference took it, seen with a network whose velocity is 1; empty where the
            reference does not step by size times velocity, or could not be run so.
        alike: pairs of branches that are equal by the target's design.
        failed: why the trial could not be made; empty if it could.
    """

    step: int = 0
    equal_branches: tuple[tuple[str, str], ...] = ()
    unrepeated: tuple[str, ...] = ()
    deaf: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    guided: bool | None = None
    sizes: tuple[float, ...] = ()
    alike: tuple[tuple[str, str], ...] = ()
    failed: str = ""
