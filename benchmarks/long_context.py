"""131,072 tokens through every backend: `python -m benchmarks.long_context`.

StarCoder2-3B's shape cut to 4 layers, random weights, the window of 4,096, opened with a context of
131,072 as `--context` would. For each quantised recipe: does memory stay flat past the window, does
a token at 100,000 take as long as one just past the window (two open models in turns, one at each
place; `control` is the same two before one of them went on, since where a model lies in memory
can count for more than depth), are the logits at 20,480 as right as those inside the window, and
are those at the end what the same text gives from position 0. The unquantised recipes, whose error
would show a window that is off by one, go to 20,480 alone; `off by one` is how far a window of
4,097 is from the reference (with all formats alone).

Takes about an hour on two cores and 4 GB of disk. Whatever is finished is kept under --work, and a
run that was ended goes on from there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dequantised import Dequantised
from benchmarks.long_run import CHUNK_TOKENS, Job, check_tokens, compare, ids_of
from benchmarks.rope_angles import angle_errors
from packager.calibration.sequences import SequenceOptions
from packager.checkpoint.reader import read_checkpoint
from packager.checkpoint.reference import final_states, head_logits
from packager.checkpoint.tensors import TensorSource, open_tensors
from packager.core.atomic import write_json
from packager.core.records import Artifact
from packager.formats.gguf import format as gguf
from packager.formats.gptq import format as gptq
from packager.formats.onnx import format as onnx
from runtimes.contract import Window

SIZE, LAYERS = "3b", 4
TOKENS, DEEP_TOKENS = 131_072, 100_000  # specified: what is asked for
MB = 1e6
# Enough for 12,288 columns, no more: how well it is calibrated is not the question here.
SAMPLING = SequenceOptions(sequences=26, length_tokens=512, long_sequences=0)
SOURCES = Path(__file__).parents[1] / "examples/demo/calibration"
ORIGINAL, OFF_BY_ONE, DEQUANTISED = "original", "off by one", "dequantised"


@dataclass(frozen=True, slots=True)
class Part:
    """One recipe to run. expected: what its logits are compared with."""

    format: str
    recipe: str
    expected: str = ORIGINAL
    far: bool = False
    way: str | None = None

    @property
    def name(self) -> str:
        """What its results are kept under."""
        return " ".join([self.format, self.recipe, *([self.way] if self.way else [])])


# The last: float32 computes from what the codes stand for, the one way of GPTQ's that is exact.
PARTS = (
    Part("gguf", "Q4_K_M", far=True),
    Part("onnx", "int4-g32", far=True),
    Part("gptq", "w4g128", far=True),
    Part("gguf", "F32"),
    Part("onnx", "fp32"),
    Part("gptq", "w4g128", DEQUANTISED, way="float32"),
)


class Bench:
    """The folder with the model, its artifacts, the expected logits and what was found."""

    def __init__(self, work: Path, tokens: int, threads: int) -> None:
        self.work, self.tokens, self.threads = work, tokens, threads
        work.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, Any] = {}
        model = work / "model"
        if not model.exists():
            words = ["--size", SIZE, "--layers", LAYERS, "--dtype", "bfloat16", "--out", model]
            command = [sys.executable, "-m", "examples.synthesise", *map(str, words)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        self.checkpoint = read_checkpoint(model)
        self.window = self.checkpoint.window.size_tokens
        self.ids = ids_of(self.checkpoint.geometry.vocab, tokens)

    def once(self, name: str, find: Callable[[], Any]) -> None:
        """Keep what `find` finds in a file `name`, unless it is there."""
        file = self.work / f"{name} {self.tokens}.json"
        if not file.exists():
            print(name, file=sys.stderr, flush=True)
            write_json(file, find())
        self.found[name] = json.loads(file.read_text())

    def run(self, part: Part) -> dict[str, object]:
        """Convert, run in a process of its own, and give back the disk of an unquantised file."""
        artifact = self.artifact(part)
        files = tuple(str(file) for file in self.expected(part.expected))
        job = Job(
            part.format, str(artifact), self.window, self.checkpoint.geometry.layers, self.tokens,
            files, DEEP_TOKENS * self.tokens // TOKENS if part.far else None, part.way,
            self.threads,
        )  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.long_run", json.dumps(asdict(job))]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        if not part.far and part.way is None:
            shutil.rmtree(self.folder(part))
        return json.loads(done.stdout.splitlines()[-1])

    def folder(self, part: Part) -> Path:
        """Where an artifact lies."""
        return self.work / f"{part.format}-{part.recipe}"

    def artifact(self, part: Part) -> Path:
        """What the backend opens, converted if it is not there."""
        module = {"gguf": gguf, "onnx": onnx, "gptq": gptq}[part.format]
        out = self.folder(part)
        if not out.exists():
            convert: Callable[..., Artifact] = module.convert
            more: dict[str, Any] = {}
            if part.format == "gptq":
                more = {"calibration": SOURCES, "sampling": SAMPLING}
            convert(self.checkpoint, module.variant(part.recipe), out, **more)
        return out / gguf.FILE_NAME if part.format == "gguf" else out

    def expected(self, kind: str) -> tuple[Path, Path]:
        """Files of the reference's logits (T, vocab): the window's end, and the far stretch."""
        files = tuple(self.work / f"{kind.replace(' ', '-')}-{i}.npy" for i in range(2))
        if not all(file.exists() for file in files):
            tensors: TensorSource = open_tensors(self.checkpoint)
            if kind == DEQUANTISED:
                tensors = Dequantised(self.artifact(PARTS[-1]), self.checkpoint.geometry)
            more = 1 if kind == OFF_BY_ONE else 0
            stops = check_tokens(self.window)
            states = final_states(
                self.checkpoint, tensors, [np.array(self.ids[: stops[1]])],
                window=Window(self.window + more),
            )[0]  # fmt: skip
            rows = min(CHUNK_TOKENS, self.window)
            for file, stop in zip(files, stops, strict=True):
                np.save(file, head_logits(self.checkpoint, tensors, states[stop - rows : stop]))
        return files

    def off_by_one(self) -> dict[str, float]:
        """How far a window of one token more is from the reference, in the far stretch."""
        pair = [self.expected(kind)[1] for kind in (OFF_BY_ONE, ORIGINAL)]
        return compare(*(np.load(file, mmap_mode="r") for file in pair))

    def angles(self) -> dict[str, Any]:
        """Of RoPE, where the text ends, where steps are timed, and where training ends."""
        geometry, trained = self.checkpoint.geometry, self.checkpoint.context_tokens
        positions = [self.window, trained, DEEP_TOKENS, TOKENS - 1]
        return angle_errors(positions, self.window, geometry.head_dim, geometry.rope_theta)


def table(found: dict[str, Any], parts: list[Part]) -> str:
    """What was found, for a reader."""
    far = [
        "step, 100k / 4k", "control", "over control", "step at 4k, ms (10 to 90 %)",
        "step at 100k, ms", "chunk, 100k / 4k", "keys and values, MB", "grown since 4k",
        "most memory over the most of 8k to 12k, MB",
        "rms at the end against from 0",
    ]  # fmt: skip
    near = ["rms inside", "rms at 20k", "ratio", "greatest", "nats inside", "nats at 20k"]
    angles, rows = found["angles"], {p.name: _near_cells(found[p.name]) for p in parts}
    if off := found.get(OFF_BY_ONE):
        cells = ["", f"{off['rms']:.3g}", "", f"{off['largest']:.2g}", "", f"{off['nats']:.2g}"]
        rows[OFF_BY_ONE] = cells
    blocks = [
        _table("", far, {p.name: _far_cells(found[p.name]) for p in parts if p.far}),
        _table("", near, rows),
        _table(
            "RoPE, greatest error in radians at",
            [f"{position:,}" for position in angles["positions"]],
            {name: [f"{e:.2g}" for e in errors] for name, errors in angles["errors"].items()},
        ),
    ]
    return "\n\n".join(blocks)


def _far_cells(run: dict[str, Any]) -> list[str]:
    steps, (before, after) = run["steps"], run["key_values_bytes"]
    return [
        f"{steps['ratio']:.3f}",
        f"{run['control']['ratio']:.3f}",
        f"{steps['ratio'] / run['control']['ratio']:.3f}",
        *(_spread(steps[side]) for side in ("near_s", "far_s")),
        f"{run['chunk_s'][1] / run['chunk_s'][0]:.3f}",
        *(f"{size / MB:.1f}" for size in (after, after - before, run["grown_bytes"])),
        f"{run['from_start']['rms']:.2g}",
    ]


def _near_cells(run: dict[str, Any]) -> list[str]:
    inside, past = run["inside"], run["past"]
    return [
        f"{inside['rms']:.3g}", f"{past['rms']:.3g}", f"{past['rms'] / inside['rms']:.2f}",
        f"{past['largest']:.2g}", f"{inside['nats']:.2g}", f"{past['nats']:.2g}",
    ]  # fmt: skip


def _spread(seconds: list[float]) -> str:
    low, middle, high = np.percentile(seconds, [10, 50, 90]) * 1e3
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _table(corner: str, head: list[str], rows: dict[str, list[str]]) -> str:
    lines = [[corner, *head], ["---"] * (1 + len(head))]
    lines += [[name, *cells] for name, cells in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Run what is not known yet, and show all of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--formats", default="gguf,onnx,gptq", help="some of gguf,onnx,gptq")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("artifacts/long_context"))
    parser.add_argument("--json", action="store_true", help="all that was found, as JSON")
    arguments = parser.parse_args()
    parts = [part for part in PARTS if part.format in arguments.formats.split(",")]
    bench = Bench(arguments.work, arguments.tokens, arguments.threads)
    bench.once("angles", bench.angles)
    for part in parts:
        bench.once(part.name, lambda part=part: bench.run(part))
    if parts == list(PARTS):
        bench.once(OFF_BY_ONE, bench.off_by_one)
    print(json.dumps(bench.found, indent=2) if arguments.json else table(bench.found, parts))


if __name__ == "__main__":
    main()
