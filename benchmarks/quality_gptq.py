"""What 4 bits cost in quality: `python -m benchmarks.quality_gptq --peer-python PYTHON`.

Ours, rounding to nearest and GPTQModel at the same bits and groups, on the demo checkpoint and on a
random one of trained structure (structured_model.py). All that calibrate do so on the same ids,
drawn from the demo's training files; all are judged on its held-out files. Every candidate's
matrices, dequantised, are put into eager float32 transformers; norms, biases, embedding and head
stay the checkpoint's, so that nothing but the matrices differs.

kl_nats, kl_p99_nats, top1: divergence from the unquantised model position by position, and how
often the likeliest token is the same. nearer: in how many of the texts ours diverges less than that
candidate. middles_as_float: how many of the unquantised model's greedy middles, each the filling of
a missing line, are the candidate's own too, to the last token; middles_exact: how many are the
file's own line. Both without decoding: greedy decoding gives a text if and only if each of its
tokens is the likeliest after those before it. middle_nats: per token of the file's own lines.

PYTHON is the one of an environment of its own, since GPTQModel patches transformers; `make
build/peers/.installed` makes it, as build/peers/bin/python. Without one, GPTQModel's rows are left
out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

from benchmarks.dequantised import Dequantised
from benchmarks.structured_model import write_structured
from examples.corpus import SourceFile, load_corpus
from examples.evaluate_demo import Gap, draw_gaps
from packager.calibration.sequences import SequenceOptions, draw_sequences
from packager.checkpoint.reader import read_checkpoint
from packager.checkpoint.tensors import TensorSource, open_tensors
from packager.core.records import Checkpoint
from packager.formats.gptq import format as gptq
from packager.formats.quant import blocks
from packager.formats.quant.gptq_layout import Recipe
from packager.measurement.window_proof import divergence, log_softmax
from runtimes.prompts.fim import infill_ids
from runtimes.prompts.tokenizer import Tokenizer

DEMO = Path("examples/demo")
TEXTS, TEXT_TOKENS = 24, 1024  # four windows each
HOLES, PREFIX_CHARS, SUFFIX_CHARS, MIDDLE_TOKENS = 300, 800, 300, 24
ENTROPY_CHARS = 12_000  # of the text that the structured model's entropy is set on
PEER_SCRIPT = Path(__file__).absolute().with_name("gptqmodel_peer.py")
# What GPTQModel 7.6.0 offers at equal bits, beyond its defaults: a search of scales ("mse", 2.4 is
# the power its own tests use), and which column is rounded first. Its damping is 0.05, as ours.
PEERS: dict[str, dict[str, object]] = {
    "GPTQModel": {},
    "GPTQModel, mse": {"mse": 2.4},
    "GPTQModel, no order, mse": {"mse": 2.4, "act_group_aware": False},
    "GPTQModel, desc_act": {"desc_act": True, "act_group_aware": False},
    "GPTQModel, desc_act, mse": {"mse": 2.4, "desc_act": True, "act_group_aware": False},
    "GPTQModel, static groups, desc_act, mse": {
        "mse": 2.4, "desc_act": True, "act_group_aware": False, "static_groups": True,
    },
}  # fmt: skip

Matrices = dict[str, np.ndarray]
"""Float32 (outputs, inputs) by name."""
Followed = tuple[bool, np.ndarray]
"""Whether each token of a middle is the likeliest, and the loss of each in nats."""


@dataclass(frozen=True, slots=True)
class Hole:
    """A prompt for a missing line, the file's own line and the unquantised model's, all as ids."""

    prompt: list[int]
    truth: list[int]
    greedy: list[int]


@dataclass(frozen=True, slots=True)
class Score:
    """A candidate against the unquantised model; kl_nats of each text, and of all positions."""

    text_nats: np.ndarray
    kl_nats: float
    kl_p99_nats: float
    top1: float
    middles_as_float: int
    middles_exact: int
    middle_nats: float


class Judge:
    """The unquantised model's answers, and the model to put other matrices into."""

    def __init__(self, checkpoint: Checkpoint, files: list[SourceFile]) -> None:
        self.model = transformers.Starcoder2ForCausalLM.from_pretrained(
            checkpoint.path, attn_implementation="eager", dtype=torch.float32
        ).eval()
        self.tokenizer = Tokenizer(checkpoint.path / "tokenizer.json", checkpoint.special_ids)
        self.special = checkpoint.special_ids
        texts = [self.tokenizer.encode(file.text)[:TEXT_TOKENS] for file in files]
        texts = [ids for ids in texts if len(ids) == TEXT_TOKENS]
        self.texts = random.Random(0).sample(texts, TEXTS)
        self.expected = [log_softmax(self.logits(ids)).astype(np.float32) for ids in self.texts]
        self.holes = [self._hole(gap) for gap in draw_gaps(files, HOLES)]

    def logits(self, ids: list[int], keep: int = 0) -> np.ndarray:
        """Float32 logits (T, vocab), of the last `keep` positions, 0 for all."""
        with torch.inference_mode():
            found = self.model(torch.tensor([ids]), use_cache=False, logits_to_keep=keep)
        return found.logits[0].numpy()

    def score(self, matrices: Matrices) -> Score:
        """Put `matrices` in and compare."""
        with torch.no_grad():
            for name, values in matrices.items():
                self.model.get_parameter(name).copy_(torch.from_numpy(values))
        nats, same = [], []
        for ids, expected in zip(self.texts, self.expected, strict=True):
            logits = self.logits(ids)
            nats.append(divergence(expected.astype(np.float64), log_softmax(logits)))
            same.append(expected.argmax(-1) == logits.argmax(-1))
        truths, greedy = zip(*map(self._follow_both, self.holes), strict=True)
        return Score(
            text_nats=np.array([part.mean() for part in nats]),
            kl_nats=float(np.mean(nats)),
            kl_p99_nats=float(np.quantile(nats, 0.99)),
            top1=float(np.mean(same)),
            middles_as_float=sum(likeliest for likeliest, _ in greedy),
            middles_exact=sum(likeliest for likeliest, _ in truths),
            middle_nats=float(np.concatenate([losses for _, losses in truths]).mean()),
        )

    def _hole(self, gap: Gap) -> Hole:
        encode = self.tokenizer.encode
        prefix, suffix = gap.prefix[-PREFIX_CHARS:], gap.suffix[:SUFFIX_CHARS]
        prompt = [self.special.endoftext, *infill_ids(encode, self.special, prefix, suffix)]
        truth = [*encode(gap.indent + gap.line), self.special.endoftext]
        return Hole(prompt, truth, self._greedy(prompt))

    def _step(self, ids: list[int], cache: transformers.DynamicCache, keep: int) -> np.ndarray:
        """Log-probabilities (keep, vocab) at the end of `ids`, which `cache` takes in."""
        with torch.inference_mode():
            found = self.model(
                torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=keep
            )
        return log_softmax(found.logits[0].numpy())

    def _greedy(self, prompt: list[int]) -> list[int]:
        """The middle that the model writes: to its end, the line's, or MIDDLE_TOKENS."""
        cache = transformers.DynamicCache(config=self.model.config)
        middle: list[int] = []
        ids = prompt
        while len(middle) < MIDDLE_TOKENS:
            ids = [int(self._step(ids, cache, keep=1)[-1].argmax())]
            middle += ids
            if ids[0] == self.special.endoftext or "\n" in self.tokenizer.decode(ids):
                break
        return middle

    def _follow_both(self, hole: Hole) -> tuple[Followed, Followed]:
        """How the model follows the file's own middle, and the unquantised model's."""
        cache = transformers.DynamicCache(config=self.model.config)
        first = self._step(hole.prompt, cache, keep=1)
        return tuple(
            follow(np.concatenate([first, self._step(middle, deepcopy(cache), keep=0)]), middle)
            for middle in (hole.truth, hole.greedy)
        )


