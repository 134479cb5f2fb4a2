"""`make kills`: kill each command at random, and look at what is left.

    python -m tests.support.kills --count 1000 [--verbs install,upgrade] [--keep FILE] [--json]

Half of the kills come at a random moment of the time that a command takes, half before a random
one of its operations on files. After each, what has a final name must be whole; now and then the
command is run again to its end, which must give what a run gives that was never killed. FILE keeps
the count: a run that was stopped goes on, until there are so many in all. Exit code 1 where
something did not hold; its folder is kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from tests.support.kills.mortal import NEVER, Failed
from tests.support.kills.verbs import VERBS, Bad, Verb

RERUN = 0.4  # guessed: how often a kill is followed by a rerun; the others by one more kill
LATE = 1.1  # guessed: a tenth of the moments lies after the end, since times vary
PROGRESS_S = 5


@dataclass
class Figures:
    """finished: ended before the kill came. bad: what did not hold, in words."""

    verb: str
    kills: int = 0
    finished: int = 0
    reruns: int = 0
    seconds: float = 0.0
    bad: list[str] = field(default_factory=list)


class Run:
    """Kills one command again and again."""

    def __init__(self, name: str, seed: int, figures: Figures, base: Path) -> None:
        self.name, self.seed, self.figures, self.base = name, seed, figures, base
        self.verb: Verb | None = None
        self.seconds, self.operations = 0.0, 0

    def step(self) -> None:
        """One kill, and what must hold after it."""
        started = time.monotonic()
        figures = self.figures
        rng = Random(f"{self.seed} {self.name} {figures.kills + figures.finished}")
        try:
            verb = self._opened()
            verb.begin(rng)
            by_time = rng.random() < 0.5 or not self.operations
            killed = verb.command().kill(
                after_s=rng.random() * self.seconds * LATE if by_time else None,
                at=NEVER if by_time else rng.randint(1, self.operations),
            )
            figures.kills += killed
            figures.finished += not killed
            verb.check()
            if rng.random() < RERUN:
                verb.finish()
                figures.reruns += 1
        except (Bad, Failed) as error:
            figures.kills += isinstance(error, Failed)
            kept = f"{self.base / self.name}-{len(figures.bad)}"
            shutil.move(self.base / self.name, kept)
            figures.bad.append(f"{error}\n  seed {self.seed}, kill {figures.kills}, kept in {kept}")
            self.verb = None
        figures.seconds += time.monotonic() - started

    def _opened(self) -> Verb:
        if self.verb is None:
            self.verb = VERBS[self.name](self.base / self.name)
            self.seconds, self.operations = self.verb.measure()
        return self.verb


def table(figures: Iterable[Figures]) -> str:
    """For a reader; also right as Markdown."""
    rows = ["| | kills | ended before | reruns | bad |", "|---|---:|---:|---:|---:|"]
    rows += [
        f"| {f.verb} | {f.kills} | {f.finished} | {f.reruns} | {len(f.bad)} |" for f in figures
    ]
    sums = [sum(getattr(f, k) for f in figures) for k in ("kills", "finished", "reruns")]
    bad = sum(len(f.bad) for f in figures)
    return "\n".join([*rows, f"| all | {' | '.join(map(str, sums))} | {bad} |"])


def load(keep: Path | None, seed: int) -> tuple[int, dict[str, Figures]]:
    """Seed and figures of the run that `keep` tells of, or of a new one."""
    if keep is None or not keep.is_file():
        return seed, {}
    value = json.loads(keep.read_bytes())
    return value["seed"], {row["verb"]: Figures(**row) for row in value["verbs"]}


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.kills")
    parser.add_argument("--count", type=int, default=1000, help="of all commands together")
    parser.add_argument("--verbs", default="", help=f"some of {', '.join(VERBS)}")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", type=Path, metavar="FILE", help="go on with the count in FILE")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    arguments = parser.parse_args()
    chosen = [name.strip() for name in arguments.verbs.split(",") if name] or list(VERBS)
    if unknown := sorted(set(chosen) - set(VERBS)):
        parser.error(f"no verb {unknown[0]!r}; there are {', '.join(VERBS)}")
    seed, figures = load(arguments.keep, arguments.seed)
    base = Path(tempfile.mkdtemp(prefix="starpack-kills-"))
    for name in chosen:
        figures.setdefault(name, Figures(name))
    runs = [Run(name, seed, figures[name], base) for name in chosen]
    shown = time.monotonic()
    stopped = False
    try:
        while (total := sum(f.kills for f in figures.values())) < arguments.count:
            min(runs, key=lambda run: run.figures.kills).step()
            if arguments.keep is not None:
                write(arguments.keep, seed, figures)
            if time.monotonic() - shown > PROGRESS_S:
                shown = time.monotonic()
                bad = sum(len(f.bad) for f in figures.values())
                print(
                    f"kills: {total} of {arguments.count}, {bad} bad", file=sys.stderr, flush=True
                )
    except KeyboardInterrupt:
        stopped = True
    rows = list(figures.values())
    found = [line for f in rows for line in f.bad]
    if arguments.json:
        data = {"seed": seed, "finished": not stopped, "verbs": [asdict(f) for f in rows]}
        print(json.dumps(data, indent=2))
    else:
        print("\n".join([f"seed {seed}", table(rows), *found]))
    for name in chosen:
        shutil.rmtree(base / name, ignore_errors=True)
    if not found:
        shutil.rmtree(base)
    return 1 if found else 130 if stopped else 0


def write(keep: Path, seed: int, figures: dict[str, Figures]) -> None:
    """So that a run that is killed itself goes on."""
    keep.parent.mkdir(parents=True, exist_ok=True)
    partial = keep.with_name(f"{keep.name}.partial")
    rows = [asdict(f) for f in figures.values()]
    partial.write_text(json.dumps({"seed": seed, "verbs": rows}))
    partial.replace(keep)


if __name__ == "__main__":
    sys.exit(main())
