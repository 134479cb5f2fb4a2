"""One of GPTQModel's kernels: `-m benchmarks.gpu_check.peer_child FOLDER KERNEL PROVIDER ROWS`.

Runs in GPTQModel's environment. Loads the folder by GPTQModel's own loader and times the matrices
of all its layers; prints (rows, seconds of a layer, as a graph or not, error) for each of ROWS.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from gptqmodel import BACKEND, GPTQModel

from benchmarks.gpu_check.product_times import MARK, relative_error, series_s
from runtimes.backends.gptq.files import Files, read_config

MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
           "mlp.c_fc", "mlp.c_proj")  # fmt: skip
CHECKED = "self_attn.o_proj"  # whose product is compared with float32


def main() -> None:
    """Load, time, compare, print."""
    folder, kernel, provider, rows = Path(sys.argv[1]), *sys.argv[2:4], json.loads(sys.argv[4])
    # what suits all kernels on a GPU; on a CPU GPTQModel takes bfloat16 itself
    types = {"dtype": torch.float16} if provider == "cuda" else {}
    model = GPTQModel.load(str(folder), device=provider, backend=BACKEND[kernel], **types).model
    layers = [
        [layer.get_submodule(name) for name in MODULES] for layer in model.eval().model.layers
    ]
    device = model.device
    kind = torch.float16 if provider == "cuda" else torch.bfloat16
    config = read_config(folder)
    shape = (config.hidden, config.hidden)
    codes = Files(folder, config).codes([f"model.layers.0.{CHECKED}"], [shape])
    random, found = torch.Generator().manual_seed(0), []
    with torch.inference_mode():
        for count in rows:
            inputs = {
                width: torch.randn(count, width, generator=random).to(device, kind)
                for width in {module.in_features for layer in layers for module in layer}
            }
            calls = [
                (lambda module=module, x=inputs[module.in_features]: module(x))
                for layer in layers
                for module in layer
            ]
            seconds, captured = series_s(calls, device)
            x = inputs[config.hidden]
            wanted = x.float().cpu() @ codes.weights().T + codes.bias
            error = relative_error(layers[0][MODULES.index(CHECKED)](x), wanted)
            found.append((count, seconds / len(layers), captured, error))
    print(MARK + json.dumps(found))


if __name__ == "__main__":
    main()
