"""The tasks over HTTP: one path each, with OpenAI's sampling fields and OpenAI's answer.

The patterns are in runtimes/prompts/tasks.py. `task` in the answer says what belongs around the
text and where it goes; a stream's first event has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from runtimes.generation.completion import Chunk, Finish
from runtimes.prompts import tasks
from runtimes.prompts.languages import NAMES, language_named
from runtimes.prompts.tasks import Task
from runtimes.server.dialects import fields, openai
from runtimes.server.dialects.endpoint import (
    STRING,
    Body,
    Completing,
    Dialect,
    Telling,
    failure,
    given,
    list_of,
    object_of,
)
from runtimes.server.http.schema import Schema
from runtimes.server.request import Ask, Model, Plan, Result, Rules, TextPrompt
from runtimes.server.service import Service

LANGUAGE = {"type": "string", "enum": list(NAMES)}
_OPENAI_ONLY = frozenset({"model", "prompt", "suffix", "n", "logprobs", "echo", "logit_bias"})
SHARED = {k: v for k, v in openai.BODY["properties"].items() if k not in _OPENAI_ONLY}
ANSWER = object_of(
    *openai.ANSWER["required"],
    "task",
    **openai.ANSWER["properties"],
    task=object_of(
        "before", "after", "at",
        before=STRING, after=STRING, at={"type": ["integer", "null"]},
    ),
)  # fmt: skip


def _docstring(body: Body) -> Task:
    line = int(given(body, "line", 1))
    return tasks.docstring(body["code"], language_named(body["language"]), line)


def _explain(body: Body) -> Task:
    return tasks.explain(body["code"], language_named(body["language"]))


def _translate(body: Body) -> Task:
    languages = language_named(body["language"]), language_named(body["to"])
    return tasks.translate(body["code"], *languages)


# name: (summary, its fields, those that may be left out, body to task)
TASKS: dict[str, tuple[str, dict[str, Schema], frozenset[str], Callable[[Body], Task]]] = {
    "complete": (
        "Continue a text",
        {"prompt": STRING}, frozenset(), lambda body: tasks.complete(body["prompt"]),
    ),
    "infill": (
        "Fill in between a prefix and a suffix",
        {"prefix": STRING, "suffix": STRING}, frozenset(),
        lambda body: tasks.infill(body["prefix"], body["suffix"]),
    ),
    "docstring": (
        "Document the first definition at or after a line (from 1, the default)",
        {"code": STRING, "language": LANGUAGE, "line": fields.whole_number(1)},
        frozenset({"line"}), _docstring,
    ),
    "explain": (
        "Continue a comment that explains the code",
        {"code": STRING, "language": LANGUAGE}, frozenset(), _explain,
    ),
    "translate": (
        "The code in another language",
        {"code": STRING, "language": LANGUAGE, "to": LANGUAGE}, frozenset(), _translate,
    ),
}  # fmt: skip


def _endpoint(name: str) -> Completing:
    summary, own, optional, read_task = TASKS[name]

    def read(body: Body, rules: Rules) -> Ask:
        """The pattern is never looked at for control tokens that are spelt out."""
        task = read_task(body)
        ask = openai.read(_shared(body) | {"prompt": ""}, rules)
        options = replace(ask.options, stop=tuple(dict.fromkeys((*ask.options.stop, *task.stop))))
        prompt = TextPrompt(task.prefix, task.suffix, fields.context_of(body))
        return replace(ask, prompts=(prompt,), options=options)

    def view(body: Body, plan: Plan, model: Model) -> TaskView:
        return TaskView(_shared(body), plan, model, read_task(body))

    required = [field for field in own if field not in optional]
    body = object_of(*required, **own, **SHARED)
    return Completing(f"/v1/tasks/{name}", summary, body, ANSWER, read, view)


def _shared(body: Body) -> Body:
    """OpenAI's fields that a task has; the others were not checked, so they are as if unknown."""
    return {name: value for name, value in body.items() if name in SHARED}


class TaskView(openai.CompletionView):
    """A text_completion with `task` beside it."""

    def __init__(self, body: Body, plan: Plan, model: Model, task: Task) -> None:
        super().__init__(body, plan, model)
        self._task = {"before": task.before, "after": task.after, "at": task.at}
        self._is_told = False

    def whole(self, results: list[Result]) -> dict[str, object]:
        """See View."""
        return {**super().whole(results), "task": self._task}

    def chunk(self, run: int, chunk: Chunk) -> Iterator[dict[str, object]]:
        """See View."""
        return self._with_task(super().chunk(run, chunk))

    def finish(self, run: int, finish: Finish) -> Iterator[dict[str, object]]:
        """See View."""
        return self._with_task(super().finish(run, finish))

    def _with_task(self, events: Iterable[dict[str, object]]) -> Iterator[dict[str, object]]:
        for event in events:
            yield event if self._is_told else {**event, "task": self._task}
            self._is_told = True


def _list(_service: Service, _body: Body) -> object:
    about = [
        {"name": name, "summary": summary, "fields": list(own), "optional": sorted(optional)}
        for name, (summary, own, optional, _) in TASKS.items()
    ]
    return {"tasks": about, "languages": list(NAMES)}


LIST = object_of(
    "tasks", "languages",
    tasks=list_of(
        object_of(
            "name", "summary", "fields", "optional",
            name=STRING, summary=STRING, fields=list_of(STRING), optional=list_of(STRING),
        )
    ),
    languages=list_of(STRING),
)  # fmt: skip
DIALECT = Dialect(
    name="tasks",
    completing=tuple(map(_endpoint, TASKS)),
    telling=(Telling("GET", "/v1/tasks", "The tasks, and the languages they know", LIST, _list),),
    failure=failure,
)
