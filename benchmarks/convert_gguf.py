"""GGUF conversion against llama.cpp's own: `python -m benchmarks.convert_gguf --tokenizer FILE`.

A random checkpoint of about 300 million parameters, to Q4_K_M, alternating ours and theirs. Theirs
is convert_hf_to_gguf.py from the engine's pinned source, then llama_model_quantize, which is all
that llama-quantize calls. Each run is a process of its own; wall time and peak memory are those of
the process (for theirs: the sum, and the larger). `--tokenizer` must be StarCoder2's own
tokenizer.json, because theirs accepts tokenizers that it knows.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import Run, make_checkpoint, summary, timed
from packager.checkpoint import read_checkpoint
from packager.files import cache_folder
from packager.wheels import SDIST, unpack

ROUNDS = 3
OURS = (
    "import sys; from pathlib import Path; from packager.checkpoint import read_checkpoint;"
    "from packager.formats import gguf; m, out = map(Path, sys.argv[1:]);"
    "gguf.convert(read_checkpoint(m), gguf.variant('Q4_K_M'), out)"
)
QUANTIZE = (
    "import sys, os; from runtimes.llama import engine; api = engine().api;"
    "p = api.llama_model_quantize_default_params(); p.ftype = 15;"
    "p.nthread = len(os.sched_getaffinity(0));"
    "sys.exit(api.llama_model_quantize(*map(str.encode, sys.argv[1:]), p))"
)


def ours(model: Path, folder: Path) -> tuple[Run, Path]:
    """One pass, with no hash remembered from an earlier one."""
    environment = os.environ | {"XDG_CACHE_HOME": tempfile.mkdtemp(dir=folder)}
    run = timed([sys.executable, "-c", OURS, model, folder / "ours"], environment)
    return run, folder / "ours" / "model.gguf"


def theirs(model: Path, folder: Path, source: Path) -> tuple[Run, Path]:
    """Two passes with a file in half precision between them."""
    half, target = folder / "half.gguf", folder / "theirs.gguf"
    script = source / "vendor" / "llama.cpp" / "convert_hf_to_gguf.py"
    first = timed([sys.executable, script, model, "--outfile", half, "--outtype", "f16"])
    second = timed([sys.executable, "-c", QUANTIZE, half, target])
    peak = max(first.peak_bytes, second.peak_bytes)
    return Run(first.wall_s + second.wall_s, peak), target


def main() -> None:
    """Alternate, print medians, spreads and ratios as a table and as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, required=True)
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
            run, other = theirs(model, folder, source)
            results["theirs"].append(run)
        sizes = {"ours": file.stat().st_size, "theirs": other.stat().st_size}
    print(json.dumps(summary(results, sizes, parameters), indent=2))


if __name__ == "__main__":
    main()
