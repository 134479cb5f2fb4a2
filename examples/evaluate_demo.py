"""Evaluate the demo checkpoint and write its card: `python -m examples.evaluate_demo`.

On files that were held out of its training: the loss per token, and how often it infills a line
exactly. Runs through the same conversion and runtime as any other model, unquantised.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from examples.corpus import SourceFile, load_corpus
from packager.checkpoint.reader import read_checkpoint
from packager.core.atomic import write_json
from packager.formats.gguf import format as gguf
from runtimes.backends.gguf.backend import open_backend
from runtimes.contract import BackendOptions
from runtimes.generation.runtime import GenerateOptions, Runtime
from runtimes.host.limits import default_threads
from runtimes.prompts.fim import infill_ids
from runtimes.prompts.tokenizer import Tokenizer

SEED = 1
SAMPLES = 300
SHOWN = 6
LINE_TOKENS = 48
PREFIX_CHARS, SUFFIX_CHARS = 1500, 500
LOSS_CHARS = 6000
CARD = Path(__file__).parent / "demo_card.md"


@dataclass(frozen=True, slots=True)
class Gap:
    """A line taken out of a held-out file."""

    path: str
    prefix: str
    indent: str
    line: str
    suffix: str


def draw_gaps(files: list[SourceFile], count: int) -> list[Gap]:
    """`count` lines that are not blank, from any file alike."""
    rng = random.Random(SEED)
    gaps: list[Gap] = []
    while len(gaps) < count:
        file = rng.choice(files)
        lines = file.text.split("\n")
        index = rng.randrange(1, len(lines))
        line = lines[index].strip()
        if not line:
            continue
        # the whole line is taken out, its indent too, as HumanEval's single-line infilling does
        at = sum(len(text) + 1 for text in lines[:index])
        prefix, suffix = file.text[:at], file.text[at + len(lines[index]) :]
        indent = lines[index][: lines[index].index(line)]
        gaps.append(Gap(file.path, prefix[-PREFIX_CHARS:], indent, line, suffix[:SUFFIX_CHARS]))
    return gaps


def held_out_loss(runtime: Runtime, files: list[SourceFile]) -> dict[str, float]:
    """Mean loss over the beginning of every held-out file."""
    nats = tokens = chars = 0.0
    for file in files:
        text = file.text[:LOSS_CHARS]
        scores = runtime.score([0, *runtime.tokenizer.encode(text)])
        nats, tokens, chars = nats - scores.sum(), tokens + len(scores), chars + len(text)
    return {"nats_per_token": nats / tokens, "nats_per_character": nats / chars, "tokens": tokens}


def line_loss(runtime: Runtime, gaps: list[Gap], with_suffix: bool) -> float:
    """Mean loss of the missing lines in nats per token, given what is before, or both sides."""
    encode, nats, tokens = runtime.tokenizer.encode, 0.0, 0
    for gap in gaps:
        line = encode(gap.indent + gap.line)
        if with_suffix:
            prompt = infill_ids(encode, runtime.special_ids, gap.prefix, gap.suffix)
        else:
            prompt = encode(gap.prefix)
        scores = runtime.score([runtime.special_ids.endoftext, *prompt, *line])
        nats, tokens = nats - scores[-len(line) :].sum(), tokens + len(line)
    return nats / tokens


def evaluate(model: Path) -> dict[str, object]:
    """All figures, and the first few infilled lines as they came."""
    checkpoint = read_checkpoint(model)
    _, held_out, corpus_sha256 = load_corpus()
    options = BackendOptions(checkpoint.context_tokens, default_threads(), flash_attention=False)
    line_end = GenerateOptions(max_tokens=LINE_TOKENS, stop=("\n",))
    with tempfile.TemporaryDirectory() as folder:
        artifact = gguf.convert(checkpoint, gguf.variant("F32"), Path(folder) / "f32")
        backend = open_backend(artifact.path / gguf.FILE_NAME, checkpoint.window, options)
        tokenizer = Tokenizer(model / "tokenizer.json", checkpoint.special_ids)
        with Runtime(backend, tokenizer, checkpoint.special_ids) as runtime:
            loss = held_out_loss(runtime, held_out)
            gaps = draw_gaps(held_out, SAMPLES)
            infilled = [runtime.infill(g.prefix, g.suffix, line_end).text for g in gaps]
            continued = [runtime.generate(g.prefix, line_end).text for g in gaps]
            losses = [line_loss(runtime, gaps, with_suffix) for with_suffix in (True, False)]

    def share(answers: list[str]) -> float:
        exact = sum(a.strip() == g.line for a, g in zip(answers, gaps, strict=True))
        return exact / len(gaps)

    shown = [
        {"path": g.path, "before": g.prefix[-160:], "line": g.line, "infilled": answer}
        for g, answer in zip(gaps[:SHOWN], infilled, strict=False)
    ]
    return {
        "corpus_sha256": corpus_sha256,
        "held_out_files": len(held_out),
        "held_out_loss": loss,
        "lines": SAMPLES,
        "line_exact_match_infill": share(infilled),
        "line_exact_match_without_suffix": share(continued),
        "line_nats_per_token_infill": losses[0],
        "line_nats_per_token_without_suffix": losses[1],
        "examples": shown,
    }


def write_card(model: Path, result: dict[str, object]) -> None:
    """The model card: its text from demo_card.md, its figures from the evaluation."""
    training = json.loads((model / "training.json").read_bytes())
    loss = result["held_out_loss"]
    shown = "\n\n".join(
        f"`{e['path']}`, the line `{e['line']}`:\n\n```python\n{e['before']}⟦{e['infilled']}⟧\n```"
        for e in result["examples"]
    )
    text = CARD.read_text(encoding="utf-8").format(
        steps=training["steps"],
        seed=training["seed"],
        corpus=training["corpus_sha256"],
        nats=loss["nats_per_token"],
        per_character=loss["nats_per_character"],
        tokens=int(loss["tokens"]),
        files=result["held_out_files"],
        infill=result["line_exact_match_infill"],
        without=result["line_exact_match_without_suffix"],
        infill_nats=result["line_nats_per_token_infill"],
        without_nats=result["line_nats_per_token_without_suffix"],
        lines=result["lines"],
        examples=shown,
    )
    (model / "README.md").write_text(text, encoding="utf-8")


def main() -> None:
    """Evaluate, then write evaluation.json and README.md beside the weights."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("examples/demo"))
    model = parser.parse_args().model
    result = evaluate(model)
    write_json(model / "evaluation.json", result)
    write_card(model, result)
    print(json.dumps({k: v for k, v in result.items() if k != "examples"}, indent=2))


if __name__ == "__main__":
    main()
