"""What a bundle's packages are for: a version of Python, and a kind of Linux machine."""

from __future__ import annotations

import platform
import re
import sys
from dataclasses import dataclass

from packager.core.errors import UsageError

# Specified (PEP 600): the older names of manylinux tags, by the minor version of glibc 2.
_OLDER_NAMES = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_OLDEST_GLIBC = 5


@dataclass(frozen=True, slots=True)
class Target:
    """Compiled packages fit one minor version of Python and one kind of processor.

    glibc: the minor version of glibc 2 that the machine has at least; None: this machine's own.
    """

    python: str
    machine: str
    glibc: int | None = None

    @property
    def platforms(self) -> tuple[str, ...]:
        """The tags of wheels that fit, newest first; none where that is pip's to find out."""
        if self.glibc is None:
            return ()
        tags = []
        for minor in range(self.glibc, _OLDEST_GLIBC - 1, -1):
            tags.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in _OLDER_NAMES:
                tags.append(f"{_OLDER_NAMES[minor]}_{self.machine}")
        return tuple(tags)

    @property
    def is_here(self) -> bool:
        """Whether what is measured here is, byte for byte, what runs there."""
        return self == this_machine()


def this_machine() -> Target:
    """The machine and the Python that this runs on."""
    return Target("{}.{}".format(*sys.version_info), platform.machine())


def read_target(platform_tag: str | None, python: str | None) -> Target:
    """The target of `--target manylinux_2_28_x86_64 --target-python 3.12`; raises UsageError."""
    here = this_machine()
    if python is not None and not re.fullmatch(r"3\.\d{1,2}", python):
        raise UsageError(f"a Python {python!r}", expected="its minor version, such as 3.12")
    if platform_tag is None:
        return Target(python or here.python, here.machine)
    found = re.fullmatch(r"manylinux_2_(\d{1,2})_([a-z0-9_]+)", platform_tag)
    if not found:
        raise UsageError(
            f"a target {platform_tag!r}",
            expected="manylinux_2_MINOR_MACHINE with the target's version of glibc, which "
            "`ldd --version` shows there: manylinux_2_28_x86_64",
        )
    return Target(python or here.python, found[2], int(found[1]))
