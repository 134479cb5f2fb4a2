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

# From the top down. A room may import those on the lines below its own, and nothing else of ours:
# rooms of one line know nothing of each other. packager/ may import runtimes/, never back.
ROOMS = {
    "packager": (
        "__main__",
        "cli",
        "__init__",  # the names for Python
        "pipeline",
        "bundle report estimate",
        "measurement formats",
        "calibration selection",
        "checkpoint devices engine",
        "core",
    ),
    "runtimes": (
        "__main__",
        "cli",
        "server",
        "bundle",
        "generation",
        "backends prompts",
        "trust host",  # trust/ runs before the hashes hold
        "contract",
        "errors",
        "__init__",
    ),
}


def test_runtimes_never_imports_packager() -> None:
    for file in sources("runtimes"):
        assert not [name for name in imports(file) if name.split(".")[0] == "packager"], file


@pytest.mark.parametrize("package", sorted(ROOMS))
def test_every_module_has_a_room_and_imports_only_what_is_below_it(package: str) -> None:
    level = {name: i for i, line in enumerate(ROOMS[package]) for name in line.split()}
    for file in sources(package):
        own = room_of(module_name(file))
        assert own in level, f"{file} lies in no room of the table"
        for name in ours(file):
            other = room_of(name)
            allowed = other == own or not name.startswith(package) or level[own] < level[other]
            assert allowed, f"{module_name(file)} may not import {name}"


def test_no_module_imports_itself_in_a_circle() -> None:
    for file in [*sources("packager"), *sources("runtimes")]:
        importer = module_name(file)
        assert importer not in reachable(importer), f"{importer} imports itself in a circle"


def test_no_test_module_imports_another() -> None:
    for file in sources("tests"):
        for name in imports(file):
            shared = not name.startswith("tests.") or name.startswith("tests.support")
            # fuzzing is a program of its own, which its one test runs
            own = name.startswith("tests.fuzz.") and file.is_relative_to(ROOT / "tests/fuzz")
            assert shared or own, f"{file} imports {name}: move what they share to tests/support"


def test_heavy_libraries_stay_in_their_files() -> None:
    for file in [*sources("packager"), *sources("runtimes")]:
        path = file.relative_to(ROOT).as_posix()
        for name in imports(file):
            allowed = HEAVY.get(name.split(".")[0], {path})
            assert path in allowed, f"{path} imports {name}, which belongs in {allowed}"


def test_command_line_loads_no_heavy_library() -> None:
    code = f"import sys, packager.cli.main; print(*({set(HEAVY)!r} & sys.modules.keys()))"
    assert python("-c", code).split() == []


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
    name = file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    return name.removesuffix(".__init__")


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
                for alias in names:
                    inner = f"{module}.{alias.name}"
                    yield inner if is_ours(inner) else module
            case ast.Call(
                func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]
            ):
                yield name


def ours(file: Path) -> frozenset[str]:
    """The modules of this project that a file imports, wherever in it."""
    return frozenset(name for name in imports(file) if is_ours(name))


def room_of(module: str) -> str:
    """The room of a module: the folder or file right below its package."""
    return [*module.split("."), "__init__"][1]


@cache
def reachable(module: str) -> frozenset[str]:
    """Our modules that `module` imports when it is run, directly or not."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = ours(file_of(waiting.pop())) - found
        found |= new
        waiting += new
    return frozenset(found)


def file_of(module: str) -> Path:
    """A package stands for its __init__.py."""
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def is_ours(name: str) -> bool:
    return name.split(".")[0] in (*ROOMS, "tests") and file_of(name).is_file()
