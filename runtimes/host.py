"""What this process may use of the machine. Reads Linux's files; elsewhere it asks Python."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


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
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:
        lines = []
    # "0::/path" is version 2; "4:cpu,cpuacct:/path" is version 1 (man 7 cgroups)
    own = {kinds: path for _, kinds, path in (line.split(":", 2) for line in lines)}
    cores = [float(os.cpu_count() or 1)]
    for folder in _with_parents(CGROUPS, own.get("", "/")):
        cores.append(_ratio(_read(folder / "cpu.max")))
    for kinds, path in own.items():
        if "cpu" in kinds.split(","):
            for folder in _with_parents(CGROUPS / "cpu", path):
                quota = _read(folder / "cpu.cfs_quota_us")
                cores.append(_ratio(f"{quota} {_read(folder / 'cpu.cfs_period_us')}"))
    return int(min(cores))


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
