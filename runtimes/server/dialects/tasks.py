"""The tasks over HTTP: one path each, with OpenAI's sampling fields and OpenAI's answer.

The patterns are in runtimes/prompts/tasks.py. `task` in the answer says what belongs around the
text and where it goes; a stream's first event has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated

import msgspec
from msgspec import Meta

from runtimes.generation.completion import Chunk, Finish
from runtimes.prompts import tasks
from runtimes.prompts.languages import NAMES, language_named
from runtimes.prompts.tasks import Task
from runtimes.server.dialects import fields, openai
from runtimes.server.dialects.endpoint import (
    STRING,
    CompletionEndpoint,
    Dialect,
    InfoEndpoint,
    failure,
    list_of,
    object_of,
)
from runtimes.server.http.body import LARGEST
from runtimes.server.request import (
    CompletionRequest,
    Model,
    PreparedRequest,
    Result,
    ServerDefaults,
    TextPrompt,
)
from runtimes.server.service import Service

Language = Annotated[str, Meta(extra_json_schema={"enum": list(NAMES)})]


class TaskBody(openai.SharedBody, kw_only=True):
    """A task's own fields, and how it is generated."""

    def task(self) -> Task:
        """The pattern, filled in; raises UsageError."""
        raise NotImplementedError


class CompleteTaskBody(TaskBody, kw_only=True):
    """A text."""

    prompt: str

    def task(self) -> Task:
        return tasks.complete(self.prompt)


class InfillTaskBody(TaskBody, kw_only=True):
    """The text around a gap."""

    prefix: str
    suffix: str

    def task(self) -> Task:
        return tasks.infill(self.prefix, self.suffix)


class DocstringTaskBody(TaskBody, kw_only=True):
    """Code. `line` counts from 1."""

    code: str
    language: Language
    line: Annotated[int, Meta(ge=1, le=LARGEST)] | None = None

    def task(self) -> Task:
        return tasks.docstring(self.code, language_named(self.language), self.line or 1)


class ExplainTaskBody(TaskBody, kw_only=True):
    """Code."""

    code: str
    language: Language

    def task(self) -> Task:
        return tasks.explain(self.code, language_named(self.language))


class TranslateTaskBody(TaskBody, kw_only=True):
    """Code, and the language to write it in."""

    code: str
    language: Language
    to: Language

    def task(self) -> Task:
        languages = language_named(self.language), language_named(self.to)
        return tasks.translate(self.code, *languages)


ANSWER = object_of(
    *openai.ANSWER["required"],
    "task",
    **openai.ANSWER["properties"],
    task=object_of(
        "before", "after", "at",
        before=STRING, after=STRING, at={"type": ["integer", "null"]},
    ),
)  # fmt: skip


# name: (summary, body)
TASKS: dict[str, tuple[str, type[TaskBody]]] = {
    "complete": ("Continue a text", CompleteTaskBody),
    "infill": ("Fill in between a prefix and a suffix", InfillTaskBody),
    "docstring": (
        "Document the first definition at or after a line (from 1, the default)",
        DocstringTaskBody,
    ),
    "explain": ("Continue a comment that explains the code", ExplainTaskBody),
    "translate": ("The code in another language", TranslateTaskBody),
}


def read(body: TaskBody, defaults: ServerDefaults) -> CompletionRequest:
    """Body to request. Control tokens that the pattern spells out stay text."""
    task = body.task()
    prompt = TextPrompt(task.prefix, task.suffix, fields.context_of(body.starpack))
    request = openai.read_shared(body, defaults, (prompt,))
    stop = tuple(dict.fromkeys((*request.options.stop, *task.stop)))
    return replace(request, options=replace(request.options, stop=stop))


class TaskView(openai.CompletionView):
    """A text_completion with `task` beside it."""

    def __init__(self, body: TaskBody, prepared: PreparedRequest, model: Model) -> None:
        super().__init__(body, prepared, model)
        task = body.task()
        self._task = {"before": task.before, "after": task.after, "at": task.at}
        self._is_told = False

    def whole(self, results: list[Result]) -> dict[str, object]:
        """See View."""
        return {**super().whole(results), "task": self._task}

    def chunk(self, index: int, chunk: Chunk) -> Iterator[dict[str, object]]:
        """See View."""
        return self._with_task(super().chunk(index, chunk))

    def finish(self, index: int, finish: Finish) -> Iterator[dict[str, object]]:
        """See View."""
        return self._with_task(super().finish(index, finish))

    def _with_task(self, events: Iterable[dict[str, object]]) -> Iterator[dict[str, object]]:
        for event in events:
            yield event if self._is_told else {**event, "task": self._task}
            self._is_told = True


def _list(_service: Service, _body: None) -> object:
    about = [
        {"name": name, "summary": summary, **_own_fields(body)}
        for name, (summary, body) in TASKS.items()
    ]
    return {"tasks": about, "languages": list(NAMES)}


def _own_fields(body: type[TaskBody]) -> dict[str, list[str]]:
    own = [f for f in msgspec.structs.fields(body) if f.name not in TaskBody.__struct_fields__]
    return {
        "fields": [field.name for field in own],
        "optional": [field.name for field in own if not field.required],
    }


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
    completion_endpoints=tuple(
        CompletionEndpoint(f"/v1/tasks/{name}", summary, body, ANSWER, read, TaskView)
        for name, (summary, body) in TASKS.items()
    ),
    info_endpoints=(
        InfoEndpoint("GET", "/v1/tasks", "The tasks, and the languages they know", LIST, _list),
    ),
    failure=failure,
)
