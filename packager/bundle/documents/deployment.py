"""What an operator starts from: systemd units, a container recipe, clients' configurations.

The texts are in templates/deploy/; only Python's version, the port, the folder of the
installation and whether an engine makes machine code are filled in.
"""

from __future__ import annotations

from collections.abc import Set

from packager.bundle.documents.render import TEMPLATES, render
from packager.engine.target import Target

FOLDER = "deploy"
INSTALLED = "/opt/starcoder2"  # where the README has bundles installed
PORT = 8012  # what `run serve` listens at unless told otherwise
# Tried with PR_SET_MDWE, the kernel's own form of MemoryDenyWriteExecute: GGUF and ONNX answer,
# torch cannot "create a primitive".
MAKES_CODE = frozenset({"gptq"})
GGUF_ONLY = frozenset({"tabby/tabby.json"})  # for Tabby's own llama.cpp


def deploy_files(formats: Set[str], target: Target) -> dict[str, str]:
    """Path in the bundle to text."""
    values = {
        "python": target.python,
        "port": PORT,
        "folder": INSTALLED,
        "deny_made_code": "no" if formats & MAKES_CODE else "yes",
    }
    names = sorted(
        file.relative_to(TEMPLATES).as_posix()
        for file in (TEMPLATES / FOLDER).rglob("*")
        if file.is_file()
    )
    return {
        name: render(name, **values)
        for name in names
        if "gguf" in formats or name.removeprefix(f"{FOLDER}/") not in GGUF_ONLY
    }
