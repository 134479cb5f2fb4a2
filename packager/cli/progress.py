"""What is shown of long work on standard error: a bar in a terminal, else a line now and then.

Knows nothing of what is done. Totals of a million and more are bytes; smaller ones are counts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from packager.core.records import Progress, no_progress
from packager.core.units import GB

LINE_S = 5.0  # guessed: a log stays short, and nobody takes the program for dead
MIN_BYTES_TOTAL = 1_000_000


@contextmanager
def shown_progress(*, quiet: bool) -> Iterator[Progress]:
    """The progress that a command gets; what it shows is gone or ended after the block."""
    if quiet:
        yield no_progress
    elif sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        yield plain_lines(sys.stderr)


def plain_lines(stream: TextIO, clock: Callable[[], float] = time.monotonic) -> Progress:
    """`convert gguf-Q4_K_M: 40 % of 1.8 GB, 35 s`, every LINE_S seconds, and no control codes."""
    what_now, done_before, started, shown = "", 0, 0.0, 0.0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal what_now, done_before, started, shown
        now = clock()
        if what != what_now or done < done_before:  # other work, or the same once more
            what_now, started, shown = what, now, now
        done_before = done
        if now - shown < LINE_S:
            return
        shown = now
        percent = 100 * done // max(total, 1)
        print(f"{what}: {percent} % of {_amount(total)}, {now - started:.0f} s", file=stream)
        stream.flush()

    return progress


def _amount(total: int) -> str:
    return f"{total / GB:.1f} GB" if total >= MIN_BYTES_TOTAL else str(total)


@contextmanager
def _bar() -> Iterator[Progress]:
    """One bar at a time, which goes when the next one comes."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("of {task.fields[amount]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bars:
        task = bars.add_task("", start=False, visible=False, amount="")
        what_now = ""

        def progress(what: str, done: int, total: int) -> None:
            nonlocal what_now
            if what != what_now:
                what_now = what
                bars.reset(task, description=what, visible=True)
            bars.update(task, completed=done, total=total, amount=_amount(total))

        yield progress
