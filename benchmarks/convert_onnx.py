"""ONNX conversion against transformers' own exporter: `python -m benchmarks.convert_onnx`.

A random checkpoint of about 300 million parameters. Ours to fp32, which is what theirs writes, and
to int4-g32, which it does not. Theirs is transformers.exporters.OnnxExporter (torch.export and
torch.onnx underneath), loading and saving included. Each run is a process of its own, alternating.
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
from packager.checkpoint.reader import read_checkpoint

ROUNDS = 2
OURS = (
    "import sys; from pathlib import Path; from packager.checkpoint.reader import read_checkpoint;"
    "from packager.formats.onnx import format as onnx; m, out = map(Path, sys.argv[1:3]);"
    "onnx.convert(read_checkpoint(m), onnx.variant(sys.argv[3]), out)"
)
THEIRS = (
    "import sys, torch; from transformers import Starcoder2ForCausalLM as Model;"
    "from transformers.exporters import OnnxConfig, OnnxExporter;"
    "model = Model.from_pretrained(sys.argv[1], dtype=torch.float32).eval();"
    "ids = torch.ones((1, 8), dtype=torch.long);"
    "inputs = {'input_ids': ids, 'attention_mask': torch.ones_like(ids)};"
    "exported = OnnxExporter().export(model, inputs, config=OnnxConfig(dynamic=True));"
    "exported.save_pretrained(sys.argv[2])"
)


def ours(model: Path, folder: Path, recipe: str) -> Run:
    """With no hash remembered from an earlier one."""
    environment = os.environ | {"XDG_CACHE_HOME": tempfile.mkdtemp(dir=folder)}
    return timed([sys.executable, "-c", OURS, model, folder / recipe, recipe], environment)


def theirs(model: Path, folder: Path) -> Run:
    """Into a folder made anew."""
    target = folder / "theirs"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    return timed([sys.executable, "-c", THEIRS, model, target])


def main() -> None:
    """Alternate; print medians and ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    results: dict[str, list[Run]] = {"ours": [], "theirs": [], "ours, int4-g32": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = folder / "model"
        make_checkpoint(model)
        parameters = read_checkpoint(model, hash_files=False).geometry.parameters
        for _ in range(arguments.rounds):
            results["ours"].append(ours(model, folder, "fp32"))
            results["theirs"].append(theirs(model, folder))
            results["ours, int4-g32"].append(ours(model, folder, "int4-g32"))
        sizes = {
            name: sum(f.stat().st_size for f in (folder / name).iterdir())
            for name in ("fp32", "theirs", "int4-g32")
        }
    print(json.dumps(summary(results, sizes, parameters), indent=2))


if __name__ == "__main__":
    main()
