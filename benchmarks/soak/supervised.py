"""The server under test: started, stopped for a moment, killed, started again, and looked at."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.soak.wire import Wire, request_bytes

START_S = 120.0  # guessed: a starved machine; a bundle is hashed first
SAMPLE_S = 0.5
MAX_PAUSE_S = 3.0  # guessed: of SIGSTOP; longer than the server's own timers for a head take


@dataclass(frozen=True, slots=True)
class Sample:
    """What one process has, as /proc says; `process` counts from 1."""

    process: int
    rss_bytes: int
    descriptors: int
    threads: int


@dataclass(slots=True)
class Supervised:
    """command: what serves on `port`. log: where its output goes."""

    command: Sequence[str]
    port: int
    log: Path
    kills: int = 0  # what fails around one is no fault
    pauses: int = 0
    is_down: bool = False
    is_paused: bool = False
    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    started: int = 0
    process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, and wait until it takes requests."""
        self.started += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if self.process.poll() is not None:
                break
            try:
                async with Wire(self.port) as wire:
                    if (await wire.ask(request_bytes("/health", None))).status == 200:
                        return
            except (OSError, TimeoutError):
                pass
            await asyncio.sleep(0.05)
        raise SystemExit(f"the server did not start: {self.log.read_text()[-2000:]}")

    async def disturb(self, kills_until: float, ends: float, every_s: float) -> None:
        """Stop it for moments until `ends`; until `kills_until` also kill and restart it."""
        chance = random.Random(1)
        while (left := ends - time.monotonic()) > 0:
            await asyncio.sleep(min(left, chance.uniform(0.5, 1.5) * every_s))
            now = time.monotonic()
            if self.process.poll() is not None:
                self.problems.append(f"the server ended with code {self.process.returncode}")
                await self.start()
            elif now < kills_until and chance.random() < 0.5:
                await self._kill()
            elif now + MAX_PAUSE_S < ends:
                await self._pause(chance.uniform(0.2, MAX_PAUSE_S))

    async def _kill(self) -> None:
        self.kills += 1
        self.is_down = True
        self.process.kill()
        self.process.wait()
        await self.start()
        self.is_down = False

    async def _pause(self, pause_s: float) -> None:
        self.pauses += 1
        self.is_paused = True
        self.process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(pause_s)
        finally:
            self.process.send_signal(signal.SIGCONT)
            self.is_paused = False

    async def watch(self, ends: float) -> None:
        """Take samples."""
        while time.monotonic() < ends:
            self.sample()
            await asyncio.sleep(SAMPLE_S)

    def sample(self) -> None:
        """Take one."""
        number = self.started
        try:
            process = psutil.Process(self.process.pid)
            with process.oneshot():
                rss, threads = process.memory_info().rss, process.num_threads()
                self.samples.append(Sample(number, rss, process.num_fds(), threads))
        except psutil.Error:
            pass  # killed just now

    def stop(self, limit_s: float = 30.0) -> None:
        """End it as a service manager does."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            self.problems.append(f"the server did not stop within {limit_s:.0f} s")
        else:
            if code != 0:
                self.problems.append(f"the server stopped with code {code}")
