"""The ASGI application: every dialect's endpoints over one service.

What a dialect says becomes HTTP here, and nothing else does. The only file that knows Starlette.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from runtimes.api import llamacpp, ollama, openai, tgi
from runtimes.api.endpoint import (
    MEDIA_TYPES,
    Completing,
    Dialect,
    Telling,
    Text,
    View,
    frame,
    object_of,
    to_json,
)
from runtimes.api.openapi import describe
from runtimes.api.schema import check, decode
from runtimes.completion import Chunk
from runtimes.errors import (
    BusyError,
    Cancelled,
    DeviceError,
    StarpackError,
    StoppingError,
    Superseded,
    UsageError,
)
from runtimes.serving.ask import Plan
from runtimes.serving.conversation import Conversation
from runtimes.serving.engine import PROBE, Event
from runtimes.serving.guard import Access, App, Guard, Log, Receive, Scope, Send
from runtimes.serving.metrics import CONTENT_TYPE
from runtimes.serving.service import Service

logger = logging.getLogger("starpack.serve")

DIALECTS = (openai.DIALECT, llamacpp.DIALECT, ollama.DIALECT, tgi.DIALECT)
PROBE_S = 10.0  # guessed: a model that has no token to show for so long is not ready
STOP_S = 30.0  # guessed: more than a chunk of a prompt takes, which cannot be interrupted
CLIENT_GONE = 499  # nobody sees it; the log's word for an answer that had no one left to read it
YES = frozenset({"1", "true", "yes"})


@dataclass(frozen=True, slots=True)
class Settings:
    """How HTTP is spoken. body_s: for a body to arrive. request_s: for waiting and running.

    write_s: for a client to take a piece of a stream. supersede: whether a request takes the place
    of its client's older ones where it does not say. log_prompts: log bodies and answers.
    """

    access: Access = field(default_factory=Access)
    most_body_bytes: int = 2 * 1024 * 1024  # guessed: ten times a context of 16,384 tokens
    body_s: float = 15.0  # guessed
    request_s: float = 120.0  # guessed
    write_s: float = 30.0  # guessed
    supersede: bool = False
    log_prompts: bool = False


class Problem(StarpackError):
    """A failure that HTTP has a number for."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


