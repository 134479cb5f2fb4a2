"""An example of every command, by its words: `--help` shows them, and a test parses them."""

from __future__ import annotations

EXAMPLES = {
    "inspect": "models/starcoder2-3b",
    "fetch": "bigcode/starcoder2-3b --revision main --out models/starcoder2-3b",
    "wheels": "--out artifacts",
    "calibrate": "models/starcoder2-3b --sources src/ --out importance.gguf",
    "convert": "models/starcoder2-3b --formats gguf:Q4_K_M,onnx --out artifacts",
    "profile": "models/starcoder2-3b --formats gguf:Q4_K_M --budget inline",
    "select": "models/starcoder2-3b --formats gguf:Q8_0,gguf:Q4_K_M --device tesla-t4",
    "pack": "models/starcoder2-3b --formats gguf --variants 2 --archive starcoder2.tar",
    "bundle": "examples/demo --out artifacts",
    "quality": "models/starcoder2-3b --formats gguf:Q4_K_M --held-out src/",
    "plan": "--device rtx-3060-12gb --budget inline --explain",
    "matrix": "--devices tesla-t4,l4-24gb --budgets inline --csv fleet.csv",
    "device list": "",
    "device show": "tesla-t4",
    "device detect": "--kind cpu --out artifacts/device.json",
    "device calibrate": "--device artifacts/device.json",
    "estimate run": "3b --device tesla-t4 --formats gguf:Q4_K_M --budget inline",
    "estimate validate": "",
    "archive": "artifacts/bundle --out starcoder2.tar --split 4G",
    "unpack": "starcoder2.tar --out bundle",
    "join": "starcoder2.tar.index.json",
    "diff": "old/bundle artifacts/bundle --out delta",
    "verify": "artifacts/bundle --public-key release.pub",
    "sign": "artifacts/bundle --key release.pem",
}
