"""Limits of control groups, of both versions, in trees of files as the kernel shows them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from verify.limits import cpu_limit, memory_left, memory_limit, usable_cores

GIB = 1 << 30


def tree(root: Path, memberships: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": memberships, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def version_2(root: Path, cpu: str = "50000 100000", memory: str = str(3 * GIB)) -> Path:
    group = "sys/fs/cgroup/job/step"
    return tree(root, "0::/job/step\n", {
        f"{group}/cpu.max": f"{cpu}\n", "sys/fs/cgroup/job/cpu.max": "400000 100000\n",
        f"{group}/memory.max": "max\n", f"{group}/memory.current": f"{GIB}\n",
        "sys/fs/cgroup/job/memory.max": f"{memory}\n", "sys/fs/cgroup/job/memory.current": f"{2 * GIB}\n",
        "sys/fs/cgroup/job/memory.stat": f"anon 5\ninactive_file {GIB // 2}\n",
    })  # fmt: skip


def version_1(root: Path) -> Path:
    return tree(root, "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n", {
        # A container sees its own group at the mount, under the host's path.
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * GIB // 2}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/memory.stat": f"cache 7\ntotal_inactive_file {GIB // 4}\n",
    })  # fmt: skip


def test_version_2(tmp_path: Path) -> None:
    root = version_2(tmp_path)
    assert cpu_limit(root) == 0.5
    assert usable_cores(root) == 1
    assert (memory_limit(root), memory_left(root)) == (3 * GIB, 3 * GIB - 2 * GIB + GIB // 2)


def test_version_1(tmp_path: Path) -> None:
    root = version_1(tmp_path)
    assert cpu_limit(root) == 1.5
    assert usable_cores(root) == 1
    assert (memory_limit(root), memory_left(root)) == (3 * GIB // 2, GIB // 2 + GIB // 4)


@pytest.mark.parametrize("cpu", ["max 100000", ""])
def test_no_limit(tmp_path: Path, cpu: str) -> None:
    root = version_2(tmp_path, cpu, "max")
    (root / "sys/fs/cgroup/job/cpu.max").write_text("max 100000\n")
    assert cpu_limit(root) is None
    assert usable_cores(root) == len(os.sched_getaffinity(0))
    assert (memory_limit(root), memory_left(root)) == (None, None)


def test_nothing_to_be_read(tmp_path: Path) -> None:
    assert (cpu_limit(tmp_path), memory_limit(tmp_path)) == (None, None)
    none = tree(tmp_path, "4:memory:/\n", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                                           "sys/fs/cgroup/memory/memory.usage_in_bytes": "5\n"})  # fmt: skip
    assert memory_limit(none) is None
