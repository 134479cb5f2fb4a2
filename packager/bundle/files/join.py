"""Joins the volumes of an archive. Needs Python 3.8 or newer and nothing else.

    python3 join.py NAME.tar.index.json [FOLDER ...]

Looks for the volumes beside the index and in every FOLDER, such as the media that they came on.
Checks each by its hash, names those that are damaged or missing, and keeps what it has: run it
again with the others, and it goes on there. NAME.tar appears, beside the index or as `--out` says,
when it is whole.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

BLOCK_BYTES = 1 << 20
MAX_INDEX_BYTES = 1 << 20
DAMAGED = 5  # exit code, as everywhere in starpack


class Volume(NamedTuple):
    """One part of the archive."""

    name: str
    bytes: int
    sha256: str


class Damaged(Exception):
    """The index is none, or volumes are damaged or missing: `problems` has a line for each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def read_index(file: Path) -> list[Volume]:
    """The volumes in their order; raises Damaged, OSError."""
    try:
        if file.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError("it is too large")
        value = json.loads(file.read_bytes())
        volumes = [Volume(v["name"], v["bytes"], v["sha256"]) for v in value["volumes"]]
        for volume in volumes:
            if Path(volume.name).name != volume.name or not volume.name or volume.bytes < 0:
                raise ValueError(f"a volume named {volume.name!r}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise Damaged(f"not an index of volumes: {file}: {error}") from None
    return volumes


def join(
    volumes: list[Volume],
    folders: list[Path],
    out: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the archive `out` from its volumes; go on where an earlier call has stopped.

    Raises Damaged where volumes are damaged or missing, once all that are there have been checked.
    """
    total, done = sum(volume.bytes for volume in volumes), 0
    partial = out.with_name(out.name + ".partial")
    problems: list[str] = []
    with open(partial, "r+b" if partial.exists() else "w+b") as target:
        left = _already_there(volumes, target)
        done = target.tell()
        for volume in left:
            problem = _append(volume, folders, None if problems else target)
            if problem:
                problems.append(problem)
            done += volume.bytes
            progress(done, total)
        if not problems:
            target.truncate()
            target.flush()
            os.fsync(target.fileno())
    if problems:
        raise Damaged(*problems)
    os.replace(partial, out)


def _already_there(volumes: list[Volume], target: BinaryIO) -> list[Volume]:
    """The volumes that are still to be added; `target` stands where they belong."""
    for count, volume in enumerate(volumes):
        start = target.tell()
        digest, left = hashlib.sha256(), volume.bytes
        while left and (block := target.read(min(left, BLOCK_BYTES))):
            digest.update(block)
            left -= len(block)
        if left or digest.hexdigest() != volume.sha256:
            target.seek(start)
            target.truncate()
            return volumes[count:]
    return []


def _append(volume: Volume, folders: list[Path], target: BinaryIO | None) -> str | None:
    """Add a volume, or only check it; returns what is wrong with it, if anything.

    Where several folders have it, the first that is whole is taken.
    """
    problem = f"missing: {volume.name}"
    for folder in folders:
        file = folder / volume.name
        if not file.is_file():
            continue
        start = target.tell() if target else 0
        digest, size = hashlib.sha256(), 0
        try:
            with open(file, "rb") as stream:
                while size <= volume.bytes and (block := stream.read(BLOCK_BYTES)):
                    digest.update(block)
                    size += len(block)
                    if target:
                        target.write(block)
        except OSError as error:
            problem = f"damaged: {file}: {error.strerror}"
        else:
            if (size, digest.hexdigest()) == (volume.bytes, volume.sha256):
                return None
            problem = f"damaged: {file}: {size} bytes, of {volume.bytes}; its SHA-256 is wrong"
        if target:
            target.seek(start)
            target.truncate()
    return problem


def main() -> int:
    """Join, and say what to do next; returns the exit code."""
    parser = argparse.ArgumentParser(description="Join the volumes of an archive.")
    parser.add_argument("index", type=Path, help="NAME.tar.index.json")
    parser.add_argument("folders", type=Path, nargs="*", help="where volumes are, beside there")
    parser.add_argument("--out", type=Path, help="the archive (NAME.tar, beside the index)")
    arguments = parser.parse_args()
    index: Path = arguments.index
    out = arguments.out or index.with_name(index.name.replace(".index.json", ""))
    try:
        join(read_index(index), [index.parent, *arguments.folders], out)
    except (Damaged, OSError) as error:
        print(f"join: {error}", file=sys.stderr)
        print("  remedy: copy these volumes again, and run this again", file=sys.stderr)
        return DAMAGED if isinstance(error, Damaged) else 1
    print(f"whole: {out}\nnext: tar -xf {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
