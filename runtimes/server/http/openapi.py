"""The description of the server's endpoints at /openapi.json (OpenAPI 3.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from runtimes.server.dialects.endpoint import MEDIA_TYPES, Dialect, InfoEndpoint, Schema

ABOUT = """\
Generates and infills code with a StarCoder2 model. All dialects map to generate and infill: the
same request has the same answer in each. Answers are machine-generated and may repeat code that
others hold rights in: review them before use. The model's licence and its use restrictions are at
/licence."""
ERRORS = {
    "400": "The request is not valid, or does not fit the context",
    "401": "No API key, or a wrong one",
    "403": "A host or an origin that is not allowed",
    "408": "The body did not arrive in time",
    "409": "A newer request of the same client has taken this one's place",
    "413": "The body is too large",
    "415": "The body has a Content-Encoding",
    "429": "The queue is full; Retry-After says when to try again",
    "500": "The engine failed",
    "503": "The server is being stopped, or does not answer",
}
# A parameter cannot have every character: a line break is none of a path.
NO_SUCH_PATH = {"404": "No such path"}
REFERENCE = "#/components/schemas/{name}"
References = dict[type[Any], Schema]
PARAMETER = re.compile(r"\{(\w+)(:\w+)?\}")


def describe(dialects: Iterable[Dialect], own: Iterable[InfoEndpoint[Any]]) -> dict[str, object]:
    """The whole document. `own` are the endpoints that belong to no dialect."""
    bodies: list[type[Any]] = []
    for dialect in dialects:
        bodies += [completion.body for completion in dialect.completion_endpoints]
        bodies += [info.body for info in dialect.info_endpoints if info.body is not None]
    found, schemas = msgspec.json.schema_components(bodies, ref_template=REFERENCE)
    references: References = dict(zip(bodies, found, strict=True))
    paths: dict[str, dict[str, object]] = {}
    for dialect in dialects:
        for completion in dialect.completion_endpoints:
            answers: dict[str, object] = {"application/json": {"schema": completion.answer}}
            answers |= {media_type: {} for media_type in MEDIA_TYPES.values()}
            body = references[completion.body]
            _add(paths, dialect.name, "POST", completion.path, completion.summary, body, answers)
        for info in dialect.info_endpoints:
            _add_info(paths, dialect.name, info, references)
    for info in own:
        _add_info(paths, "starpack", info, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": "starpack", "version": "1", "description": ABOUT},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _add_info(
    paths: dict[str, dict[str, object]],
    tag: str,
    endpoint: InfoEndpoint[Any],
    references: References,
) -> None:
    answers: dict[str, object] = {"application/json": {"schema": endpoint.answer}}
    if endpoint.answer is None:
        answers = {endpoint.media_type: {"schema": {"type": "string"}}}
    body = None if endpoint.body is None else references[endpoint.body]
    _add(paths, tag, endpoint.method, endpoint.path, endpoint.summary, body, answers)


def _add(
    paths: dict[str, dict[str, object]],
    tag: str,
    method: str,
    path: str,
    summary: str,
    body: Schema | None,
    answers: dict[str, object],
) -> None:
    errors = {
        status: {"description": text, "content": {"application/json": {}}}
        for status, text in (ERRORS | (NO_SUCH_PATH if "{" in path else {})).items()
    }
    operation: dict[str, object] = {
        "tags": [tag],
        "summary": summary,
        "operationId": re.sub(r"\W+", "_", f"{method}{path}").strip("_").lower() or "root",
        "responses": {"200": {"description": "The answer", "content": answers}, **errors},
    }
    if body is not None:
        content = {"application/json": {"schema": body}}
        operation["requestBody"] = {"required": True, "content": content}
    parameters = [
        {"name": match[1], "in": "path", "required": True, "schema": {"type": "string"}}
        for match in PARAMETER.finditer(path)
    ]
    if parameters:
        operation["parameters"] = parameters
    paths.setdefault(PARAMETER.sub(r"{\1}", path), {})[method.lower()] = operation
