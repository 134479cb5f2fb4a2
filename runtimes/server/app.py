"""The ASGI application: every dialect's endpoints over one service.

A dialect's requests and answers become HTTP here. The only file that knows Starlette.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from runtimes.contract import IsCancelled
from runtimes.errors import StarpackError
from runtimes.server import dialects
from runtimes.server.dialects.endpoint import (
    CompletionEndpoint,
    Dialect,
    InfoEndpoint,
    Text,
    View,
    failure,
    object_of,
    to_json_in_parts,
)
from runtimes.server.http.body import read_body
from runtimes.server.http.guard import Access, App, Guard, Log, Scope
from runtimes.server.http.openapi import describe
from runtimes.server.http.playground import PLAYGROUND
from runtimes.server.http.receive import receive_body
from runtimes.server.http.replies import (
    Problem,
    Reply,
    Stream,
    budget_headers,
    failure_reply,
    json_reply,
)
from runtimes.server.http.stopping import Stopping
from runtimes.server.job_queue import PROBE
from runtimes.server.metrics import CONTENT_TYPE
from runtimes.server.offload import Offload
from runtimes.server.request import PreparedRequest
from runtimes.server.service import Service
from runtimes.server.stream import JobStream

logger = logging.getLogger("starpack.serve")

PROBE_S = 10.0  # guessed: a model that has no token to show for so long is not ready
STOP_S = 30.0  # guessed: more than a chunk of a prompt takes, which cannot be interrupted
YES = frozenset({"1", "true", "yes"})


@dataclass(frozen=True, slots=True)
class Settings:
    """How HTTP is spoken. body_s: for a body to arrive. request_s: for waiting and running.

    write_s: for a client to take a piece of a stream. supersede: whether a request takes the place
    of its client's older ones where it does not say. log_prompts: log bodies and answers.
    """

    access: Access = field(default_factory=Access)
    max_body_bytes: int = 2 * 1024 * 1024  # guessed: ten times a context of 16,384 tokens
    body_s: float = 15.0  # guessed
    request_s: float = 120.0  # guessed
    write_s: float = 30.0  # guessed
    supersede: bool = False
    log_prompts: bool = False


def create_app(service: Service, settings: Settings) -> Starlette:
    """The application. Its lifespan starts the service's engine and stops it."""
    server = _Server(service, settings)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        service.queue.start()
        yield
        server.offload.close()
        await run_in_threadpool(service.queue.stop, STOP_S)

    middleware = [
        Middleware(Log, count=server.count),
        Middleware(Stopping, refuse=server.refuse),
    ]
    origins = sorted(settings.access.origins)
    if origins:
        middleware.append(
            Middleware(
                CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]
            )
        )
    middleware.append(Middleware(Guard, access=settings.access, refuse=server.refuse))
    return Starlette(
        routes=server.routes(),
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers={HTTPException: server.not_found, Exception: server.broken},
    )


