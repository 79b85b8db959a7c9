"""What is replaced to run vllm-omni on a GPU without vllm's compiled extension, and what is left alone."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from verify.targets.vllm_omni.stand_ins import _rotary_embedding

KERNEL = "vllm.vllm_flash_attn.layers.rotary"
CUDA = torch.device("cuda", 0)


class OnlyTheKernel:
    """As in 0.18.0 and 0.22.0: on CUDA the kernel or nothing."""

    def __init__(self, is_neox_style: bool = False) -> None: ...

    def __call__(self, *arguments: Any) -> Any:
        return self.forward_cuda(*arguments)

    def forward_cuda(self, *arguments: Any) -> Any:
        raise ImportError(f"No module named {KERNEL!r}")

    def forward_native(self, *arguments: Any) -> str:
        return "native"


class FallsBack(OnlyTheKernel):
    """As in 0.30.0."""

    def forward_cuda(self, *arguments: Any) -> Any:
        return "own way"


def rope_with(monkeypatch: pytest.MonkeyPatch, base: type[OnlyTheKernel], kernel: bool) -> type[OnlyTheKernel]:
    """A class of its own for each test, where the target looks for upstream's."""
    rope = type("RotaryEmbedding", (base,), {})
    package = ModuleType("vllm_omni.diffusion.layers.rope")
    vars(package)["RotaryEmbedding"] = rope
    monkeypatch.setitem(sys.modules, package.__name__, package)
    for name in ("vllm", "vllm.vllm_flash_attn", "vllm.vllm_flash_attn.layers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, KERNEL, ModuleType(KERNEL) if kernel else None)
    return rope


def test_a_rotary_embedding_that_knows_only_the_missing_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    rope = rope_with(monkeypatch, OnlyTheKernel, kernel=False)
    (said,) = _rotary_embedding(CUDA)
    assert said.startswith("rotary embedding's kernel (vllm.vllm_flash_attn not compiled)")
    assert rope()() == "native"


def test_one_that_has_a_way_of_its_own_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rope = rope_with(monkeypatch, FallsBack, kernel=False)
    assert _rotary_embedding(CUDA) == []
    assert rope()() == "own way"


@pytest.mark.parametrize(("device", "kernel"), [(CUDA, True), (torch.device("cpu"), False)])
def test_nothing_is_replaced_where_the_kernel_is_there_or_not_asked_for(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, kernel: bool
) -> None:
    rope = rope_with(monkeypatch, OnlyTheKernel, kernel)
    assert _rotary_embedding(device) == []
    with pytest.raises(ImportError):
        rope()()
