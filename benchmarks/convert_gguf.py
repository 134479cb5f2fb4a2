"""GGUF conversion against llama.cpp's own.

`python -m benchmarks.convert_gguf --tokenizer FILE --peer LLAMA_QUANTIZE`: a random checkpoint of
about 300 million parameters, to Q4_K_M, alternating ours and theirs. Theirs is
convert_hf_to_gguf.py from the engine's pinned source, then llama-quantize, built from the same
source (vendor/llama.cpp of the sdist in the cache) as its users do, for this machine's processor:

    cmake -B DIR -DCMAKE_BUILD_TYPE=Release SOURCE && cmake --build DIR --target llama-quantize

Each run is a process of its own; times and peak memory are those of the process (for theirs: the
sums, and the larger). On a busy machine the time on the processor says more than wall time.
`--tokenizer` must be StarCoder2's own tokenizer.json, because theirs accepts tokenizers that it
knows. The tensors of both files must be the same to the byte.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from gguf import GGUFReader

from benchmarks.harness import Run, make_checkpoint, summary, timed
from packager.checkpoint.reader import read_checkpoint
from packager.core.atomic import cache_folder
from packager.engine.build import SDIST, unpack

ROUNDS = 3
OURS = (
    "import sys; from pathlib import Path; from packager.checkpoint.reader import read_checkpoint;"
    "from packager.formats.gguf import format as gguf; m, out = map(Path, sys.argv[1:]);"
    "gguf.convert(read_checkpoint(m), gguf.variant('Q4_K_M'), out)"
)


def ours(model: Path, folder: Path) -> tuple[Run, Path]:
    """One pass, with no hash remembered from an earlier one."""
    environment = os.environ | {"XDG_CACHE_HOME": tempfile.mkdtemp(dir=folder)}
    run = timed([sys.executable, "-c", OURS, model, folder / "ours"], environment)
    return run, folder / "ours" / "model.gguf"


def theirs(model: Path, folder: Path, source: Path, peer: Path) -> tuple[Run, Path]:
    """Two passes with a file between them: in bfloat16, since float16 would lose small weights."""
    half, target = folder / "half.gguf", folder / "theirs.gguf"
    script = source / "vendor" / "llama.cpp" / "convert_hf_to_gguf.py"
    first = timed([sys.executable, script, model, "--outfile", half, "--outtype", "bf16"])
    second = timed([peer, half, target, "Q4_K_M", len(os.sched_getaffinity(0))])
    peak = max(first.peak_bytes, second.peak_bytes)
    return Run(first.wall_s + second.wall_s, first.cpu_s + second.cpu_s, peak), target


def check_same(ours: Path, theirs: Path) -> None:
    """Ends the program where a tensor differs in type or in a byte."""
    found, expected = ({t.name: t for t in GGUFReader(file).tensors} for file in (ours, theirs))
    odd = sorted(found.keys() ^ expected.keys()) or [
        name
        for name, tensor in found.items()
        if tensor.tensor_type != expected[name].tensor_type
        or not np.array_equal(tensor.data, expected[name].data)
    ]
    if odd:
        raise SystemExit(f"{len(odd)} tensors differ, {odd[0]} first")


def main() -> None:
    """Alternate, print medians, spreads and ratios as a table and as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    results: dict[str, list[Run]] = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = folder / "model"
        make_checkpoint(model)
        shutil.copyfile(arguments.tokenizer, model / "tokenizer.json")
        parameters = read_checkpoint(model, hash_files=False).geometry.parameters
        source = unpack(cache_folder() / "sources" / SDIST, folder / "source")
        for _ in range(arguments.rounds):
            run, file = ours(model, folder)
            results["ours"].append(run)
            run, other = theirs(model, folder, source, arguments.peer)
            results["theirs"].append(run)
        sizes = {"ours": file.stat().st_size, "theirs": other.stat().st_size}
        print(json.dumps(summary(results, sizes, parameters), indent=2))
        check_same(file, other)


if __name__ == "__main__":
    main()