class _Server:
    """The endpoints' HTTP, for one service."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self._service = service
        self._settings = settings
        self.offload = Offload(service.queue.max_waiting)
        self._probe: asyncio.Task[None] | None = None
        own: tuple[InfoEndpoint[Any], ...] = (
            InfoEndpoint(
                "GET", "/ready", "Whether the model answers: a token came lately, or comes now",
                object_of("status", status={"enum": ["ready"]}), lambda *_: None,
            ),
            InfoEndpoint("GET", "/metrics", "Prometheus metrics", None, _metrics),
            InfoEndpoint(
                "GET", "/licence", "The model's licence, its use restrictions", None, _licence
            ),
            PLAYGROUND,
            InfoEndpoint(
                "GET", "/openapi.json", "This description", {"type": "object"}, self._describe
            ),
        )  # fmt: skip
        self._description = describe(dialects.DIALECTS, own)
        self._own = Dialect("starpack", (), own, failure)
        self._routes = [
            (dialect, route)
            for dialect in (*dialects.DIALECTS, self._own)
            for route in self._routes_of(dialect)
        ]

    def routes(self) -> list[Route]:
        """One for each endpoint."""
        return [route for _, route in self._routes]

    def _routes_of(self, dialect: Dialect) -> Iterator[Route]:
        for completion in dialect.completion_endpoints:
            yield Route(
                completion.path, self._completion_handler(dialect, completion), methods=["POST"]
            )
        for info in dialect.info_endpoints:
            answer = self._ready if info.path == "/ready" else None
            handler = answer or self._info_handler(dialect, info)
            yield Route(info.path, handler, methods=[info.method])

    def count(self, scope: Scope, status: int) -> None:
        """A request has been answered."""
        self._service.metrics.request(self._dialect(scope).name, status)

    def refuse(self, status: int, scope: Scope, message: str) -> App:
        """An answer without a look at the request."""
        return failure_reply(self._dialect(scope), Problem(status, message))

    async def not_found(self, request: Request, error: Exception) -> Response:
        """No such path, or not with this method."""
        assert isinstance(error, HTTPException)
        problem = Problem(error.status_code, error.detail)
        return self._failed(request, problem, error.headers)

    async def broken(self, request: Request, _error: Exception) -> Response:
        """A bug of ours. uvicorn logs it; the client learns no more than that."""
        return self._failed(request, Problem(500, "internal error"), None)

    def _failed(
        self, request: Request, problem: Problem, headers: Mapping[str, str] | None
    ) -> Response:
        reply = failure_reply(self._dialect(request.scope), problem)
        return Response(reply.body, reply.status, {**reply.headers, **(headers or {})})

    def _dialect(self, scope: Scope) -> Dialect:
        """That of the route which a request matches, at best with its method; else starpack's."""
        best = Match.NONE, self._own
        for dialect, route in self._routes:
            match, _ = route.matches(scope)
            if match.value > best[0].value:
                best = match, dialect
        return best[1]

    def _info_handler(
        self, dialect: Dialect, endpoint: InfoEndpoint[Any]
    ) -> Callable[[Request], Awaitable[Reply]]:
        async def handler(request: Request) -> Reply:
            try:
                data = None if endpoint.body is None else await self._read_body(request)
                work = partial(self._info_reply, endpoint, data)
                return await self.offload.run(work, len(data or b""), request.receive)
            except StarpackError as error:
                return failure_reply(dialect, error)

        return handler

    def _info_reply(
        self, endpoint: InfoEndpoint[Any], data: bytes | None, cancelled: IsCancelled
    ) -> Reply:
        body = None if data is None else read_body(data, endpoint.body or object)
        value = endpoint.handler(self._service, body)
        if callable(value):
            value = value(cancelled)
        if isinstance(value, Text):
            return Reply(200, value.text, value.media_type, value.headers)
        return json_reply(200, value)

    def _completion_handler(
        self, dialect: Dialect, endpoint: CompletionEndpoint[Any]
    ) -> Callable[[Request], Awaitable[Reply | Stream]]:
        async def handler(request: Request) -> Reply | Stream:
            try:
                data = await self._read_body(request)
                if not self._supersedes(request):
                    # before any work: under load a refusal has to cost next to nothing
                    self._service.queue.check_capacity()
                work = partial(self._prepare, endpoint, data)
                prepared, view = await self.offload.run(work, len(data), request.receive)
                return await self._complete(request, dialect, prepared, view)
            except StarpackError as error:
                return failure_reply(dialect, error)

        return handler

    def _prepare(
        self, endpoint: CompletionEndpoint[Any], data: bytes, cancelled: IsCancelled
    ) -> tuple[PreparedRequest, View]:
        body = read_body(data, endpoint.body)
        if self._settings.log_prompts:
            logger.info("asked: %r", data)
        request = endpoint.read(body, self._service.defaults)
        prepared = self._service.prepare(request, cancelled)
        return prepared, endpoint.view(body, prepared, self._service.model)

    async def _complete(
        self, request: Request, dialect: Dialect, prepared: PreparedRequest, view: View
    ) -> Reply | Stream:
        stream = JobStream(
            self._service.queue,
            request.scope["starpack.client"],
            prepared.sequences,
            limit_s=self._settings.request_s,
            supersede=self._supersedes(request),
            name=request.scope["starpack.name"],
        )
        try:
            stream.watch(request.receive)
            if prepared.request.stream:
                # Wait for the first event: until then a failure can still have its own status.
                first = await stream.next()
                return Stream(dialect, stream, first, prepared, view, self._settings.write_s)
            results = await stream.results(prepared)
        except BaseException:
            stream.close()
            raise
        stream.close()
        if self._settings.log_prompts:
            logger.info("answered: %r", [result.completion.text for result in results])

        headers = budget_headers(prepared)
        if prepared.request.options.logprobs is None:
            return json_reply(200, view.whole(results), headers)

        def made() -> Reply:  # those of a prompt are megabytes
            return Reply(200, to_json_in_parts(view.whole(results)), "application/json", headers)

        return await asyncio.to_thread(made)

    def _supersedes(self, request: Request) -> bool:
        said = request.headers.get("x-supersede")
        return self._settings.supersede if said is None else said.lower() in YES

    async def _read_body(self, request: Request) -> bytes:
        settings = self._settings
        return await receive_body(
            request.headers, request.receive, settings.max_body_bytes, settings.body_s
        )

    async def _ready(self, _request: Request) -> Reply:
        """A real token, lately or now: a server whose engine has failed does not say ready."""
        if not self._service.is_fresh:
            if self._probe is None or self._probe.done():
                self._probe = asyncio.create_task(self._one_token())
            await asyncio.wait({self._probe}, timeout=PROBE_S)
        if self._service.is_fresh:
            return json_reply(200, {"status": "ready"})
        return failure_reply(self._own, Problem(503, f"no token has come within {PROBE_S:.0f} s"))

    async def _one_token(self) -> None:
        try:
            async with JobStream(self._service.queue, PROBE, (), limit_s=PROBE_S) as talk:
                while await talk.next() is not None:
                    pass
        except Exception as error:
            logger.warning("the model does not answer: %s", error)

    def _describe(self, *_: object) -> object:
        return self._description


def _metrics(service: Service, _body: object) -> Text:
    return Text(service.metrics.text(service.gauges()), CONTENT_TYPE)


def _licence(service: Service, _body: object) -> Text:
    notice = (
        "What this model writes is machine-generated and may repeat code that others hold rights\n"
        "in: review it before use. The use restrictions below bind whoever uses it or its output.\n"
    )
    return Text(
        "\n".join([notice, *(f"{path}\n\n{text}" for path, text in service.model.licences)])
    )
