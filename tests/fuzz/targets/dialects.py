"""The body of a request, in every dialect: decoded, checked, read, and prepared for the engine."""

from __future__ import annotations

from pathlib import Path

from runtimes.contract import never_cancelled
from runtimes.errors import UsageError
from runtimes.server.dialects import DIALECTS
from runtimes.server.dialects.endpoint import InfoEndpoint, Text, to_json
from runtimes.server.http.body import read_body
from runtimes.server.service import Service
from tests.fuzz import forms
from tests.fuzz.target import Wrong, json_bytes, one_of, split_file
from tests.support.serving import CONTEXT, make_service
from tests.support.tiny import TOKENS

COMPLETIONS = {e.path: e for d in DIALECTS for e in d.completion_endpoints}
INFORMING = {e.path: e for d in DIALECTS for e in d.info_endpoints if e.body is not None}
ENDPOINTS = COMPLETIONS | INFORMING
# What any of them knows; each ignores the rest.
BODY = {
    "model": "toy", "name": "toy", "prompt": "def f(", "inputs": "def f(", "content": "x",
    "prefix": "a", "suffix": "\n", "input_prefix": "a", "input_suffix": "b", "tokens": [40, 41],
    "input_extra": [{"filename": "a.py", "text": "x"}], "code": "def f(x):\n    return x\n",
    "language": "python", "to": "rust", "max_tokens": 4, "n_predict": 4, "temperature": 0.5,
    "stop": ["\n"], "seed": 1, "stream": True, "logprobs": 1, "n_probs": 1, "with_pieces": True,
    "parameters": {"max_new_tokens": 4, "stop": ["x"]}, "options": {"num_predict": 4, "stop": []},
    "starpack": {"repo_name": "r", "path": "p", "files": [{"path": "q", "text": "t"}]},
}  # fmt: skip
WORDS = (
    *sorted({name for e in ENDPOINTS.values() for name in e.body.__struct_fields__}),
    "<fim_prefix>a<fim_suffix>b<fim_middle>", "<repo_name>", "trim", "error", "t.", "\nt",
)  # fmt: skip
FORM = forms.Files({path: forms.Json(WORDS) for path in ENDPOINTS})
SHARE = 150
_service: list[Service] = []


def seeds(folder: Path) -> list[bytes]:
    """A body for each endpoint, and one with ids for those that take them."""
    _service[:] = [make_service(folder)]
    made = [one_of(path, json_bytes(BODY)) for path in ENDPOINTS]
    ids = json_bytes({"prompt": [40, 41, 42], "max_tokens": -1, "top_p": 0.9, "stop": None})
    return [*made, *(one_of(path, ids) for path in ("/v1/completions", "/completion"))]


def run(data: bytes, _folder: Path) -> None:
    """What is accepted fits the context, in ids that the model has."""
    path, content = split_file(data)
    endpoint, service = ENDPOINTS.get(path), _service[0]
    if endpoint is None:
        raise UsageError("there is no such endpoint")
    body = read_body(content, endpoint.body)
    if isinstance(endpoint, InfoEndpoint):
        value = endpoint.handler(service, body)
        if callable(value):
            value = value(never_cancelled)
        if not isinstance(value, Text):
            to_json(value)
        return
    prepared = service.prepare(endpoint.read(body, service.defaults))
    endpoint.view(body, prepared, service.model)
    for sequence in prepared.sequences:
        if len(sequence.ids) >= CONTEXT or not 0 <= min(sequence.ids) <= max(sequence.ids) < TOKENS:
            raise Wrong("ids that do not fit", (len(sequence.ids), max(sequence.ids)))
