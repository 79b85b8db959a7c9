"""A base for what watches or changes every operator while a block of code runs."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class OperatorMode(TorchDispatchMode):
    """A ``TorchDispatchMode`` that does not make PyTorch import its compiler.

    PyTorch's own imports 900 modules when it is first used, to tell the compiler to leave it alone: 20 seconds in each
    new pool of ranks on a machine of four GPUs. Nothing is compiled under these modes.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
