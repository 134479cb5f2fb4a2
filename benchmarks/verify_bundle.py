"""How fast a bundle is verified, and how soon after a cold start it answers.

python -m benchmarks.verify_bundle BUNDLE
python -m benchmarks.verify_bundle --model DIR --artifact DIR --recipe Q4_K_M --like BUNDLE

The second packs a GGUF artifact without measuring it, with the wheels and the licence of another
bundle, for a model whose quality gate takes too long to wait for. The bundle is installed, then in
turns, with the files in the page cache and without them:

    verify   `run verify --full`, a process
    read     the same files read, as many at a time as verify hashes
    hash     SHA-256 of as many bytes, from memory: a thread for the largest file, the others' share
             on the rest; a file cannot be split under SHA-256
    sha256sum   the same files, by coreutils, one process for each core
    first token   `run generate` of one token, a process

Files are put out of the page cache one by one (POSIX_FADV_DONTNEED), and it is looked at whether
they are.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.start_bundle import seconds_of
from packager.bundle.pack import pack
from packager.checkpoint.reader import read_checkpoint
from packager.core.atomic import file_entry
from packager.core.records import Artifact
from packager.formats.gguf import format as gguf

BLOCK_BYTES = 1 << 20
LOOKED_AT = 512  # pages of a file that are asked for
MB = 1e6


def pack_unmeasured(model: Path, artifact: Path, recipe: str, like: Path, out: Path) -> None:
    """A bundle of a GGUF artifact with nothing proved or measured: for timing, not for use."""
    checkpoint = read_checkpoint(model, hash_files=False)
    files = tuple(file_entry(artifact, file.name) for file in artifact.iterdir())
    pack(
        Artifact(gguf.variant(recipe), "0" * 64, artifact, files, {}),
        checkpoint,
        out,
        wheels=sorted((like / "wheels").glob("*.whl")),
        evidence={},
        licence_file=next((like / "licence" / "model").iterdir()),
    )


def drop(files: Sequence[Path]) -> None:
    """Put files out of the page cache; SystemExit where they stay."""
    os.sync()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    share = cached_share(max(files, key=lambda file: file.stat().st_size))
    if share > 0.01:
        raise SystemExit(f"{share:.0%} of the largest file stays in the page cache")


def cached_share(file: Path) -> float:
    """How much of a file is in the page cache, by asking for some of it without waiting."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        size, found = os.fstat(descriptor).st_size, 0
        for i in range(LOOKED_AT):
            try:
                os.preadv(descriptor, [bytearray(1)], i * size // LOOKED_AT, os.RWF_NOWAIT)
                found += 1
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
        return found / LOOKED_AT
    finally:
        os.close(descriptor)


def read(file: Path) -> None:
    """Read a file and do nothing with it."""
    block = bytearray(BLOCK_BYTES)
    with file.open("rb", buffering=0) as stream:
        while stream.readinto(block):
            pass


def hash_memory(size: int) -> None:
    """SHA-256 of `size` bytes that are in the processor's caches."""
    block, digest = bytes(BLOCK_BYTES), hashlib.sha256()
    for _ in range(size // BLOCK_BYTES):
        digest.update(block)
    digest.update(block[: size % BLOCK_BYTES])


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def largest_first(files: Sequence[Path]) -> list[Path]:
    """In the order in which verify takes them."""
    return sorted(files, key=lambda file: -file.stat().st_size)


def runners(target: Path, files: Sequence[Path], threads: int) -> dict[str, Callable[[], object]]:
    """What is timed, by its name."""
    cores = len(os.sched_getaffinity(0))
    sizes = [file.stat().st_size for file in files]

    def in_threads(work: Callable[[object], None], items: Sequence[object]) -> None:
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(work, items))

    names = b"\0".join(os.fsencode(file) for file in files)
    coreutils = ["xargs", "-0", "-P", str(cores), "-n", "1", "sha256sum"]
    run = target / "run"
    words = [run, "generate", "def f(", "--max-tokens", 1, "--json", "--threads", threads]
    return {
        "verify": lambda: seconds_of([run, "verify", "--full"]),
        "read": lambda: in_threads(read, files),
        "hash": lambda: in_threads(hash_memory, sizes),
        "sha256sum": lambda: subprocess.run(
            coreutils, input=names, check=True, stdout=subprocess.DEVNULL
        ),
        "first token": lambda: seconds_of(words),
    }


def measure(bundle: Path, threads: int, rounds: int) -> dict[str, object]:
    """Install the bundle beside itself and time it; ratios first."""
    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        target = Path(folder) / "installed"
        install_s = seconds_of([bundle / "install", "--to", target])
        version = (target / "current").resolve()
        parts = [version / "bundle", version / "packages"]
        files = largest_first([f for part in parts for f in part.rglob("*") if f.is_file()])
        sizes = [file.stat().st_size for file in files]
        times = alternate(runners(target, files, threads), files, rounds)
    warm, cold = (
        {name: statistics.median(found) for name, found in times[state].items()}
        for state in ("warm", "cold")
    )
    return {
        "verify_over_read_cold": cold["verify"] / cold["read"],
        "verify_over_hash_warm": warm["verify"] / warm["hash"],
        "verify_over_sha256sum_warm": warm["verify"] / warm["sha256sum"],
        "first_token_cold_over_read": cold["first token"] / cold["read"],
        "first_token_cold_over_warm": cold["first token"] / warm["first token"],
        "files": len(files),
        "bytes": sum(sizes),
        "largest_bytes": sizes[0],
        "threads": threads,
        "install_s": install_s,
        "seconds": times,
    }


def alternate(
    timed: dict[str, Callable[[], object]], files: Sequence[Path], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each, in turns: without the files in the page cache, and with them."""
    found: dict[str, dict[str, list[float]]] = {"cold": {}, "warm": {}}
    for _ in range(rounds):
        for name, work in timed.items():
            if name != "hash":  # it reads no files
                drop(files)
                found["cold"].setdefault(name, []).append(seconds(work))
            for file in files:
                read(file)
            found["warm"].setdefault(name, []).append(seconds(work))
    return found


def table(result: dict[str, object]) -> str:
    """For a reader."""
    total_mb, times = result["bytes"] / MB, result["seconds"]
    lines = [f"{key}: {result[key]:.2f}" for key in result if "_over_" in key]
    lines += [f"{result['files']} files, {total_mb:.1f} MB; install: {result['install_s']:.1f} s"]
    lines += ["", "| | not in the page cache, s | MB/s | in it, s | MB/s |"]
    lines += ["|---|---|---|---|---|"]
    for name in times["warm"]:
        cells = [name]
        for state in ("cold", "warm"):
            found = times[state].get(name, [])
            cells.append(", ".join(f"{value:.2f}" for value in found))
            cells.append(f"{total_mb / statistics.median(found):.0f}" if found else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """A table, then JSON where it is wanted."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--model", type=Path, help="the checkpoint of --artifact")
    parser.add_argument("--artifact", type=Path, help="what `starpack convert` has written")
    parser.add_argument("--recipe", default="Q4_K_M")
    parser.add_argument("--like", type=Path, help="a bundle with the wheels and a licence")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    made = (arguments.model, arguments.artifact, arguments.like)
    if (arguments.bundle is None) == (None in made):
        parser.error("give a bundle, or --model, --artifact and --like")
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle
        if bundle is None:
            bundle = Path(folder) / "bundle"
            model, artifact, like = made
            pack_unmeasured(model, artifact, arguments.recipe, like, bundle)
        result = measure(bundle.resolve(), arguments.threads, arguments.rounds)
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
