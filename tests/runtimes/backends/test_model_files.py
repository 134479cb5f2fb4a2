"""What a model's files say of themselves is read strictly: a key has one value."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from runtimes.errors import IntegrityError


def session_saying(text: str) -> SimpleNamespace:
    """As much of ONNX Runtime's session as is asked for the graph's metadata."""
    meta = SimpleNamespace(custom_metadata_map={"starpack": text})
    return SimpleNamespace(get_modelmeta=lambda: meta, get_inputs=list)


@pytest.mark.parametrize("text", ['{"layers": 1, "layers": 2}', "[1]", "{", "[" * 100_000])
def test_a_graph_that_does_not_say_what_it_is(text: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from runtimes.backends.onnx.graph import Graph

    with pytest.raises(IntegrityError, match=r"what it is: (ValueError|JSONDecodeError)"):
        Graph.of(session_saying(text), tmp_path)


@pytest.mark.parametrize("text", ['{"bits": 4, "bits": 8}', "[1]", "{", "[" * 100_000])
def test_gptq_files_that_do_not_say_what_they_are(text: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from runtimes.backends.gptq.files import read_config

    (tmp_path / "config.json").write_text(text)
    (tmp_path / "quantize_config.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"given twice|no object|cannot be read"):
        read_config(tmp_path)
