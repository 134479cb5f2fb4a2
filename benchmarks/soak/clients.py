"""What the clients do: most ask and are answered, the others behave as badly as they can."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import h11

from benchmarks.load_serve import request_of, text_of
from benchmarks.soak.supervised import Supervised
from benchmarks.soak.wire import Answer, Wire, request_bytes

HELD_S = 12.0  # a little longer than the server waits for a head
LEAVE_S = 0.4  # guessed: most of the way through an answer
SLOW_PAUSE_S = 0.2  # before each piece of 4 KB; far below the server's limit of 30 s
DIALECTS = 4  # of load_serve.request_of
LARGE = "1" * 1_900_000  # a token for each byte
TRIM = {"starpack": {"over_context": "trim"}}


@dataclass(frozen=True, slots=True)
class Case:
    """A request, and the answer that it has when nobody else asks."""

    prefix: str
    suffix: str | None
    text: str = ""


@dataclass(slots=True)
class Seen:
    """What happened. health_s: the slowest answer of /health that no pause lay in."""

    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)


async def answer_alone(port: int, case: Case) -> Case:
    """`case` with the answer of a server that does nothing else."""
    path, body = request_of(case, 1, False)
    async with Wire(port) as wire:
        answer = await wire.ask(request_bytes(path, body))
    if answer.status != 200:
        raise SystemExit(f"alone, {path} was answered with {answer.status}: {answer.text[:300]}")
    return Case(case.prefix, case.suffix, text_of(json.loads(answer.text)))


class Client:
    """One of them."""

    def __init__(self, server: Supervised, known: list[Case], seen: Seen, number: int) -> None:
        self._server = server
        self._known = known
        self._seen = seen
        self._chance = random.Random(number)

    async def run(self, ends: float) -> None:
        """Behave in one way after the other."""
        ways: dict[Callable[[], Awaitable[str]], float] = {
            self._ask: 12, self._slow: 1, self._leave: 3, self._reset: 2, self._half: 1,
            self._silent: 0.3, self._large: 0.3, self._health: 1,
        }  # fmt: skip
        while time.monotonic() < ends:
            (way,) = self._chance.choices(list(ways), list(ways.values()))
            before = self._server.kills
            try:
                outcome = await way()
            except (OSError, TimeoutError, h11.RemoteProtocolError, ValueError, KeyError) as error:
                if self._server.is_down or self._server.kills != before:
                    outcome = "cut by a kill"
                    await asyncio.sleep(0.1)
                else:
                    outcome = "failed"
                    self._seen.problems.append(f"{way.__name__}: {error!r}"[:300])
            self._seen.outcomes[outcome] += 1

    async def _ask(self, pause_s: float = 0.0) -> str:
        case = self._chance.choice(self._known)
        stream = bool(pause_s) or self._chance.random() < 0.5
        path, body = request_of(case, self._chance.randrange(DIALECTS), stream)
        async with Wire(self._server.port) as wire:
            answer = await wire.ask(request_bytes(path, body), pause_s)
        if answer.status != 200:
            return await self._refused(path, answer)
        return self._judge(case, text_in(answer.text, stream))

    def _judge(self, case: Case, text: str) -> str:
        if text == case.text:
            return "right"
        self._seen.problems.append(f"{case.text!r} became {text!r}")
        return "wrong"

    async def _refused(self, path: str, answer: Answer) -> str:
        if answer.status not in (429, 503):
            raise ValueError(f"{path}: {answer.status} {answer.text[:200]}")
        # 503: too many connections. What a queue's place takes is said; half of it, to crowd it.
        await asyncio.sleep(min(2.0, answer.retry_after_s / 2 or 0.2))
        return f"refused with {answer.status}"

    async def _slow(self) -> str:
        return await self._ask(SLOW_PAUSE_S)

    async def _send_and_wait(self, wire: Wire) -> None:
        case = self._chance.choice(self._known)
        path, body = request_of(case, self._chance.randrange(DIALECTS), self._chance.random() < 0.5)
        wire.writer.write(request_bytes(path, body))
        await asyncio.sleep(self._chance.uniform(0, LEAVE_S))

    async def _leave(self) -> str:
        async with Wire(self._server.port) as wire:
            await self._send_and_wait(wire)
        return "left"

    async def _reset(self) -> str:
        async with Wire(self._server.port) as wire:
            await self._send_and_wait(wire)
            wire.reset()
        return "reset"

    async def _half(self) -> str:
        """Half a request; then the client leaves, or is dead and does not even close."""
        data = request_bytes(*request_of(self._chance.choice(self._known), 0, False))
        async with Wire(self._server.port) as wire:
            wire.writer.write(data[: self._chance.randrange(1, len(data))])
            await asyncio.sleep(self._chance.choice((0, LEAVE_S, HELD_S)))
        return "half a request"

    async def _silent(self) -> str:
        """A half-open connection: the server has to end it."""
        async with Wire(self._server.port) as wire:
            await asyncio.wait_for(wire.reader.read(), HELD_S + 30)
        return "silent, and was closed"

    async def _large(self) -> str:
        """Megabytes: refused, or trimmed; sometimes the client leaves meanwhile."""
        over = self._chance.random() < 0.5
        body = {"prompt": LARGE, "max_tokens": 1} | (TRIM if over else {})
        data = request_bytes("/v1/completions", body)
        async with Wire(self._server.port) as wire:
            if self._chance.random() < 0.3:
                wire.writer.write(data)
                await asyncio.sleep(self._chance.uniform(0, LEAVE_S))
                return "large, and left"
            answer = await wire.ask(data)
        if answer.status == (200 if over else 400):
            return "large, as expected"
        return await self._refused("large", answer)

    async def _health(self) -> str:
        pauses, started = self._server.pauses, time.monotonic()
        is_paused = self._server.is_paused
        async with Wire(self._server.port) as wire:
            answer = await wire.ask(request_bytes("/health", None))
        if answer.status != 200:
            return await self._refused("/health", answer)
        if self._server.pauses == pauses and not is_paused:
            self._seen.health_s.append(time.monotonic() - started)
        return "health"


def text_in(text: str, stream: bool) -> str:
    """The answer in a body, or in the events of a stream."""
    if not stream:
        return text_of(json.loads(text))
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    return "".join(text_of(json.loads(event)) for event in events if event != "[DONE]")
