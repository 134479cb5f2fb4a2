"""Prompt lookup and warm prefixes: `python -m benchmarks.lookup gguf:MODEL.gguf onnx:FOLDER ...`.

What a model writes decides what a guess is worth, and the weights at hand (random, or the demo's)
write no edits. So the text is given: real edits of this repository's files, by the hashes of both
versions. The old file is the prompt, and a teacher has the sampler choose the new one's ids. Every
forward call is the real backend's, in full; the teacher only raises one logit of each row that it
returns. So the ids are those of the edit by construction, and the time is what a model that writes
this edit would take.

The same for new text (the second half of a file that is no edit of anything, no ids alike at all),
where guessing must cost nothing, and for what the model says by itself, where the ids are compared.
With and without guesses in turns, by one open runtime. And a prompt's first token: cold, and with
all but the last ids in the cache. Needs git, with the history.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtimes import backends
from runtimes.backends.call_costs import SIZES_ROWS
from runtimes.contract import Backend, BackendOptions, SpecialIds, Window
from runtimes.generation.completion import Completion, GenerateOptions, join
from runtimes.generation.runtime import Runtime
from runtimes.prompts.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
# Of 105 edits (the latest of each Python file, 80 to 220 lines of which 2 to 20 % are new), those
# with a prompt that is short enough to run here, in the order of their hashes: old, new.
EDITS = (
    ("runtimes/server/http/guard.py", "51c65ab13648", "0d5d340b738f"),
    ("runtimes/backends/onnx/session.py", "db5c2ac2ec4a", "13615c360b24"),
    ("runtimes/backends/own_cache/kv_cells.py", "f505138ec51f", "192fc729d266"),
    ("runtimes/trust/delta.py", "3fd91559f078", "1a33c87e83cd"),
    ("packager/cli/main.py", "9384341d33f8", "1c5219355ca0"),
    ("packager/core/hash_cache.py", "02e7a11406ef", "1e5af478e531"),
    ("runtimes/server/stream.py", "c5fa0eacb004", "2baa463ef4d3"),
    ("runtimes/server/service.py", "20396aaea235", "2c0bd2a28b64"),
)
NEW_TEXTS = ("inventory.py", "scheduler.go", "ring_log.rs")
FIRST_ID = 40  # specified: StarCoder2's ids below 38 are control ids
CONTEXT_TOKENS = 8192
RAISED = np.float32(1e30)  # above any logit


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt, and what is to come after it; None: what the model says."""

    kind: str
    name: str
    prompt: list[int]
    target: list[int] | None


@dataclass(frozen=True, slots=True)
class Found:
    """One text: tokens a second after the first, without guesses and with them, each run."""

    kind: str
    name: str
    ratio: float
    plain_tokens_per_s: list[float]
    guessing_tokens_per_s: list[float]
    tokens: int
    plain_s: float
    guessing_s: float
    calls: int
    same_ids: bool


class Teacher:
    """A backend that computes all, and whose likeliest next id is then the given one."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.text: list[int] | None = None  # prompt and target
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def forward(self, ids: Sequence[int], last_only: bool = True) -> np.ndarray:
        """As the backend's."""
        logits = self._backend.forward(ids, last_only)
        self.calls += 1
        if self.text is not None:
            end = self._backend.position
            for row, position in enumerate(range(end - len(logits) + 1, end + 1)):
                if position < len(self.text):
                    logits[row, self.text[position]] = RAISED
        return logits


def edits(encode: Callable[[str], list[int]], numbers: Sequence[int]) -> Iterator[Text]:
    """The old file as the prompt, and the whole new one after it."""
    for path, old, new in (EDITS[number] for number in numbers):
        prompt = encode(f"{_blob(old)}\n# The same file, edited:\n")
        yield Text("edit", path, prompt, encode(_blob(new)))


def new_texts(encode: Callable[[str], list[int]], tokens: int) -> Iterator[Text]:
    """Files of the quality gate, from their middle on; and ids of which no two are alike."""
    for name in NEW_TEXTS:
        ids = encode((ROOT / "profiles" / "texts" / name).read_text(encoding="utf-8"))
        half = len(ids) // 2
        yield Text("new text", name, ids[:half], ids[half : half + tokens])
    ids = list(range(FIRST_ID, FIRST_ID + 256 + tokens))
    yield Text("new text", "no id twice", ids[:256], ids[256:])


def _blob(name: str) -> str:
    done = subprocess.run(
        ["git", "cat-file", "blob", name], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"git has no {name}: {done.stderr.strip()}; a whole clone is needed")
    return done.stdout


def compare(runtime: Runtime, teacher: Teacher, text: Text, tokens: int, rounds: int) -> Found:
    """Run one text without guesses and with them, in turns."""
    teacher.text = None if text.target is None else text.prompt + text.target
    length = tokens if text.target is None else len(text.target)
    done: dict[bool, list[Completion]] = {False: [], True: []}
    calls = 0
    join(runtime.run(text.prompt, GenerateOptions(0)))  # the prompt is in the cache for all
    for turn in range(2 * rounds):
        speculate = turn % 2 == 1
        before = teacher.calls
        options = GenerateOptions(length, speculate=speculate)
        done[speculate].append(join(runtime.run(text.prompt, options)))
        calls = teacher.calls - before
    first = done[False][0].ids
    assert text.target is None or list(first) == text.target[: len(first)]
    rates = {
        how: [(len(c.ids) - 1) / c.finish.timings.decode_s for c in found]
        for how, found in done.items()
    }
    seconds = {
        how: statistics.median(c.finish.timings.decode_s for c in found)
        for how, found in done.items()
    }
    return Found(
        text.kind,
        text.name,
        seconds[False] / seconds[True],
        rates[False],
        rates[True],
        len(first),
        seconds[False],
        seconds[True],
        calls,
        all(c.ids == first for c in done[True]),
    )


