"""What a bundle is beyond its model, and how long it takes to its first token.

python -m benchmarks.start_bundle BUNDLE...

Each bundle is installed into a folder of its own; then its `run` generates one token in fresh
processes, with files in the page cache, each of them checked at each start.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

STARTS = 7
MB = 1e6


@dataclass(frozen=True, slots=True)
class Found:
    """Bytes and seconds of one bundle; times are medians, but for `install_s`, which is one run."""

    format: str
    recipe: str
    model_bytes: int
    packages_bytes: int
    other_bytes: int
    install_s: float
    verify_full_s: float
    first_token_s: float
    threads: int


def measure(bundle: Path, threads: int) -> Found:
    """Install a bundle and start it."""
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    parts = {"model": 0, "wheels": 0}
    total = 0
    for entry in manifest["files"]:
        total += entry["bytes"]
        part = entry["path"].split("/")[0]
        if part in parts:
            parts[part] += entry["bytes"]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "installed"
        install_s = seconds_of([bundle / "install", "--to", target])
        run = target / "run"
        words = [run, "generate", "def f(", "--max-tokens", 1, "--json", "--threads", threads]
        seconds_of(words)
        starts = [seconds_of(words) for _ in range(STARTS)]
        full = [seconds_of([run, "verify", "--full"]) for _ in range(3)]
    return Found(
        manifest["format"],
        manifest["recipe"],
        parts["model"],
        parts["wheels"],
        total - sum(parts.values()),
        install_s,
        statistics.median(full),
        statistics.median(starts),
        threads,
    )


def seconds_of(words: list[object]) -> float:
    """Wall time of a process that must succeed."""
    started = time.perf_counter()
    subprocess.run([str(word) for word in words], check=True, capture_output=True)
    return time.perf_counter() - started


def _table(rows: list[Found]) -> str:
    columns: list[tuple[str, Callable[[Found], str]]] = [
        ("bundle", lambda r: f"{r.format} {r.recipe}"),
        ("model", lambda r: f"{r.model_bytes / MB:.1f} MB"),
        ("packages", lambda r: f"{r.packages_bytes / MB:.1f} MB"),
        ("all else", lambda r: f"{r.other_bytes / MB:.1f} MB"),
        ("install", lambda r: f"{r.install_s:.1f} s"),
        ("verify --full", lambda r: f"{r.verify_full_s:.2f} s"),
        ("start to first token", lambda r: f"{r.first_token_s:.2f} s"),
    ]
    lines = [[name for name, _ in columns], ["---"] * len(columns)]
    lines += [[show(row) for _, show in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Measure each bundle and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [measure(bundle.resolve(), arguments.threads) for bundle in arguments.bundles]
    print(json.dumps([asdict(row) for row in rows], indent=2) if arguments.json else _table(rows))


if __name__ == "__main__":
    main()
