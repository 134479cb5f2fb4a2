"""Options and fixtures that several test files share."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import OpenPage, pages


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-goldens",
        action="store_true",
        help="write tests/goldens/ anew from what the code does now; look at the diff",
    )

    parser.addoption(
        "--fast",
        action="store_true",
        help="only what needs no engine, torch, browser or installed bundle, and no patience",
    )


# What a test needs; `--fast` leaves out all of these. Fixtures that need one imply it.
NEEDS = ("engine", "torch", "browser", "bundle", "slow")
IMPLIED = {
    "converted": "engine",
    "exported": "torch",
    "quantised": "torch",
    "kernel": "torch",
    "one_thread": "torch",
    "open_page": "browser",
    "browser": "browser",
    "replayed": "slow",
}
# Not to be had with `--fast`: a test that forgot its marker fails or is skipped.
ABSENT = ("llama_cpp", "peft", "playwright.sync_api", "torch", "transformers")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fast"):
        sys.modules.update(dict.fromkeys(ABSENT))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in IMPLIED:
                item.add_marker(IMPLIED[fixture])
    if config.getoption("--fast"):
        left_out = [item for item in items if any(map(item.get_closest_marker, NEEDS))]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def pytest_unconfigure() -> None:
    """Close what llama_cpp opens on import and never closes: warnings are errors to the end."""
    utils = sys.modules.get("llama_cpp._utils")
    for name in ("outnull_file", "errnull_file"):
        if utils is not None and hasattr(utils, name):
            getattr(utils, name).close()


@pytest.fixture
def regenerate_goldens(request: pytest.FixtureRequest) -> bool:
    """True where the goldens are to be written, not compared with."""
    return request.config.getoption("--regenerate-goldens")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one core: threads that share tiny steps wait for each other on a busy machine."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """torch's int4 operations, which only CUDA has, computed slowly on any device."""
    pytest.importorskip("torch")
    from runtimes.backends.gptq import tiles
    from tests.support import int4_kernel

    ops = types.SimpleNamespace(
        _convert_weight_to_int4pack=int4_kernel.convert, _weight_int4pack_mm=int4_kernel.multiply
    )
    monkeypatch.setattr(tiles, "_ops", ops)
    return ops


@pytest.fixture(scope="session")
def real_tokenizer_folder() -> Path:
    """StarCoder2's own tokenizer and its test cases, which are not ours to distribute."""
    data = os.environ.get("STARPACK_TEST_DATA")
    if not data:
        pytest.skip("STARPACK_TEST_DATA names no folder with starcoder2-tokenizer/")
    return Path(data) / "starcoder2-tokenizer"


@pytest.fixture(scope="module")
def open_page() -> Iterator[OpenPage]:
    """open_page(file, width_px) -> PageReport, in headless Chromium."""
    yield from pages()
