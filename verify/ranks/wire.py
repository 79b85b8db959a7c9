"""How tasks and results travel between the controller and its ranks.

Only the two ends of a private socket pair read this; nothing that a user names is ever unpickled.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


class _Pickler(pickle.Pickler):
    """Tensors travel as their bytes: PyTorch's own reduction copies them several times over."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            return _tensor, (_bytes(obj), obj.dtype, tuple(obj.shape))
        return NotImplemented


def _bytes(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    flat: np.ndarray[Any, np.dtype[np.uint8]]
    flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return flat


def _tensor(data: np.ndarray[Any, Any], dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(data).view(dtype).view(shape)


def dumps(message: Any) -> bytes:
    """Pickles a message; tensors arrive on the CPU with the same bytes."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(message)
    return buffer.getvalue()


loads: Callable[[bytes], Any] = pickle.loads
