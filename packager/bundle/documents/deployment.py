"""What an operator starts from: systemd units, a container recipe, clients' configurations.

The texts are in bundle/files/deploy/; only Python's version, the port, the folder of the
installation and whether an engine makes machine code are filled in.
"""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from packager.engine.target import Target

TEMPLATES = Path(__file__).parents[1] / "files" / "deploy"
INSTALLED = "/opt/starcoder2"  # where the README has bundles installed
PORT = 8012  # what `run serve` listens at unless told otherwise
# Tried with PR_SET_MDWE, the kernel's own form of MemoryDenyWriteExecute: GGUF and ONNX answer,
# torch cannot "create a primitive".
MAKES_CODE = frozenset({"gptq"})
GGUF_ONLY = frozenset({"tabby/tabby.json"})  # for Tabby's own llama.cpp


def deploy_files(formats: Set[str], target: Target) -> dict[str, str]:
    """Path in the bundle to text."""
    values = {
        "@PYTHON@": target.python,
        "@PORT@": str(PORT),
        "@DIR@": INSTALLED,
        "@DENY@": "no" if formats & MAKES_CODE else "yes",
    }
    files = {}
    for file in sorted(path for path in TEMPLATES.rglob("*") if path.is_file()):
        path = file.relative_to(TEMPLATES).as_posix()
        if path in GGUF_ONLY and "gguf" not in formats:
            continue
        text = file.read_text(encoding="utf-8")
        for name, value in values.items():
            text = text.replace(name, value)
        files[f"deploy/{path}"] = text
    return files
