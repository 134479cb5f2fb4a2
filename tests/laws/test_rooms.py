"""Imports run downward, heavy libraries stay in their one file, and importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.heavy import HEAVY

ROOT = Path(__file__).parents[2]

# The modules that the design names, from the top down. One may reach its own line and those
# below it, directly or through helpers that are not named here.
PACKAGER = (
    "__main__",
    "cli",
    "bundle report",
    "pipeline",
    "estimate measure select",
    "formats",
    "calibration",
    "checkpoint devices engine",
    "core",
)
RUNTIMES = (
    "__main__",
    "cli",
    "server",
    "bundle",
    "generation",
    "backends prompts",
    "host",
    "errors",
)


def test_runtimes_never_imports_packager() -> None:
    for file in sources("runtimes"):
        assert not [name for name in imports(file) if name.split(".")[0] == "packager"], file


@pytest.mark.parametrize(("package", "layers"), [("packager", PACKAGER), ("runtimes", RUNTIMES)])
def test_imports_run_downward(package: str, layers: tuple[str, ...]) -> None:
    level = {f"{package}.{name}": i for i, line in enumerate(layers) for name in line.split()}

    def level_of(module: str) -> int | None:
        return level.get(".".join(module.split(".")[:2]))

    for file in sources(package):
        importer = module_name(file)
        for imported in reachable(importer):
            above, below = level_of(importer), level_of(imported)
            if above is not None and below is not None:
                assert above <= below, f"{importer} reaches up to {imported}"
        assert importer not in reachable(importer), f"{importer} imports itself in a circle"


def test_heavy_libraries_stay_in_their_files() -> None:
    for file in [*sources("packager"), *sources("runtimes")]:
        path = file.relative_to(ROOT).as_posix()
        for name in imports(file):
            allowed = HEAVY.get(name.split(".")[0], {path})
            assert path in allowed, f"{path} imports {name}, which belongs in {allowed}"


def test_command_line_loads_no_heavy_library() -> None:
    code = f"import sys, packager.cli.main; print(*({set(HEAVY)!r} & sys.modules.keys()))"
    assert python("-c", code).split() == ["tqdm"]


@pytest.mark.parametrize("module", ["contract", "errors", "bundle.open", "host.limits", "cli.main"])
def test_bundle_is_checked_with_the_standard_library_alone(module: str) -> None:
    # -S: no site-packages at all
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import runtimes.{module}"
    python("-I", "-S", "-c", code)


def python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(file: Path) -> str:
    return file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")


@cache
def imports(file: Path) -> frozenset[str]:
    """Modules that a file imports anywhere in it, import_module("a constant") included."""
    return frozenset(_imports(ast.parse(file.read_text(encoding="utf-8"))))


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield module
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.Call(
                func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]
            ):
                yield name


@cache
def reachable(module: str) -> frozenset[str]:
    """Our modules that `module` imports when it is run, directly or not."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        file = ROOT / (waiting.pop().replace(".", "/") + ".py")
        new = {name for name in imports(file) if is_ours(name)} - found
        found |= new
        waiting += new
    return frozenset(found)


def is_ours(name: str) -> bool:
    return (ROOT / (name.replace(".", "/") + ".py")).is_file()
