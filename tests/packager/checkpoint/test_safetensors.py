"""Safetensors read lazily and exactly, and every malformed file refused by name."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from packager.checkpoint.reader import read_checkpoint
from packager.checkpoint.safetensors_reader import BLOCK_ELEMENTS, open_file, open_folder
from packager.checkpoint.tensors import open_tensors
from packager.core.errors import CheckpointError
from tests.support.refusal import refusal
from tests.support.tiny import encode, write_checkpoint, write_safetensors, write_weights


def raw_file(file: Path, header: object, data: bytes, length: int | None = None) -> Path:
    """A safetensors file with any header; a text stays as it is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return file


def entry(begin: int, end: int, shape: list[object], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_values_equal_the_library(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    seeded = torch.Generator().manual_seed(1)
    tensors = {
        str(dtype).removeprefix("torch."): torch.randn(7, 5, generator=seeded).to(dtype)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    }
    library.save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    shards = open_file(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        assert shards.dtype(name) == name
        values = shards.read(name)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, tensor.float().numpy())
        np.testing.assert_array_equal(shards.read_rows(name, 2, 5), tensor[2:5].float().numpy())


def test_rows_across_blocks(tmp_path: Path) -> None:
    wide = np.arange(3 * BLOCK_ELEMENTS // 2, dtype=np.float32).reshape(3, -1)
    write_safetensors(tmp_path / "x.safetensors", {"wide": wide}, "float32")
    shards = open_file(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(shards.read("wide"), wide)
    np.testing.assert_array_equal(shards.read_rows("wide", 1, 3), wide[1:])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path: Path, dtype: str, bad: float) -> None:
    values = np.ones((4, 8), np.float32)
    values[2, 3] = bad
    values[3, 0] = bad
    write_safetensors(tmp_path / "x.safetensors", {"w": values}, dtype)
    shards = open_file(tmp_path / "x.safetensors")
    assert shards.read_rows("w", 0, 2).all()
    for read in (shards.read, lambda name: shards.read_rows(name, 1, 4)):
        with pytest.raises(
            CheckpointError, match=r"w holds -?(nan|inf) at index \(2, 3\)"
        ) as raised:
            read("w")
        assert "x.safetensors" in str(raised.value.where)


F = entry(0, 8, [2])
MALFORMED = {
    "empty": (b"", b"", None, "header claims"),
    "long header": (b"{}", b"", 1 << 40, "header claims 1099511627776 bytes"),
    "negative header": (b"{}", b"", (1 << 64) - 1, "header claims"),
    "not JSON": (b"{x", b"", None, "not valid JSON"),
    "leading space": (b" {}", b"", None, "does not begin with an object"),
    "a list": (b"[]", b"", None, "does not begin with an object"),
    "deep": (b'{"a":' * 100_000, b"", None, "not valid JSON"),
    "key twice": (b'{"a":1,"a":2}', b"", None, "the key 'a' is given twice"),
    "metadata": ({"__metadata__": {"a": 1}}, b"", None, "__metadata__ is not a map of texts"),
    "extra key": ({"a": F | {"x": 1}}, bytes(8), None, "alone"),
    "dtype": ({"a": F | {"dtype": "I32"}}, bytes(8), None, "a has dtype 'I32'"),
    "dtype list": ({"a": F | {"dtype": []}}, bytes(8), None, r"a has dtype \[\]"),
    "scalar": ({"a": entry(0, 4, [])}, bytes(4), None, r"a has shape \[\]"),
    "empty dim": ({"a": entry(0, 0, [0])}, b"", None, r"a has shape \[0\]"),
    "negative dim": ({"a": entry(0, 8, [-2])}, bytes(8), None, r"a has shape \[-2\]"),
    "bool dim": ({"a": entry(0, 4, [True])}, bytes(4), None, r"a has shape \[True\]"),
    "huge dim": ({"a": entry(0, 8, [1 << 62, 4])}, bytes(8), None, "its offsets are"),
    "negative offset": ({"a": entry(-8, 0, [2])}, bytes(8), None, "data_offsets"),
    "three offsets": ({"a": F | {"data_offsets": [0, 4, 8]}}, bytes(8), None, "data_offsets"),
    "shape against size": ({"a": entry(0, 8, [3])}, bytes(8), None, "12 bytes, but its offsets"),
    "truncated": ({"a": F}, bytes(7), None, "truncated: 7 bytes held, 8 described"),
    "trailing": ({"a": F}, bytes(9), None, "bytes that no tensor owns"),
    "overlap": ({"a": F, "b": entry(4, 12, [2])}, bytes(12), None, "b overlaps the tensor"),
    "gap": ({"a": F, "b": entry(12, 20, [2])}, bytes(20), None, "b leaves a gap"),
    "gap first": ({"a": entry(4, 12, [2])}, bytes(12), None, "a leaves a gap"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file(tmp_path: Path, case: str) -> None:
    header, data, length, message = MALFORMED[case]
    file = raw_file(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(CheckpointError, match=message) as raised:
        open_folder(tmp_path)
    assert raised.value.where == str(file)
    assert raised.value.expected
    assert raised.value.remedy


def test_short_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="header claims -1 bytes of 3"):
        open_folder(tmp_path)


def test_file_cut_after_opening(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", {"w": np.ones((4, 8), np.float32)}, "float32")
    shards = open_file(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="can no longer be read"):
        shards.read("w")


def sharded(folder: Path) -> dict[str, str]:
    """Two shards with tensors a and b; returns the index's weight_map."""
    tensors = {name: np.full((2, 2), i, np.float32) for i, name in enumerate("ab")}
    write_weights(folder, tensors, shards=2)
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_through_links(tmp_path: Path) -> None:
    """The hub's cache holds links out of the folder; the files are what they point to."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots" / "commit"
    blobs.mkdir()
    folder.mkdir(parents=True)
    sharded(blobs)
    for file in blobs.iterdir():
        (folder / file.name).symlink_to(Path("../../blobs") / file.name)
    shards = open_folder(folder)
    assert sorted(shards.names()) == ["a", "b"]
    assert shards.read("b").tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "a\\x.safetensors", "C:x.safetensors",
     "x.bin", "..", "", 7, None],
)  # fmt: skip
def test_index_leaves_folder(tmp_path: Path, name: object) -> None:
    write_index(tmp_path, {"a": name})
    with pytest.raises(CheckpointError, match="the index puts a in"):
        open_folder(tmp_path)


def test_index_contradictions(tmp_path: Path) -> None:
    weight_map = sharded(tmp_path)
    first, second = weight_map["a"], weight_map["b"]
    for wrong, message in (
        ({"a": second, "b": first}, "a is in .*but the index says"),
        ({"a": first}, None),
        ({"a": first, "b": second, "c": second}, "no shard holds c"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
    ):
        write_index(tmp_path, wrong)
        if message is None:  # an unnamed shard is not this model's
            assert open_folder(tmp_path).names() == ["a"]
            continue
        with pytest.raises(CheckpointError, match=message):
            open_folder(tmp_path)
    (tmp_path / second).write_bytes((tmp_path / first).read_bytes())
    write_index(tmp_path, {"a": first, "b": second})
    with pytest.raises(CheckpointError, match=r"a is in .* and in"):
        open_folder(tmp_path)
    (tmp_path / second).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_folder(tmp_path)


def test_both_forms_of_weights(tmp_path: Path) -> None:
    sharded(tmp_path)
    write_weights(tmp_path, {"a": np.ones((1, 1), np.float32)})
    with pytest.raises(CheckpointError, match=r"both model\.safetensors and"):
        open_folder(tmp_path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights"):
        open_folder(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickles") as raised:
        open_folder(tmp_path)
    assert "save_pretrained" in str(raised.value.remedy)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_open_tensors_gives_the_model(tmp_path: Path, dtype: str, shards: int) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder = write_checkpoint(tmp_path / "m", dtype=dtype, shards=shards, tied=shards == 1)
    checkpoint = read_checkpoint(folder, hash_files=False)
    tensors = open_tensors(checkpoint)
    model = transformers.Starcoder2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    state = model.state_dict()
    if checkpoint.geometry.tied:
        del state["lm_head.weight"]
    assert sorted(tensors.names()) == sorted(state)
    for name in tensors.names():
        assert tensors.dtype(name) == dtype
        assert tensors.shape(name) == tuple(state[name].shape)
        np.testing.assert_array_equal(tensors.read(name), state[name].numpy())


def test_rounding_of_the_fixture() -> None:
    """The fixture's own bfloat16 is round-to-nearest-even."""
    values = np.array([1.0, 1.00390625, 1.01171875], np.float32)  # exact, tie down, tie up
    assert np.frombuffer(encode(values, "bfloat16"), "<u2").tolist() == [0x3F80, 0x3F80, 0x3F82]


@pytest.mark.parametrize(
    "header",
    [
        {"\ud800": entry(0, 4, [1])},
        {"w": entry(0, 4, [1]), "__metadata__": {"\udc00": "x"}},
        {"w": entry(0, 4, [1]), "__metadata__": {"x": "\ud800"}},
        {"w": entry(0, 4, [1], "F32\ud800")},
    ],
)
def test_names_and_texts_of_a_header_are_whole_characters(tmp_path: Path, header: object) -> None:
    """The safetensors library refuses the same."""
    library = pytest.importorskip("safetensors")
    file = raw_file(tmp_path / "x.safetensors", header, b"\0" * 4)
    refusal(lambda: open_file(file), "half of a surrogate pair")
    with pytest.raises(library.SafetensorError), library.safe_open(file, framework="np"):
        pass


@pytest.mark.parametrize(
    "name", ["self_attn.q_proj.bias", "input_layernorm.weight", "mlp.c_fc.bias"]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_any_tensor_that_is_not_finite_is_refused_where_it_is_read(
    tmp_path: Path, name: str, bad: float
) -> None:
    folder = write_checkpoint(tmp_path / "model")
    source = open_folder(folder)
    tensors = {key: source.read(key).copy() for key in source.names()}
    tensors[f"model.layers.1.{name}"][-1] = bad
    write_weights(folder, tensors)
    read = open_tensors(read_checkpoint(folder)).read
    refusal(lambda: read(f"model.layers.1.{name}"), f"{name} holds {bad}")
