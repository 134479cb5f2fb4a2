"""HumanEval-infilling: a strict reader, and scores that follow from the answers."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from packager.core.errors import UsageError
from packager.measurement import humaneval
from packager.measurement.humaneval import Task, read_tasks, run_infilling
from runtimes.errors import ContextError
from runtimes.generation.runtime import Runtime
from runtimes.prompts.fim import infill_ids
from tests.support.runtime_toys import IDS, ToyBackend, toy_tokenizer
from tests.support.tiny import TOKENS

ADD = Task(
    task_id="SingleLineInfilling/Toy/0/L0",
    entry_point="add",
    prompt="def add(a, b):\n",
    suffix="\n",
    canonical_solution="    return a + b\n",
    test="def check(f):\n    assert f(1, 2) == 3",
)
SIGN = Task(
    task_id="SingleLineInfilling/Toy/1/L1",
    entry_point="sign",
    prompt="def sign(x):\n    if x < 0:\n",
    suffix="    return x > 0\n",
    canonical_solution="        return -1\n",
    test="def check(f):\n    assert [f(-2), f(0), f(2)] == [-1, 0, 1]",
)
SPAN = Task(
    task_id="RandomSpanInfilling/Toy/2/1",
    entry_point="f",
    prompt="def f(x):\n    y = ",
    suffix="\n    return y\n",
    canonical_solution="x\n    y += 1",
    test="def check(f):\n    assert f(1) == 2",
)
TASKS = (ADD, SIGN, SPAN)


def write(file: Path, tasks: Sequence[Mapping[str, object]]) -> Path:
    lines = (json.dumps(dict(task)) for task in tasks)
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    return file


def answering(folder: Path, answers: Mapping[Task, str], context_tokens: int = 300) -> Runtime:
    """A runtime that says, for each task's prompt, what is written here, and then ends."""
    tokenizer = toy_tokenizer(folder)
    known = {
        tuple(infill_ids(tokenizer.encode, IDS, task.prompt, task.suffix)): tokenizer.encode(text)
        for task, text in answers.items()
    }

    def logits(_position: int, ids: Sequence[int]) -> np.ndarray:
        row = np.zeros(TOKENS, np.float32)
        if IDS.fim_middle in ids:
            end = ids.index(IDS.fim_middle) + 1
            answer = known[tuple(ids[:end])]
            said = len(ids) - end
            row[answer[said] if said < len(answer) else IDS.endoftext] = 9.0
        return row

    backend = ToyBackend(logits, window=context_tokens, context_tokens=context_tokens)
    return Runtime(backend, tokenizer, IDS)


def test_reading_gives_what_was_written(tmp_path) -> None:
    file = write(tmp_path / "tasks.jsonl.gz", [asdict(task) for task in TASKS])
    assert read_tasks(file) == TASKS


def test_the_public_file_is_read_and_its_own_answers_pass() -> None:
    """Where that file is at hand; it is not ours to distribute, and our own tasks stand for it."""
    file = Path(os.environ.get("STARPACK_TEST_DATA", "/nowhere"), "eval")
    file /= "HumanEval-SingleLineInfilling.jsonl.gz"
    tasks = read_tasks(file) if file.exists() else TASKS
    assert len(tasks) == (1033 if file.exists() else 3)
    containment = humaneval.find_containment()
    for task in tasks[:: 1 + len(tasks) // 6]:
        assert task.single_line == task.canonical_solution.endswith("\n")
        assert containment.run(task.program(task.canonical_solution)).passed
        assert not containment.run(task.program("    raise ValueError\n")).passed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": 5}, "test is a int"),
        ({"suffix": None}, "suffix is a NoneType"),
        ({"more": "text"}, "the keys are task_id, .*more"),
        ({"entry_point": "f); import os; (f"}, "entry_point is"),
        ({"prompt": "\ud800"}, "half of a surrogate pair"),
        ({"task_id": ADD.task_id}, "given twice"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, change: dict[str, object], message: str) -> None:
    file = write(tmp_path / "x.jsonl.gz", [asdict(ADD), asdict(SIGN) | change])
    with pytest.raises(UsageError, match=message) as caught:
        read_tasks(file)
    assert caught.value.where == f"{file}, line 2"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"plain text", "cannot be read: Not a gzipped file"),
        (gzip.compress(b"{}\n" * 99, mtime=0)[:-9], "cannot be read|the keys are none"),
        (gzip.compress(json.dumps(asdict(ADD)).encode())[:-12], "cannot be read: Compressed"),
        (gzip.compress(b"\n\n", mtime=0), "no tasks"),
        (gzip.compress(b"[1]", mtime=0), "the JSON holds a list"),
        (gzip.compress(b"\xff\xfe\x00", mtime=0), "not valid JSON"),
        (gzip.compress(b"[" * 100_000, mtime=0), "not valid JSON"),
        (gzip.compress(b'{"test": "", "test": ""}', mtime=0), "given twice"),
        (gzip.compress(b"{" + b" " * (1 << 20), mtime=0), "a line is too long"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, data: bytes, message: str) -> None:
    file = tmp_path / "x.jsonl.gz"
    file.write_bytes(data)
    with pytest.raises(UsageError, match=message):
        read_tasks(file)


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_tasks(tmp_path / "missing.jsonl.gz")