def follow(logs: np.ndarray, middle: list[int]) -> Followed:
    """`logs` (T + 1, vocab) are those before each of the T tokens of `middle`, and after it."""
    logs = logs[:-1]
    likeliest = bool((logs.argmax(-1) == middle).all())
    return likeliest, -logs[np.arange(len(middle)), middle]


def candidates(
    checkpoint: Checkpoint,
    recipe: str,
    sampling: SequenceOptions,
    sources: Path,
    out: Path,
    peer: Path | None,
) -> Iterator[tuple[str, Matrices]]:
    """(name, matrices) of every way to quantise, the unquantised ones and ours first."""
    tensors, settings = open_tensors(checkpoint), gptq.parse(recipe)
    names = [n for n in tensors.names() if ".layers." in n and len(tensors.shape(n)) == 2]
    yield "unquantised", read_all(tensors, names)
    folder = out / "ours"
    if not folder.exists():
        gptq.convert(
            checkpoint, gptq.variant(recipe), folder, calibration=sources, sampling=sampling
        )
    yield "ours", read_all(Dequantised(folder, checkpoint.geometry), names)
    for name, search in (("nearest", False), ("nearest, scales searched", True)):
        yield name, {n: nearest(tensors.read(n), settings, search) for n in names}
    if peer is None:
        return
    ids = [sequence.tolist() for sequence in draw_sequences(checkpoint, sources, sampling, 1)[0]]
    (out / "ids.json").write_text(json.dumps(ids))
    for name, options in PEERS.items():
        folder = out / name.replace(", ", "-").replace(" ", "-")
        if not (folder / "quantize_config.json").exists():
            run_peer(peer, checkpoint.path, out / "ids.json", settings, options, folder)
        yield name, read_all(Dequantised(folder, checkpoint.geometry), names)