def create_app(service: Service, settings: Settings) -> Starlette:
    """The application. Its lifespan starts the service's engine and stops it."""
    server = _Server(service, settings)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await run_in_threadpool(service.engine.stop, STOP_S)

    middleware = [Middleware(Log, count=server.count)]
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
        self._probe: asyncio.Task[None] | None = None
        own = (
            Telling("GET", "/ready", "Whether the model answers: a token came lately, or comes now",
                    object_of("status", status={"enum": ["ready"]}), lambda *_: None),
            Telling("GET", "/metrics", "Prometheus metrics", None, _metrics),
            Telling("GET", "/licence", "The model's licence, its use restrictions", None, _licence),
            Telling("GET", "/openapi.json", "This description", {"type": "object"}, self._describe),
        )  # fmt: skip
        self._description = describe(DIALECTS, own)
        self._own = Dialect("starpack", (), own, openai.failure)
        self._dialect_of_path = {
            endpoint.path: dialect
            for dialect in (*DIALECTS, self._own)
            for endpoint in (*dialect.completing, *dialect.telling)
        }

    def routes(self) -> list[Route]:
        """One for each endpoint."""
        routes = []
        for dialect in (*DIALECTS, self._own):
            for endpoint in dialect.completing:
                routes.append(
                    Route(endpoint.path, self._completing(dialect, endpoint), methods=["POST"])
                )
            for endpoint in dialect.telling:
                answer = self._ready if endpoint.path == "/ready" else None
                handler = answer or self._telling(dialect, endpoint)
                routes.append(Route(endpoint.path, handler, methods=[endpoint.method]))
        return routes

    def count(self, path: str, status: int) -> None:
        """A request has been answered."""
        self._service.metrics.request(self._dialect(path).name, status)

    def refuse(self, status: int, path: str, message: str) -> App:
        """An answer without a look at the request."""
        return self._failure(self._dialect(path), Problem(status, message))

    async def not_found(self, request: Request, error: Exception) -> Response:
        """No such path, or not with this method."""
        assert isinstance(error, HTTPException)
        response = self._failure(
            self._dialect(request.url.path), Problem(error.status_code, error.detail)
        )
        response.headers.update(error.headers or {})
        return response

    async def broken(self, request: Request, _error: Exception) -> Response:
        """A bug of ours. uvicorn logs it; the client learns no more than that."""
        return self._failure(self._dialect(request.url.path), Problem(500, "internal error"))

    def _dialect(self, path: str) -> Dialect:
        """Whose words a path is answered in; those of paths with a parameter are told by name."""
        if path.startswith("/models/"):
            return tgi.DIALECT
        if path.startswith("/v1/engines/"):
            return openai.DIALECT
        return self._dialect_of_path.get(path, self._own)

    def _telling(
        self, dialect: Dialect, endpoint: Telling
    ) -> Callable[[Request], Awaitable[Response]]:
        async def handler(request: Request) -> Response:
            try:
                data = await self._read_body(request) if endpoint.body is not None else b"{}"
                return await run_in_threadpool(self._told, endpoint, data)
            except (StarpackError, ClientDisconnect) as error:
                return self._failure(dialect, error)

        return handler

    def _told(self, endpoint: Telling, data: bytes) -> Response:
        body = decode(data)
        check(body, endpoint.body or {})
        value = endpoint.tell(self._service, body)
        if isinstance(value, Text):
            return _response(200, value.text, value.media_type)
        return _json(200, value)

    def _completing(
        self, dialect: Dialect, endpoint: Completing
    ) -> Callable[[Request], Awaitable[Response | _Stream]]:
        async def handler(request: Request) -> Response | _Stream:
            try:
                data = await self._read_body(request)
                plan, view = await run_in_threadpool(self._plan, endpoint, data)
                return await self._complete(request, dialect, plan, view)
            except (StarpackError, ClientDisconnect) as error:
                return self._failure(dialect, error)

        return handler

    def _plan(self, endpoint: Completing, data: bytes) -> tuple[Plan, View]:
        body = decode(data)
        check(body, endpoint.body)
        if self._settings.log_prompts:
            logger.info("asked: %s", json.dumps(body))
        plan = self._service.plan(endpoint.read(body, self._service.rules))
        return plan, endpoint.view(body, plan, self._service.model)

    async def _complete(
        self, request: Request, dialect: Dialect, plan: Plan, view: View
    ) -> Response | _Stream:
        said = request.headers.get("x-supersede")
        supersede = self._settings.supersede if said is None else said.lower() in YES
        conversation = Conversation(
            self._service.engine,
            request.scope["starpack.client"],
            plan.runs,
            limit_s=self._settings.request_s,
            supersede=supersede,
        )
        try:
            conversation.watch(request.receive)
            if plan.ask.stream:
                # Wait for the first event: until then a failure can still have its own status.
                first = await conversation.next()
                return _Stream(self, dialect, conversation, first, plan, view)
            results = await conversation.results(plan)
        except BaseException:
            conversation.close()
            raise
        conversation.close()
        if self._settings.log_prompts:
            logger.info("answered: %s", json.dumps([r.completion.text for r in results]))
        return _json(200, view.whole(results), _budget_headers(plan))

    async def _read_body(self, request: Request) -> bytes:
        """Raises Problem for one that is too large or too slow; ClientDisconnect."""
        most = self._settings.most_body_bytes
        declared = request.headers.get("content-length", "0")
        too_large = Problem(413, f"the body has more than {most} bytes")
        if not declared.isdecimal() or int(declared[:20]) > most:
            raise too_large
        data = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_s):
                async for piece in request.stream():
                    data += piece
                    if len(data) > most:
                        raise too_large
        except TimeoutError:
            raise Problem(408, "the body did not arrive in time") from None
        return bytes(data)

    def _failure(self, dialect: Dialect, error: Exception) -> Response:
        status = status_of(error)
        headers = {}
        if isinstance(error, BusyError):
            headers["retry-after"] = str(error.retry_after_s)
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        if status in (408, 413):
            headers["connection"] = "close"  # the rest of the body is not waited for
        return _json(status, dialect.failure(status, str(error)), headers)

    async def _ready(self, _request: Request) -> Response:
        """A real token, lately or now: a server whose engine has failed does not say ready."""
        if not self._service.is_fresh:
            if self._probe is None or self._probe.done():
                self._probe = asyncio.create_task(self._one_token())
            await asyncio.wait({self._probe}, timeout=PROBE_S)
        if self._service.is_fresh:
            return _json(200, {"status": "ready"})
        return self._failure(self._own, Problem(503, f"no token has come within {PROBE_S:.0f} s"))

    async def _one_token(self) -> None:
        try:
            async with Conversation(self._service.engine, PROBE, (), limit_s=PROBE_S) as talk:
                while await talk.next() is not None:
                    pass
        except Exception as error:
            logger.warning("the model does not answer: %s", error)

    def _describe(self, *_: object) -> object:
        return self._description


