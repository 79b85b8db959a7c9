"""Every setting can be seen to change and be put back; each has its reason; reading never raises and is cheap."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from verify.environment import arithmetic
from verify.environment.properties import BY_NAME, MIXED, PROPERTIES, Kind, read, said
from verify.environment.watch import AFTER, BEFORE, OBSERVE, THREAD, VELOCITY, Held, SettingsWatch, current, kind_of

# PyTorch's stubs do not know the parts of this backend.
MKLDNN: Any = torch.backends.mkldnn


@pytest.fixture(autouse=True)
def held() -> Iterator[Held]:
    kept = Held()
    yield kept
    kept.restore()


def test_each_has_a_reason() -> None:
    assert len(BY_NAME) == len(PROPERTIES)
    assert min(len(setting.reason) for setting in PROPERTIES) > 14


# What a loop does, and the settings that it changes.
CHANGES: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "threads": (lambda: torch.set_num_threads(torch.get_num_threads() + 1), {"threads"}),
    "default dtype": (lambda: torch.set_default_dtype(torch.bfloat16), {"default_dtype"}),
    "default device": (lambda: torch.set_default_device("meta"), {"default_device"}),
    "deterministic": (
        lambda: torch.use_deterministic_algorithms(not torch.are_deterministic_algorithms_enabled()),
        {"deterministic_debug_mode"},
    ),
    "older precision": (
        lambda: torch.set_float32_matmul_precision("medium"),
        {"float32_matmul_precision", "backends.cuda.matmul.fp32_precision", "backends.mkldnn.matmul.fp32_precision"},
    ),
    "newer precision": (
        lambda: setattr(MKLDNN.matmul, "fp32_precision", "bf16"),
        {"float32_matmul_precision", "backends.mkldnn.matmul.fp32_precision"},
    ),
    "precision of all": (
        lambda: setattr(torch.backends, "fp32_precision", "tf32"),
        {"backends.fp32_precision", "backends.cuda.fp32_precision", "backends.mkldnn.conv.fp32_precision"},
    ),
    "oneDNN": (lambda: setattr(torch.backends.mkldnn, "enabled", False), {"backends.mkldnn.enabled"}),
    "attention": (lambda: torch.backends.cuda.enable_flash_sdp(False), {"flash attention"}),
    "reduction": (
        lambda: setattr(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
        {"backends.cuda.matmul.allow_bf16_reduced_precision_reduction"},
    ),
    "autocast": (
        lambda: torch.autocast("cpu", torch.bfloat16).__enter__(),
        {"autocast on cpu", "autocast nesting"},
    ),
    "autocast dtype": (lambda: torch.set_autocast_dtype("cuda", torch.bfloat16), {"autocast dtype on cuda"}),
    "gradients": (lambda: torch.set_grad_enabled(not torch.is_grad_enabled()), {"gradients"}),
    "subnormal numbers": (lambda: torch.set_flush_denormal(True), {"flush_denormal"}),
    "rounding": (lambda: ctypes.CDLL(None).fesetround(0xC00), {"rounding"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_and_put_back(name: str, held: Held) -> None:
    change, expected = CHANGES[name]
    before = current()
    change()
    now = current()
    held.restore()
    after = current()
    different = {setting for setting in now if now[setting] != before[setting]}
    assert expected <= different
    assert after == before


@pytest.mark.parametrize(("mode", "name"), [(0x400, "down"), (0x800, "up"), (0xC00, "towards zero"), (0, "to nearest")])
def test_rounding_is_seen_by_computing(mode: int, name: str) -> None:
    library = ctypes.CDLL(None)
    library.fesetround(mode)
    seen, pool = arithmetic.rounding(), arithmetic.threads_flush_or_round()
    library.fesetround(0)
    assert seen == name
    assert pool in ("one thread", "as usual") or mode


def test_threads_of_large_operators_are_seen() -> None:
    torch.set_num_threads(2)
    assert arithmetic.threads_flush_or_round() == "as usual"
    torch.set_flush_denormal(True)
    assert arithmetic.threads_flush_or_round() != "as usual"


def test_mixed_interfaces_do_not_raise() -> None:
    torch.set_float32_matmul_precision("highest")
    MKLDNN.matmul.fp32_precision = "bf16"
    with pytest.raises(RuntimeError, match="precision"):
        torch.get_float32_matmul_precision()
    assert read(BY_NAME["float32_matmul_precision"]) == MIXED
    watch = SettingsWatch()
    assert watch.seen().before["backends.mkldnn.matmul.fp32_precision"] == "bf16"


def test_inference_mode_is_left() -> None:
    kept = Held()
    guard = torch._C._InferenceMode(True)
    guard.__enter__()
    assert current()["inference mode"]
    kept.restore()
    assert not current()["inference mode"]
    assert torch.ones(1).add_(1).is_inference() is False


def test_values_are_json() -> None:
    assert said(torch.device("cuda", 1)) == "cuda", "each rank has its own number"
    assert said(torch.float16) == "float16"
    assert all(value is None or isinstance(value, (bool, int, str)) for value in current().values())


def test_a_look_costs_little() -> None:
    watch = SettingsWatch()
    began = time.process_time()
    for _ in range(500):
        watch.look(0, VELOCITY)
        watch.look(0, OBSERVE)
    # 20 and 50 microseconds; both together on a busy machine.
    assert (time.process_time() - began) / 500 < 500e-6
    assert len(watch.seen().samples) == 1


def test_looks_are_kept_and_samples_only_where_they_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = SettingsWatch()
    for step in range(4):
        if step == 2:
            torch.set_default_dtype(torch.float64)
        watch.look(step, VELOCITY)
        torch.set_default_dtype(torch.float32)
        if step == 3:
            monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
        watch.look(step, OBSERVE)
    watch.look(4, AFTER)
    seen = watch.seen()
    assert [look.sample for look in seen.looks] == [0, 0, 0, 0, 0, 1, 0, 0, 2, 2]
    assert (seen.looks[0].step, seen.looks[0].moment) == (-1, BEFORE)
    assert [sample["default_dtype"] for sample in seen.samples] == ["float32", "float64", "float32"]
    assert seen.samples[2]["MKL_CBWR"] == "COMPATIBLE"


def test_another_thread_is_told() -> None:
    watch = SettingsWatch()
    other = threading.Thread(target=watch.look, args=(0, VELOCITY))
    other.start()
    other.join()
    assert [sample[THREAD] for sample in watch.seen().samples] == ["the task's", "another"]


def test_variables_and_folder_are_put_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    import os

    monkeypatch.setenv("REMOVED", "1")
    kept, folder = Held(), os.getcwd()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADDED", "1")
    monkeypatch.delenv("REMOVED")
    kept.restore()
    assert (os.environ.get("ADDED"), os.environ["REMOVED"], os.getcwd()) == (None, "1", folder)


def test_what_is_adopted_stays() -> None:
    kept = Held()
    torch.set_default_dtype(torch.float64)
    kept.adopt()
    torch.set_default_dtype(torch.float16)
    kept.restore()
    assert torch.get_default_dtype() is torch.float64


def test_kinds() -> None:
    assert kind_of("MKL_CBWR") is Kind.ALIKE
    assert kind_of(THREAD) is Kind.SHOWN
    assert kind_of("rounding") is Kind.LEFT_ALONE
