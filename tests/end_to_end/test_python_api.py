"""docs/python-api.md: its example runs as it stands, is typed, and names all there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import packager
from runtimes.trust.manifest import read_manifest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
EXAMPLE, NETWORK, KERNELS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def python(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_makes_a_bundle_that_answers(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="needs the engine: make wheels")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    told = python("-c", EXAMPLE, cwd=tmp_path)
    name, prompt = re.match(r"gguf-(\S+) answers (.*)", told, re.S).groups()
    manifest = read_manifest(tmp_path / "artifacts" / "bundle")
    assert manifest.recipe == name
    assert prompt.startswith("import os") and len(prompt.strip()) > len("import os")
    assert (tmp_path / "artifacts" / "installed" / "run").is_file()
    assert (tmp_path / "artifacts" / "bundle" / "report.html").is_file()


def test_the_network_can_be_refused(tmp_path: Path) -> None:
    tries = (
        "import socket\n"
        "from runtimes.errors import OfflineError\n"
        "try:\n    socket.socket().close()\nexcept OfflineError:\n    print('refused')\n"
    )
    assert python("-c", tries, cwd=tmp_path) == ""
    assert python("-c", NETWORK + tries, cwd=tmp_path) == "refused\n"


def test_the_example_is_typed(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="needs the tools of `make check`")
    file = tmp_path / "example.py"
    wrong = EXAMPLE + '\npack(checkpoint, measurements, selection, "settings")\n'
    for text, message in ((EXAMPLE, "Success"), (wrong, 'has incompatible type "str"')):
        file.write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", file],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert message in done.stdout, done.stdout + done.stderr


def test_the_page_names_all_there_is() -> None:
    assert sorted(re.findall(r"^\| `(\w+)` \|", TEXT, re.M)) == sorted(packager.__all__)
    assert all(getattr(packager, name).__doc__ for name in packager.__all__)


def test_names_are_functions_in_whatever_order_modules_are_imported(tmp_path: Path) -> None:
    for first in ("selection.selector", "measurement.timing", "cli.main"):
        code = f"import packager.{first}\nfrom packager import measure, select\n"
        assert python("-c", code + "select.__code__, measure.__code__", cwd=tmp_path) == ""


def test_importing_the_package_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, packager; print([m for m in sys.modules if m.startswith(('numpy', 'packag'))])"
    )
    assert python("-c", code, cwd=tmp_path) == "['packager']\n"


def test_kernels_are_chosen_before_numpy(tmp_path: Path) -> None:
    code = KERNELS + "\nimport sys\nprint('numpy' in sys.modules)"
    assert python("-c", code, cwd=tmp_path) == "False\n"


def test_flags_are_the_command_lines_own_affair() -> None:
    for file in (ROOT / "packager").rglob("*.py"):
        if file.parent.name != "cli":
            assert "argparse.Namespace" not in file.read_text(encoding="utf-8"), file