class _Stream:
    """A response whose body is the events of a conversation, as a dialect's view shows them."""

    def __init__(
        self,
        server: _Server,
        dialect: Dialect,
        conversation: Conversation,
        first: Event,
        plan: Plan,
        view: View,
    ) -> None:
        self._server = server
        self._dialect = dialect
        self._conversation = conversation
        self._event = first
        self._plan = plan
        self._view = view

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """See ASGI."""
        headers = {
            "content-type": MEDIA_TYPES[self._view.framing],
            "x-accel-buffering": "no",  # a proxy in between is to pass on each event at once
            **_COMMON_HEADERS,
            **_budget_headers(self._plan),
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        async with self._conversation:
            await send({"type": "http.response.start", "status": 200, "headers": raw})
            try:
                async for data in self._pieces():
                    async with asyncio.timeout(self._server._settings.write_s):
                        await send({"type": "http.response.body", "body": data, "more_body": True})
            except TimeoutError:
                logger.info("a client has stopped reading")
                return  # without an end, so that the connection is closed
            await send({"type": "http.response.body", "body": b""})

    async def _pieces(self) -> AsyncIterator[bytes]:
        framing = self._view.framing
        try:
            while self._event is not None:
                run, item = self._event
                if isinstance(item, Chunk):
                    for event in self._view.chunk(run, item):
                        yield frame(event, framing)
                else:
                    self._view.scores(run, item)
                self._event = await self._conversation.next()
            for event in self._view.end():
                yield frame(event, framing)
        except Cancelled as error:
            if isinstance(error, Superseded):
                yield frame(self._dialect.failure(409, str(error)), framing)
        except StarpackError as error:
            yield frame(self._dialect.failure(status_of(error), str(error)), framing)


def status_of(error: Exception) -> int:
    """The HTTP status that says what an error means."""
    match error:
        case Problem():
            return error.status
        case UsageError():
            return 400
        case BusyError():
            return 429
        case Superseded():
            return 409
        case Cancelled() | ClientDisconnect():
            return CLIENT_GONE
        case StoppingError() | DeviceError():
            return 503
    return 500


_COMMON_HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "link": '</licence>; rel="license"',
}


def _response(
    status: int, text: str, media_type: str, headers: dict[str, str] | None = None
) -> Response:
    return Response(
        text.encode(), status, {**_COMMON_HEADERS, **(headers or {}), "content-type": media_type}
    )


def _json(status: int, value: object, headers: dict[str, str] | None = None) -> Response:
    return _response(status, to_json(value), "application/json", headers)


def _budget_headers(plan: Plan) -> dict[str, str]:
    """The budget where a client that reads only headers, or a proxy's log, can see it."""
    return {
        "x-starpack-prompt-tokens": str(sum(fit.prompt_tokens for fit in plan.fits)),
        "x-starpack-dropped-tokens": str(sum(fit.dropped_tokens for fit in plan.fits)),
    }


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