def first_tokens(runtime: Runtime, teacher: Teacher, tokens: int, rounds: int) -> dict[str, Any]:
    """Seconds to the first token: cold, and with all but the last 64 ids, or one, in the cache."""
    teacher.text = None
    rng = np.random.default_rng(0)
    prompt, other = (rng.integers(FIRST_ID, runtime.backend.vocab_size, (2, tokens))).tolist()
    seconds: dict[str, list[float]] = {"cold": [], "64 new": [], "1 new": []}

    def timed(ids: list[int]) -> float:
        return join(runtime.run(ids, GenerateOptions(1))).finish.timings.first_token_s

    for _ in range(rounds):
        timed(other[:8])  # nothing of the prompt is left
        seconds["cold"].append(timed(prompt))
        for new in (64, 1):
            timed(prompt[:-new] + other[:1])
            seconds[f"{new} new"].append(timed(prompt))
    cold = statistics.median(seconds["cold"])
    ratios = {how: statistics.median(found) / cold for how, found in seconds.items()}
    return {"prompt_tokens": tokens, "over_cold": ratios, "seconds": seconds}


def measure(words: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All of one model."""
    format, _, path = words.partition(":")
    options = BackendOptions(CONTEXT_TOKENS, arguments.threads)
    teacher = Teacher(backends.open_model(format, Path(path), Window(arguments.window), options))
    tokenizer = Tokenizer(arguments.tokenizer, SpecialIds())
    tokens = arguments.tokens
    with Runtime(teacher, tokenizer, SpecialIds()) as runtime:
        texts = [*edits(tokenizer.encode, arguments.edits)]
        texts += new_texts(tokenizer.encode, tokens)
        texts += [Text("its own", t.name, t.prompt, None) for t in texts[-4:-1]]
        found = []
        for text in texts:
            found.append(compare(runtime, teacher, text, tokens, arguments.rounds))
            print(f"{text.kind}: {text.name}: {found[-1].ratio:.2f}", file=sys.stderr, flush=True)
        kinds: dict[str, float] = {}
        for kind in dict.fromkeys(f.kind for f in found):
            of_kind = [f for f in found if f.kind == kind]
            kinds[kind] = sum(f.plain_s for f in of_kind) / sum(f.guessing_s for f in of_kind)
        costs = dict(zip(SIZES_ROWS, runtime.row_costs.estimates_s(), strict=False))
        first = first_tokens(runtime, teacher, arguments.prompt_tokens, arguments.rounds)
    return {
        "model": words,
        "threads": arguments.threads,
        "ratio": kinds,
        "same_ids": all(f.same_ids for f in found),
        "first_token": first,
        "texts": [asdict(f) for f in found],
        "call_s": costs,
    }


def table(result: dict[str, Any]) -> str:
    """For a reader; ratios are of tokens a second with guesses over those without."""
    lines = [f"{result['model']}, {result['threads']} threads", ""]
    lines += ["| text | ratio | without, tokens/s | with | tokens | calls | ids |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in result["texts"]:
        plain, guessing = (
            ", ".join(f"{rate:.1f}" for rate in row[f"{how}_tokens_per_s"])
            for how in ("plain", "guessing")
        )
        ids = "the same" if row["same_ids"] else "others"
        cells = (f"{row['kind']}: {row['name']}", f"{row['ratio']:.2f}", plain, guessing)
        lines.append("| " + " | ".join((*cells, str(row["tokens"]), str(row["calls"]), ids)) + " |")
    for kind, ratio in result["ratio"].items():
        lines.append(f"| **{kind}, all** | **{ratio:.2f}** | | | | | |")
    first = result["first_token"]
    cold = statistics.median(first["seconds"]["cold"])
    warm = ", ".join(f"{how}: {r:.4f}" for how, r in first["over_cold"].items() if how != "cold")
    lines += ["", f"first token of {first['prompt_tokens']}: {cold:.3f} s cold; over that, {warm}"]
    calls = ", ".join(f"{rows}: {s * 1e3:.1f}" for rows, s in result["call_s"].items())
    return "\n".join([*lines, f"ms of a call by rows, some only hoped: {calls}"])


def main() -> None:
    """Every model in turn: a table, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", metavar="FORMAT:PATH")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "examples/demo/tokenizer.json")
    parser.add_argument("--window", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    every = range(len(EDITS))
    parser.add_argument("--edits", type=int, nargs="*", choices=every, default=every)
    parser.add_argument("--tokens", type=int, default=256, help="of texts that are no edits")
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    results = []
    for words in arguments.models:
        results.append(measure(words, arguments))
        print(table(results[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
