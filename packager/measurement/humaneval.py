"""The public HumanEval-infilling format: read strictly, answered by a runtime, scored.

Format: github.com/openai/human-eval-infilling, a gzip file with one JSON object a line. Exact match
and edit similarity need the answer alone; pass@1 runs code that the model wrote, and only where the
caller says so (see packager/measurement/sandbox.py for what that means).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from packager.core.errors import DataError, UsageError
from packager.core.records import Progress, no_progress
from packager.core.strict_json import parse_object
from packager.measurement.infill_samples import edit_similarity, is_exact
from packager.measurement.sandbox import DEFAULT_LIMITS, Containment, Limits, find_containment
from runtimes.generation.runtime import GenerateOptions, Runtime
from runtimes.trust.files import open_plain

# Guessed, to stop a bomb and not a benchmark: the single-line file has 1.6 MB in lines of 3 kB, the
# others of that family about ten times as much.
MAX_LINE_BYTES = 1 << 20
MAX_TOTAL_BYTES = 256 << 20
MAX_TOKENS = 256  # guessed; the longest line that is asked for has 141 characters
SINGLE_LINE = "SingleLineInfilling/"  # specified: how the ids of that benchmark begin


@dataclass(frozen=True, slots=True)
class Task:
    """One task: the middle goes between prompt and suffix. The names are the format's own."""

    task_id: str
    entry_point: str
    prompt: str
    suffix: str
    canonical_solution: str
    test: str

    @property
    def single_line(self) -> bool:
        """Whether one complete line is asked for, so that the answer ends where its line does."""
        return self.task_id.startswith(SINGLE_LINE)

    def program(self, middle: str) -> str:
        """What shows whether `middle` works: it comes to its end, or raises."""
        code = self.prompt + middle + self.suffix
        return f"{code}\n{self.test}\ncheck({self.entry_point})\n"


KEYS = tuple(field.name for field in fields(Task))


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model filled in, and how good it is. passed: None where it was not run."""

    task_id: str
    middle: str
    exact: bool
    similarity: float
    passed: bool | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class InfillingScore:
    """Fractions of `answers`.

    exact: as is_exact in infill_samples.py, white space at the end aside. similarity: the mean of
    edit_similarity there. passed: pass@1 with one greedy answer each, None where nothing was run;
    containment then says how it was run.
    """

    answers: tuple[Answer, ...]
    exact: float
    similarity: float
    passed: float | None
    containment: str | None


def read_tasks(file: Path) -> tuple[Task, ...]:
    """The tasks of a .jsonl.gz file. Raises UsageError that names the line where one is wrong."""
    tasks: dict[str, Task] = {}
    number = 0
    try:
        for number, line in enumerate(_lines(file), start=1):
            if not line.strip():
                continue
            task = _task(line, f"{file}, line {number}")
            if tasks.setdefault(task.task_id, task) is not task:
                raise _bad(f"the task {task.task_id} is given twice", f"{file}, line {number}")
    except (EOFError, zlib.error, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _bad(f"the tasks cannot be read: {reason}", f"{file}, line {number + 1}") from None
    if not tasks:
        raise _bad("the file has no tasks", file)
    return tuple(tasks.values())


def run_infilling(
    runtime: Runtime,
    tasks: tuple[Task, ...],
    *,
    execute: bool = False,
    limit: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress = no_progress,
) -> InfillingScore:
    """Let `runtime` answer `tasks` greedily, and score the answers.

    limit: at most so many tasks, taken evenly over all. execute: also run each answer with the
    task's own tests, within `limits`; code of a model is then run on this machine, contained
    against accidents and not against malice.

    Raises UsageError for a limit below 1, DeviceError where programs cannot be run here, and
    whatever the runtime raises: ContextError where a task does not fit into its context.
    """
    chosen = _evenly(tasks, limit)
    containment = find_containment() if execute else None
    answers: list[Answer] = []
    for task in chosen:
        progress("infill", len(answers), len(chosen))
        answers.append(_answer(runtime, task, containment, limits))
    progress("infill", len(answers), len(chosen))
    return InfillingScore(
        answers=tuple(answers),
        exact=sum(answer.exact for answer in answers) / len(answers),
        similarity=sum(answer.similarity for answer in answers) / len(answers),
        passed=sum(bool(answer.passed) for answer in answers) / len(answers) if execute else None,
        containment=containment.describe() if containment else None,
    )


def _answer(
    runtime: Runtime, task: Task, containment: Containment | None, limits: Limits
) -> Answer:
    """A single line ends with the first line break that the model writes, which is put back."""
    stop = ("\n",) if task.single_line else ()
    options = GenerateOptions(max_tokens=MAX_TOKENS, stop=stop, speculate=False)
    text = runtime.infill(task.prompt, task.suffix, options).text
    middle = text + "\n" if task.single_line else text
    verdict = containment.run(task.program(middle), limits) if containment else None
    return Answer(
        task_id=task.task_id,
        middle=middle,
        exact=is_exact(middle, task.canonical_solution),
        similarity=edit_similarity(middle, task.canonical_solution),
        passed=verdict.passed if verdict else None,
        reason=verdict.reason if verdict else "",
    )


def _evenly(tasks: tuple[Task, ...], limit: int | None) -> tuple[Task, ...]:
    """`limit` of `tasks`: neighbours come from one function, so the first ones show little."""
    if limit is not None and limit < 1:
        raise UsageError(f"the limit is {limit} tasks", expected="1 or more")
    if not tasks:
        raise UsageError("there are no tasks")
    count = min(limit or len(tasks), len(tasks))
    return tuple(tasks[i * len(tasks) // count] for i in range(count))


def _lines(file: Path) -> Iterator[bytes]:
    """The lines of a gzip file, unpacked one by one: of a bomb no more than the limits is held."""
    number = total_bytes = 0
    with open_plain(file, follow=True) as packed, gzip.open(packed, "rb") as stream:
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            total_bytes += len(line)
            where = f"{file}, line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise _bad("a line is too long", where, f"at most {MAX_LINE_BYTES} bytes a line")
            if total_bytes > MAX_TOTAL_BYTES:
                raise _bad("the file is too large", where, f"at most {MAX_TOTAL_BYTES} bytes")
            yield line


def _task(line: bytes, where: str) -> Task:
    try:
        value = parse_object(line, where)
    except DataError as error:
        raise _bad(error.what, where) from None
    if set(value) != set(KEYS):
        raise _bad(f"the keys are {', '.join(value)[:200] or 'none'}", where, ", ".join(KEYS))
    texts: dict[str, str] = {}
    for key, text in value.items():
        if not isinstance(text, str):
            raise _bad(f"{key} is a {type(text).__name__}", where, "a text")
        if not text.isascii():
            _check_characters(key, text, where)
        texts[key] = text
    task = Task(**texts)
    if not task.entry_point.isidentifier():
        raise _bad(f"entry_point is {task.entry_point[:100]!r}", where, "the name of a function")
    return task


def _check_characters(key: str, text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _bad(f"{key} has half of a surrogate pair", where, "whole characters") from None


def _bad(what: str, where: object, expected: str | None = None) -> UsageError:
    return UsageError(
        what,
        where=where,
        expected=expected or "a .jsonl.gz file in the format of HumanEval-infilling",
        remedy="take the file from github.com/openai/human-eval-infilling",
    )
