"""A folder of GPTQ weights without a calibration: any codes will do."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from packager.checkpoint.config import read_config
from packager.checkpoint.shapes import tensor_shapes
from packager.formats.quant.blocks import Blocks
from packager.formats.quant.gptq_layout import pack
from tests.fuzz.target import json_bytes
from tests.support.tiny import write_checkpoint

GROUP = 32
SETTINGS = {
    "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False, "quant_method": "gptq",
    "checkpoint_format": "gptq", "pack_dtype": "int32", "lm_head": False, "meta": {"head_bits": 16},
}  # fmt: skip
WORDS = (*SETTINGS, "gptq_v2", "head_bits", "quantization_config", "rope_parameters", "rope_theta")


def write_gptq(folder: Path) -> Path:
    """config.json, quantize_config.json and model.safetensors of a model of one layer."""
    from safetensors.numpy import save_file

    write_checkpoint(folder, layers=1, hidden=32, heads=2, kv_heads=1, ffn=32)
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in tensor_shapes(read_config(folder).geometry).items():
        module = name.rpartition(".")[0]
        if "proj.weight" in name or "c_fc.weight" in name:
            groups = (shape[0], shape[1] // GROUP)
            packed = pack(
                Blocks(
                    rng.integers(0, 16, shape, np.uint8),
                    rng.random(groups).astype(np.float16).astype(np.float32),
                    rng.integers(1, 16, groups, np.uint8),
                ),
                4,
            )
            for array in ("qweight", "qzeros", "scales", "g_idx"):
                tensors[f"{module}.{array}"] = np.ascontiguousarray(getattr(packed, array))
        else:
            tensors[name] = rng.random(shape, np.float32).astype(np.float16)
    save_file(tensors, folder / "model.safetensors")
    (folder / "quantize_config.json").write_bytes(json_bytes(SETTINGS))
    (folder / "tokenizer.json").unlink()
    return folder
