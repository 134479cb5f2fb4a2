"""What this process may use of the machine. Reads Linux's files; elsewhere it asks Python."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
MEMORY = Path("/proc/meminfo")


def default_threads() -> int:
    """Physical cores that this process may run on, no more than its cgroups' CPU quota; >= 1.

    Physical, because two threads of one core share the units that matrix products keep busy.
    """
    return max(1, min(_physical_cores(), _quota_cores()))


def resident_bytes(process: int | str = "self") -> int:
    """Memory of a process that is in RAM now, mapped files included; 0 where unknown, or gone."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_resident_bytes() -> int:
    """The most that resident_bytes has been; 0 where unknown.

    Not what getrusage says: that begins with what the parent held when it started this process.
    """
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def machine_memory_bytes() -> tuple[int, int]:
    """The memory that this process may use at all, and what of it is available now; 0 if unknown.

    MemTotal and MemAvailable (man 5 proc), no more than its cgroups allow. Of what a cgroup uses,
    files that were not read lately are given up first and count as available, as in Kubernetes'
    working set.
    """
    found = dict(re.findall(r"(\w+):\s*(\d+) kB", _read(MEMORY)))
    total, available = (int(found.get(name, 0)) * 1024 for name in ("MemTotal", "MemAvailable"))
    for limit, used, idle in _memory_groups():
        total, available = min(total, limit), min(available, limit - used + idle)
    return total, max(0, available)


def library_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each shared library in `folder`, by file name: which build of an engine it is."""
    hashes = {}
    for file in sorted(folder.glob("*.so*")):
        with open(file, "rb") as stream:
            hashes[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes


def _physical_cores() -> int:
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return os.cpu_count() or 1
    return len({_core_of(cpu) for cpu in os.sched_getaffinity(0)})


def _core_of(cpu: int) -> tuple[str, ...]:
    """A name for the physical core of a logical CPU: (package, core), or the CPU's own number."""
    topology = CPUS / f"cpu{cpu}" / "topology"
    try:
        return tuple((topology / n).read_text() for n in ("physical_package_id", "core_id"))
    except OSError:  # some containers hide it
        return (str(cpu),)


def _quota_cores() -> int:
    """Whole cores of CPU time in the strictest quota of this cgroup and those above it."""
    own = _own_groups()
    cores = [float(os.cpu_count() or 1)]
    for folder in _with_parents(CGROUPS, own.get("", "/")):
        cores.append(_ratio(_read(folder / "cpu.max")))
    for kinds, path in own.items():
        if "cpu" in kinds.split(","):
            for folder in _with_parents(CGROUPS / "cpu", path):
                quota = _read(folder / "cpu.cfs_quota_us")
                cores.append(_ratio(f"{quota} {_read(folder / 'cpu.cfs_period_us')}"))
    return int(min(cores))


def _memory_groups() -> Iterator[tuple[int, int, int]]:
    """(limit, used, idle files) in bytes of each cgroup of this process that has a limit."""
    own = _own_groups()
    places = [(folder, "memory.max", "memory.current", "inactive_file")
              for folder in _with_parents(CGROUPS, own.get("", "/"))]  # fmt: skip
    for kinds, path in own.items():
        if "memory" in kinds.split(","):
            places += [
                (folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                for folder in _with_parents(CGROUPS / "memory", path)
            ]
    for folder, limit, used, idle in places:
        given, taken = _read(folder / limit), _read(folder / used)
        if given.isdecimal() and taken.isdecimal():  # not "max"
            found = re.search(rf"^{idle} (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
            yield int(given), int(taken), int(found[1]) if found else 0


def _own_groups() -> dict[str, str]:
    """The path of this process's cgroup by its controllers; "" is version 2's (man 7 cgroups)."""
    # "0::/path" is version 2; "4:cpu,cpuacct:/path" is version 1
    lines = _read(OWN_CGROUP).splitlines()
    return {kinds: path for _, kinds, path in (line.split(":", 2) for line in lines)}


def _with_parents(root: Path, path: str) -> list[Path]:
    below = root / path.lstrip("/")
    return [below, *(parent for parent in below.parents if parent.is_relative_to(root))]


def _ratio(text: str) -> float:
    """Cores of "QUOTA PERIOD"; infinite where there is no quota ("max", -1, or no such file)."""
    try:
        quota, period = map(float, text.split())
    except ValueError:
        return float("inf")
    return quota / period if quota > 0 and period > 0 else float("inf")


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
