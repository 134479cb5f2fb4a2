"""The tasks over HTTP: the same prompt as by hand, and word of where the answer goes."""

from __future__ import annotations

import json

import pytest
from starlette.testclient import TestClient

from runtimes.generation.completion import GenerateOptions
from runtimes.prompts import tasks
from runtimes.prompts.languages import LANGUAGES
from runtimes.prompts.tasks import Task
from runtimes.server.service import Service

PYTHON, GO = LANGUAGES["python"], LANGUAGES["go"]
CODE = "def f(x):\n    return x\n"
CASES = [
    ("complete", {"prompt": CODE}, tasks.complete(CODE)),
    ("infill", {"prefix": "a", "suffix": "b"}, tasks.infill("a", "b")),
    ("docstring", {"code": CODE, "language": "python"}, tasks.docstring(CODE, PYTHON)),
    ("docstring", {"code": CODE, "language": "go", "line": 2}, tasks.docstring(CODE, GO, 2)),
    ("explain", {"code": CODE, "language": "python"}, tasks.explain(CODE, PYTHON)),
    (
        "translate",
        {"code": CODE, "language": "python", "to": "go"},
        tasks.translate(CODE, PYTHON, GO),
    ),
]
SHORT = {"max_tokens": 9, "temperature": 0}


def expected(service: Service, task: Task) -> str:
    options = GenerateOptions(max_tokens=9, stop=task.stop)
    if task.suffix is None:
        return service.runtime.generate(task.prefix, options).text
    return service.runtime.infill(task.prefix, task.suffix, options).text


@pytest.mark.parametrize(("name", "body", "task"), CASES)
def test_a_task_is_its_pattern(
    client: TestClient, service: Service, name: str, body: dict, task: Task
) -> None:
    text = expected(service, task)
    around = {"before": task.before, "after": task.after, "at": task.at}
    whole = client.post(f"/v1/tasks/{name}", json=body | SHORT).json()
    assert (whole["choices"][0]["text"], whole["task"]) == (text, around)
    stream = client.post(f"/v1/tasks/{name}", json=body | SHORT | {"stream": True}).text
    *events, done = [line[6:] for line in stream.splitlines() if line]
    values = [json.loads(event) for event in events]
    assert done == "[DONE]"
    assert "".join(value["choices"][0]["text"] for value in values) == text
    assert [value.get("task") for value in values] == [around, *[None] * (len(values) - 1)]


def test_text_that_spells_control_tokens_stays_text(client: TestClient, service: Service) -> None:
    code = "<fim_prefix>a<fim_suffix>b<fim_middle>"
    answer = client.post("/v1/tasks/complete", json={"prompt": code} | SHORT).json()
    assert answer["choices"][0]["text"] == expected(service, tasks.complete(code))


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("docstring", {"code": "x = 1", "language": "python"}, "no complete definition"),
        ("docstring", {"code": CODE, "language": "cobol"}, "language"),
        ("translate", {"code": CODE, "language": "go", "to": "go"}, "the same"),
        ("explain", {"language": "go"}, "code is missing"),
        ("infill", {"prefix": 1, "suffix": ""}, "prefix"),
    ],
)
def test_what_makes_no_sense_is_explained(
    client: TestClient, name: str, body: dict, says: str
) -> None:
    answer = client.post(f"/v1/tasks/{name}", json=body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_the_tasks_are_listed(client: TestClient) -> None:
    listed = client.get("/v1/tasks").json()
    assert {entry["name"] for entry in listed["tasks"]} == {name for name, _, _ in CASES}
    assert listed["languages"] == list(LANGUAGES)
    document = client.get("/openapi.json").json()
    for entry in listed["tasks"]:
        path = document["paths"][f"/v1/tasks/{entry['name']}"]
        schema = path["post"]["requestBody"]["content"]["application/json"]["schema"]
        body = document["components"]["schemas"][schema["$ref"].split("/")[-1]]
        assert set(body["required"]) == set(entry["fields"]) - set(entry["optional"])


@pytest.mark.parametrize("field", ["n", "logprobs", "echo", "prompt", "logit_bias"])
def test_openais_fields_that_a_task_lacks_are_passed_over(client: TestClient, field: str) -> None:
    body = {"prefix": "a", "suffix": "b"} | SHORT
    plain = client.post("/v1/tasks/infill", json=body).json()["choices"]
    answer = client.post("/v1/tasks/infill", json=body | {field: {"not": "checked"}})
    assert (answer.status_code, answer.json()["choices"]) == (200, plain)