def test_a_bomb_is_left_off_early(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(humaneval, "MAX_TOTAL_BYTES", 1 << 20)
    file = tmp_path / "bomb.jsonl.gz"
    file.write_bytes(
        gzip.compress(b"\n" * (32 << 20), mtime=0)
    )  # 32 kB that become 32 MiB of empty lines
    assert file.stat().st_size < 1 << 16
    with pytest.raises(UsageError, match="the file is too large"):
        read_tasks(file)


def test_scores_follow_from_the_answers(tmp_path) -> None:
    answers = {
        ADD: "    return a + b  \nprint(1)",  # cut at its line; exact, white space at the end aside
        SIGN: "        return ~0",  # works, and is not exact
        SPAN: "x",  # neither
    }
    score = run_infilling(answering(tmp_path, answers), TASKS, execute=True)
    assert [answer.middle for answer in score.answers] == [
        "    return a + b  \n",
        "        return ~0\n",
        "x",
    ]
    assert [answer.exact for answer in score.answers] == [True, False, False]
    assert [answer.passed for answer in score.answers] == [True, True, False]
    assert score.answers[2].reason.startswith("AssertionError")
    assert score.exact == pytest.approx(1 / 3) and score.passed == pytest.approx(2 / 3)
    nearness = [1, 1 - 2 / 17, 1 / len(SPAN.canonical_solution)]
    assert score.similarity == pytest.approx(sum(nearness) / 3)
    assert score.containment is not None and "audit hooks" in score.containment


def test_nothing_is_run_unless_it_is_asked_for(tmp_path, monkeypatch) -> None:
    def refuse() -> None:
        raise AssertionError("a program was to be run")

    monkeypatch.setattr(humaneval, "find_containment", refuse)
    runtime = answering(tmp_path, {task: task.canonical_solution for task in TASKS})
    score = run_infilling(runtime, TASKS)
    assert (score.exact, score.similarity, score.passed, score.containment) == (1, 1, None, None)
    assert all(answer.passed is None for answer in score.answers)


def test_a_limit_takes_tasks_from_all_over(tmp_path) -> None:
    seen: list[tuple[str, int, int]] = []
    runtime = answering(tmp_path, {task: "" for task in TASKS})
    score = run_infilling(runtime, TASKS, limit=2, progress=lambda *step: seen.append(step))
    assert [answer.task_id for answer in score.answers] == [ADD.task_id, SIGN.task_id]
    assert seen == [("infill", 0, 2), ("infill", 1, 2), ("infill", 2, 2)]
    with pytest.raises(UsageError, match="limit is 0"):
        run_infilling(runtime, TASKS, limit=0)
    with pytest.raises(UsageError, match="no tasks"):
        run_infilling(runtime, ())


def test_a_task_that_does_not_fit_is_an_error_and_not_a_miss(tmp_path) -> None:
    with pytest.raises(ContextError):
        run_infilling(answering(tmp_path, {ADD: ""}, context_tokens=8), (ADD,))
