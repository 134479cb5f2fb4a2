"""How many threads: from files laid out as Linux has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtimes.host import limits


def test_threads_are_physical_cores_within_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cpu, core in enumerate([0, 1, 0, 1]):
        folder = tmp_path / "cpu" / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text("0\n")
        (folder / "core_id").write_text(f"{core}\n")
    group = tmp_path / "cgroup"
    (group / "box" / "inner").mkdir(parents=True)
    (tmp_path / "own").write_text("0::/box/inner\n")
    monkeypatch.setattr(limits, "CPUS", tmp_path / "cpu")
    monkeypatch.setattr(limits, "CGROUPS", group)
    monkeypatch.setattr(limits, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(limits.os, "cpu_count", lambda: 4)
    assert limits.default_threads() == 2
    (group / "box" / "inner" / "cpu.max").write_text("max 100000\n")
    assert limits.default_threads() == 2
    (group / "box" / "cpu.max").write_text("150000 100000\n")  # a group above counts as well
    assert limits.default_threads() == 1
    (group / "box" / "cpu.max").write_text("5000 100000\n")
    assert limits.default_threads() == 1


def test_threads_where_linux_hides_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CPUS", "CGROUPS", "OWN_CGROUP"):
        monkeypatch.setattr(limits, name, tmp_path / "absent")
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda pid: {0, 2, 5}, raising=False)
    monkeypatch.setattr(limits.os, "cpu_count", lambda: 8)
    assert limits.default_threads() == 3


def test_memory_is_what_the_cgroup_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 8000 kB\nMemFree: 1 kB\nMemAvailable: 6000 kB\n")
    group = tmp_path / "cgroup"
    inner, older = group / "box" / "inner", group / "memory" / "old"
    for folder in (inner, older):
        folder.mkdir(parents=True)
    (tmp_path / "own").write_text("4:cpuset,memory:/old\n0::/box/inner\n")
    monkeypatch.setattr(limits, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(limits, "CGROUPS", group)
    monkeypatch.setattr(limits, "OWN_CGROUP", tmp_path / "own")
    assert limits.machine_memory_bytes() == (8000 * 1024, 6000 * 1024)
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("1\n")
    assert limits.machine_memory_bytes() == (8000 * 1024, 6000 * 1024)
    (group / "box" / "memory.max").write_text("5000000\n")  # a group above counts as well
    (group / "box" / "memory.current").write_text("2000000\n")
    (group / "box" / "memory.stat").write_text("anon 7\ninactive_file 500000\n")
    assert limits.machine_memory_bytes() == (5000000, 3500000)
    (older / "memory.limit_in_bytes").write_text("1000000\n")  # version 1
    (older / "memory.usage_in_bytes").write_text("1200000\n")
    assert limits.machine_memory_bytes() == (1000000, 0)
    monkeypatch.setattr(limits, "MEMORY", tmp_path / "absent")
    assert limits.machine_memory_bytes() == (0, 0)
