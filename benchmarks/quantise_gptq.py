"""GPTQ of one layer as in StarCoder2-3B: `python -m benchmarks.quantise_gptq [--peer PYTHON]`.

Random weights, hidden states of a decaying spectrum (an embedding made so), 8 x 512 tokens to
calibrate on and 8 x 512 others for the errors. Each quantiser runs in a process of its own: wall
time is that of quantising alone, without imports and without loading or saving the model; the peak
is that of the process. `--peer` is a Python that has GPTQModel 7.6 (its own environment: it patches
transformers), with its defaults and two workers. Errors are relative, |X (Q - W)| / |X W|, per
matrix, on held-out inputs X of the full-precision layer, which are the same for both.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import Run, timed
from packager.checkpoint.reader import read_checkpoint
from packager.checkpoint.reference import final_states
from packager.checkpoint.tensors import open_tensors
from packager.formats.quant.blocks import Blocks, quantize
from packager.formats.quant.gptq_layout import Packed, unpack_codes, unpack_zeros

HIDDEN, VOCAB = 3072, 4096
SHAPE = dict(layers=1, hidden=HIDDEN, heads=24, kv_heads=2, ffn=12_288, vocab=VOCAB, window=4096)
SEQUENCES, LENGTH = 8, 512
BITS, GROUP = 4, 128
MODULES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.c_fc", "mlp.c_proj",
)  # fmt: skip
PEER = """
import json, sys, time
from gptqmodel import GPTQModel, QuantizeConfig
model, ids, out = sys.argv[1:]
batches = [dict(input_ids=i, attention_mask=[1] * len(i)) for i in json.load(open(ids))]
model = GPTQModel.load(model, QuantizeConfig(bits=4, group_size=128), device="cpu")
started, cpu = time.perf_counter(), time.process_time()
model.quantize(batches, batch_size=1)
times = dict(quantise_s=time.perf_counter() - started, cpu_s=time.process_time() - cpu)
model.save(out)
json.dump(times, open(out + "/time.json", "w"))
"""


def make(folder: Path) -> None:
    """The checkpoint, and the ids of `calibration.json` and `held_out.json`."""
    from tests.support.tiny import random_tensors, write_checkpoint, write_weights

    write_checkpoint(folder / "model", **SHAPE | dict(hidden=96, ffn=96), context=16_384)
    config = folder / "model" / "config.json"
    values = json.loads(config.read_text())
    values |= dict(hidden_size=HIDDEN, intermediate_size=SHAPE["ffn"], torch_dtype="bfloat16")
    config.write_text(json.dumps(values))
    rng = np.random.default_rng(0)
    tensors = random_tensors(rng, 1, HIDDEN, 2 * HIDDEN // 24, SHAPE["ffn"], VOCAB, True)
    # coordinates of falling variance, then mixed, with channels of different size
    decay = np.arange(1, HIDDEN + 1) ** -0.5
    mixed = (rng.standard_normal((VOCAB, HIDDEN)) * decay) @ rng.standard_normal((HIDDEN, HIDDEN))
    mixed *= np.exp(0.5 * rng.standard_normal(HIDDEN))
    tensors["model.embed_tokens.weight"] = (mixed / mixed.std()).astype(np.float32)
    write_weights(folder / "model", tensors, "bfloat16")
    for name in ("calibration", "held_out"):
        ids = rng.integers(0, VOCAB, (SEQUENCES, LENGTH))
        (folder / f"{name}.json").write_text(json.dumps(ids.tolist()))


def ours(folder: Path) -> None:
    """Quantise the layer as the converter does, with its own ids for the calibration text."""
    from packager.formats.gptq import layers
    from packager.formats.quant.gptq_layout import Recipe

    checkpoint = read_checkpoint(folder / "model")
    sequences = [np.array(ids) for ids in json.loads((folder / "calibration.json").read_text())]
    out = folder / "ours"
    out.mkdir()
    started, cpu = time.perf_counter(), time.process_time()
    layers.quantize_layers(
        checkpoint, open_tensors(checkpoint), Recipe(BITS, GROUP, True), sequences, out,
        lambda what, done, total: None,
    )  # fmt: skip
    times = dict(quantise_s=time.perf_counter() - started, cpu_s=time.process_time() - cpu)
    (out / "time.json").write_text(json.dumps(times))


def errors(folder: Path, peer: bool) -> dict[str, dict[str, float]]:
    """Relative output error of each matrix by who quantised it."""
    checkpoint = read_checkpoint(folder / "model")
    tensors = open_tensors(checkpoint)
    inputs: dict[str, list[np.ndarray]] = {}
    held_out = [np.array(ids) for ids in json.loads((folder / "held_out.json").read_text())]
    final_states(
        checkpoint, tensors, held_out, observe=lambda name, x: inputs.setdefault(name, []).append(x)
    )
    found: dict[str, dict[str, float]] = {}
    for module in MODULES:
        name = f"model.layers.0.{module}.weight"
        weight, x = tensors.read(name), np.concatenate(inputs.pop(name))
        settings = dict(symmetric=True, scale_type=np.float16)
        candidates = {
            "nearest": quantize(weight, BITS, GROUP, search=False, **settings).weights(),
            "nearest + search": quantize(weight, BITS, GROUP, search=True, **settings).weights(),
            "ours": our_weights(folder / "ours", module),
        }
        if peer:
            candidates["GPTQModel"] = peer_weights(folder / "peer", module)
        scale = np.linalg.norm(x @ weight.T)
        for who, candidate in candidates.items():
            error = np.linalg.norm(x @ (candidate - weight).T) / scale
            found.setdefault(who, {})[module] = float(error)
    return found


def our_weights(folder: Path, module: str) -> np.ndarray:
    """What the finished layer's file stands for, float32 (outputs, inputs)."""
    with np.load(folder / "layer-0.npz") as arrays:
        return dequantized(Packed(*(arrays[f"{module}.{name}"] for name in Packed.__slots__)))


