"""What a target offers: whose loops are under test, and the denoiser they run with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from verify.protocols import Denoiser, Loop
from verify.request import DenoiseRequest

REFERENCE = "reference"


@dataclass(frozen=True)
class ModelOptions:
    """How the network under the loops is made.

    Attributes:
        preset: the model's size; unused when a checkpoint names its own.
        dtype: the network's dtype, as torch spells it.
        autocast: whether the loop runs under autocast to that dtype.
        checkpoint: a folder in BAGEL-7B-MoT's layout; None for seeded weights.
    """

    preset: str = "tiny"
    dtype: str = "bfloat16"
    autocast: bool = False
    checkpoint: str | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """The network's dtype."""
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype


@dataclass(frozen=True)
class Prepared:
    """All that a loop needs on one rank, ready before its clock starts.

    Attributes:
        denoiser: evaluates the request's branches.
        x_0: this rank's initial latent on its device. Rank 0's is the request's noise; the others' must differ from
            it, or a loop that forgets to share it would look right.
        caches: the frozen tensors of each branch's context, by branch and then by name. A target that cannot show
            them leaves it empty, and the check on them says unknown.
        notes: what the reader of a report must know: parts that were substituted, say.
    """

    denoiser: Denoiser
    x_0: Float[Tensor, "tokens channels"]
    caches: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Target(Protocol):
    """Whose loops are under test.

    Attributes:
        name: as given to ``--target``.
        loops: its loops by name, ``reference`` among them: the one that runs in a single process.
        expects: for each loop the version (``broadcast``, ``local``, ``round_robin``) whose collectives and branch
            evaluations it is held to, or ``any``.
    """

    name: str
    loops: Mapping[str, Loop]
    expects: Mapping[str, str]

    def prepare(self, request: DenoiseRequest, options: ModelOptions, rank: int, device: torch.device) -> Prepared:
        """Builds the denoiser with weights that are equal on every rank. Called once for a request on each rank.

        Raises:
            BadInput: the request or the options cannot be served.
        """
        ...
