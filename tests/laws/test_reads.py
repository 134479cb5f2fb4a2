"""Whoever reads what others have made opens plain files alone, through one function.

A pipe in their place is waited for by every other way to open a file. So each other way in the
packager is in this table, with why what is read there is starpack's own.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
READS = {"open", "read_bytes", "read_text", "fromfile", "memmap", "ZipFile", "np.load", "json.load"}
OWN = {
    "bundle/archive.py": "a bundle's files, whose kinds were checked",
    "bundle/files/start.py": "an installation's own, before anything is trusted",
    "bundle/build.py": "the engine's wheel",
    "bundle/documents/collect.py": "starpack's licence",
    "bundle/documents/wheel_metadata.py": "a wheel whose hash was checked",
    "bundle/pack.py": "what it has just written; wheels whose hash was checked",
    "bundle/signing.py": "a bundle's files, whose kinds were checked, and what it has just written",
    "bundle/contents.py": "a file of the package",
    "checkpoint/safetensors_reader.py": "np.memmap, of what that function has opened",
    "checkpoint/safetensors_writer.py": "writes",
    "core/atomic.py": "what it has just written",
    "core/workdir.py": "the lock of unfinished work",
    "devices/cpu.py": "the kernel's files",
    "devices/nvidia.py": "the kernel's files",
    "engine": "its own sources, wheels and logs",
    "estimate/published.py": "a file of the package",
    "formats/gguf/convert.py": "unfinished work of this user",
    "formats/gptq/convert.py": "unfinished work of this user",
    "formats/gptq/layer.py": "unfinished work of this user",
    "formats/gptq/layers.py": "unfinished work of this user",
    "formats/onnx/weights_file.py": "unfinished work of this user",
    "measurement/humaneval.py": "gzip.open, of what that function has opened",
    "measurement/window_proof.py": "files of the package",
    "measurement/sandbox_child.py": "the null device",
    "cli/main.py": "the null device",
    "report/page.py": "a file of the package",
}


def test_files_of_others_are_opened_by_one_function() -> None:
    found = {(path, line): name for path, line, name in reads()}
    unknown = {
        place: name
        for place, name in found.items()
        if place[0] not in OWN and place[0].split("/")[0] not in OWN
    }
    assert not unknown, "open them with runtimes.trust.files, or say in the table why not"
    used = {path for path, _ in found}
    assert not [
        path for path in OWN if path not in used and not any(p.startswith(f"{path}/") for p in used)
    ]


def reads() -> Iterator[tuple[str, int, str]]:
    """(path in packager/, line, name) of each call that opens a file otherwise."""
    for file in sorted((ROOT / "packager").rglob("*.py")):
        path = file.relative_to(ROOT / "packager").as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and not any(k.arg == "fileobj" for k in node.keywords):
                full = ast.unparse(node.func)
                if full in READS or full.rpartition(".")[2] in READS:
                    yield path, node.lineno, full