def peer_weights(folder: Path, module: str) -> np.ndarray:
    """The same of a folder that GPTQModel saved."""
    from safetensors import safe_open

    prefix = f"model.layers.0.{module}."
    (file,) = folder.glob("*.safetensors")
    # torch: other tensors of the file may be bfloat16, which numpy lacks
    with safe_open(file, "pt") as stored:
        arrays = {name: stored.get_tensor(prefix + name) for name in Packed.__slots__}
    arrays["scales"] = arrays["scales"].float()
    return dequantized(Packed(**{name: array.numpy() for name, array in arrays.items()}))


def dequantized(packed: Packed) -> np.ndarray:
    """Weights in any order of groups, float32 (outputs, inputs)."""
    # each input as a block of its own, with its group's scale and zero
    scales = packed.scales.T.astype(np.float32)[:, packed.g_idx]
    zeros = unpack_zeros(packed.qzeros, BITS)[:, packed.g_idx]
    return Blocks(unpack_codes(packed.qweight, BITS), scales, zeros).weights()


def main() -> None:
    """Run both, print times, peaks and errors as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", type=Path, help="a Python that has GPTQModel")
    parser.add_argument("--step", choices=("make", "ours", "errors"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="keep the files here")
    arguments = parser.parse_args()
    if arguments.step == "make":
        return make(arguments.folder)
    if arguments.step == "ours":
        return ours(arguments.folder)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        step = [sys.executable, "-m", "benchmarks.quantise_gptq", "--folder", folder, "--step"]
        if not (folder / "held_out.json").exists():
            timed([*step, "make"])
        runs: dict[str, Run] = {"ours": timed([*step, "ours"])}
        if arguments.peer:
            environment = os.environ | {"GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1"}
            folder = folder.absolute()
            command = [arguments.peer.absolute(), "-c", PEER, folder / "model"]
            command += [folder / "calibration.json", folder / "peer"]
            runs["peer"] = timed(command, environment, folder)  # where it leaves its logs
        result = {
            who: {
                **json.loads((folder / who / "time.json").read_text()),
                "process_s": run.wall_s,
                "peak_bytes": run.peak_bytes,
            }
            for who, run in runs.items()
        }
        print(
            json.dumps({"runs": result, "errors": errors(folder, bool(arguments.peer))}, indent=2)
        )
    return None


if __name__ == "__main__":
    main()