def nearest(weight: np.ndarray, recipe: Recipe, search: bool) -> np.ndarray:
    """Rounded without calibration, scales spanning each group or searched."""
    return blocks.quantize(
        weight, recipe.bits, recipe.group, symmetric=recipe.symmetric, search=search,
        scale_type=np.float16,
    ).weights()  # fmt: skip


def read_all(source: TensorSource, names: list[str]) -> Matrices:
    """Whole tensors by name."""
    return {name: source.read(name) for name in names}


def run_peer(
    python: Path, model: Path, ids: Path, recipe: Recipe, options: dict[str, object], out: Path
) -> None:
    """Quantise with GPTQModel in a process of its own; its last words where it fails."""
    settings = dict(bits=recipe.bits, group_size=recipe.group, sym=recipe.symmetric) | options
    # with more workers than cores it crashes on two
    environment = os.environ | {"GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1"}
    words = [python.absolute(), PEER_SCRIPT, model.absolute(), ids.absolute()]
    done = subprocess.run(
        [*words, json.dumps(settings), out.absolute()],
        cwd=out.parent,  # where it leaves its logs
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"GPTQModel with {settings} failed:\n{done.stderr[-2000:]}")


def write_sources(folder: Path, files: list[SourceFile]) -> None:
    """The training files that are not tests, as a folder to calibrate on."""
    folder.mkdir(exist_ok=True)
    for i, file in enumerate(files):
        if "test" not in file.path:
            (folder / f"{i:04}.py").write_text(file.text, encoding="utf-8")


def compare(model: Path, arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Scores of all candidates for one checkpoint, by name."""
    checkpoint = read_checkpoint(model)
    judge = Judge(checkpoint, load_corpus()[1])
    sampling = SequenceOptions(seed=arguments.seed)
    out = folder / f"{model.name}-{arguments.recipe}-{arguments.seed}"
    out.mkdir(exist_ok=True)
    scores: dict[str, Score] = {}
    for name, matrices in candidates(
        checkpoint, arguments.recipe, sampling, folder / "sources", out, arguments.peer_python
    ):
        scores[name] = judge.score(matrices)
        print(name, scores[name].kl_nats, flush=True)
    rows = {}
    for name, score in scores.items():
        row = {key: getattr(score, key) for key in score.__slots__ if key != "text_nats"}
        nearer = int((scores["ours"].text_nats < score.text_nats).sum())
        rows[name] = row | {"nearer": nearer}
    lengths = [len(hole.greedy) for hole in judge.holes]
    return {"holes": HOLES, "texts": TEXTS, "greedy_tokens": float(np.mean(lengths)), "rows": rows}


def main() -> None:
    """Compare on both models and print the scores as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", type=Path, help="a Python that has GPTQModel 7.6.0")
    parser.add_argument("--models", nargs="*", default=("demo", "structured"))
    parser.add_argument("--recipe", default="w4g128")
    parser.add_argument("--seed", type=int, default=0, help="of the calibration sequences")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep what is quantised here, and use it")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        train = load_corpus()[0]
        write_sources(folder / "sources", train)
        structured = folder / "structured"
        if not structured.exists():
            write_structured(structured, DEMO, train[0].text[:ENTROPY_CHARS])
        models = {"demo": DEMO, "structured": structured}
        found = {name: compare(models[name], arguments, folder) for name in arguments.models}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
