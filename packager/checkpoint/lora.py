"""Merge a PEFT LoRA into the stream of tensors: W' = W + scale * B A, in float32.

The formulas and the matching of patterns are PEFT's (peft/tuners/lora/layer.py,
peft/utils/other.py). What PEFT could do to a model beyond this is refused by name. Knows nothing
of formats; holds no more than the rows that were asked for and the two small factors.

A tied model whose embedding or head is adapted comes apart: PEFT trains the two as different
functions (its own merge warns of this), so the merged model has both, and is not tied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from packager.checkpoint.lora_config import (
    ADAPTER_CONFIG_NAME,
    AdapterConfig,
    read_adapter_config,
)
from packager.checkpoint.safetensors_reader import (
    BLOCK_ELEMENTS,
    PICKLES,
    Floats,
    Shards,
    TensorSource,
    open_file,
)
from packager.checkpoint.shapes import EMBEDDING, HEAD
from packager.core.errors import CheckpointError

ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
PREFIX = "base_model.model."
FACTORS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
}
BASE_COPY = ".base_layer.weight"
BASE_BIAS = ".base_layer.bias"


@dataclass(frozen=True, slots=True)
class Delta:
    """A low-rank change of one weight: the names of its factors in the adapter, and its scale.

    Linear, (out, in): scale * B (out, r) @ A (r, in). Embedding, (vocab, hidden), which is its own
    transpose in PEFT: scale * A.T (vocab, r) @ B.T (r, hidden).
    """

    a: str
    b: str
    scale: float
    embedding: bool


class MergedTensors:
    """A TensorSource: the base's tensors as the adapter changes them."""

    def __init__(
        self,
        base: TensorSource,
        adapter: Shards,
        deltas: dict[str, Delta],
        replaced: dict[str, str],
    ) -> None:
        self.base = base
        self.adapter = adapter
        self.deltas = deltas
        self.replaced = replaced

    @property
    def unties(self) -> bool:
        """Whether embedding and head, if they were one, no longer are."""
        return not {EMBEDDING, HEAD}.isdisjoint([*self.deltas, *self.replaced])

    def names(self) -> list[str]:
        """Every tensor's name; the head is there if it was stored or if the adapter unties it."""
        names = self.base.names()
        return [*names, HEAD] if self.unties and HEAD not in names else names

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, which no adapter changes."""
        return self.base.shape(_stored(self.base, name))

    def dtype(self, name: str) -> str:
        """How it is stored; a sum is float32."""
        if name in self.deltas:
            return "float32"
        if name in self.replaced:
            return self.adapter.dtype(self.replaced[name])
        return self.base.dtype(_stored(self.base, name))

    def read(self, name: str) -> Floats:
        """The whole merged tensor as float32; CheckpointError where a value is not finite."""
        return self.read_rows(name, 0, self.shape(name)[0])

    def read_rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows start..stop-1, merged; CheckpointError where a value is not finite."""
        if name in self.replaced:
            return self.adapter.read_rows(self.replaced[name], start, stop)
        rows = self.base.read_rows(_stored(self.base, name), start, stop)
        delta = self.deltas.get(name)
        if delta is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # the next line finds them
                self._add(delta, rows, start)
            if not np.isfinite(rows).all():
                raise _bad(self.adapter, f"{name} overflows when merged", "finite values")
        return rows

    def _add(self, delta: Delta, rows: Floats, start: int) -> None:
        """Add rows start.. of scale * B A to `rows` in place, a block of rows at a time.

        A matrix product may round a row differently beside other rows. So the blocks are the same
        whichever rows are asked for, and what a row is does not depend on how it is read.
        """
        scale = np.float32(delta.scale)
        a = self.adapter.read(delta.a)  # (r, in); embedding: (r, vocab)
        b = self.adapter.read(delta.b)  # (out, r); embedding: (hidden, r)
        left, right = (a.T, b.T) if delta.embedding else (b, a)
        stop, step = start + len(rows), max(1, BLOCK_ELEMENTS // rows.shape[1])
        for block in range(start // step * step, stop, step):
            product = left[block : block + step] @ right
            begin, end = max(start, block), min(stop, block + step)
            rows[begin - start : end - start] += scale * product[begin - block : end - block]


def adapter_files(folder: Path) -> list[Path]:
    """The files that decide the merge."""
    return [folder / ADAPTER_CONFIG_NAME, folder / ADAPTER_WEIGHTS_NAME]


def merge_adapter(base: TensorSource, folder: Path) -> MergedTensors:
    """The base's tensors with the LoRA of `folder` merged as they are read.

    Raises CheckpointError for anything that would make the result differ from PEFT's own: an
    option that is not implemented, a tensor that is missing, unknown or misshapen.
    """
    config = read_adapter_config(folder)
    adapter = open_file(_weights(folder))
    factors: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for stored in adapter.names():
        name = stored.removeprefix(PREFIX)
        if name == stored:
            raise _bad(adapter, f"{stored} is not a PEFT name", f"{PREFIX}...")
        suffix = next((s for s in FACTORS if name.endswith(s)), None)
        if suffix is not None:
            factors.setdefault(name.removesuffix(suffix), {})[FACTORS[suffix]] = stored
        elif name.endswith(BASE_COPY):
            _check_base_copy(base, adapter, name.removesuffix(BASE_COPY) + ".weight", stored)
        elif name in (EMBEDDING, HEAD) and not _module(name).endswith(config.modules_to_save):
            _check_base_copy(base, adapter, name, stored)
        else:
            target = name.replace(BASE_BIAS, ".bias")
            if target in replaced:
                raise _bad(adapter, f"{target} is stored twice", "each tensor once")
            replaced[target] = stored
    deltas = {
        f"{module}.weight": _delta(base, adapter, config, module, names)
        for module, names in factors.items()
    }
    _check_replaced(base, adapter, config, replaced, set(factors))
    merged = MergedTensors(base, adapter, deltas, replaced)
    if config.ensure_weight_tying and merged.unties:
        raise _bad(
            adapter,
            "ensure_weight_tying is set and the embedding or the head is adapted",
            "an adapter that leaves both alone, or adapts them apart",
        )
    return merged


def _delta(
    base: TensorSource, adapter: Shards, config: AdapterConfig, module: str, names: dict[str, str]
) -> Delta:
    """One module's change, its factors complete and of the shapes that the base asks for."""
    kind = set(names)
    embedding = kind == {"embedding_a", "embedding_b"}
    if not embedding and kind != {"a", "b"}:
        raise _bad(adapter, f"{module} has {sorted(kind)}", "both factors of one kind")
    a, b = (names[f"embedding_{x}" if embedding else x] for x in "ab")
    shape = _base_shape(base, adapter, f"{module}.weight")
    if embedding != (f"{module}.weight" == EMBEDDING) or len(shape) != 2:
        raise _bad(
            adapter,
            f"{module} is adapted by {names[min(kind)]}",
            "the factors of its kind of layer",
        )
    rank, alpha = config.rank(module), config.alpha(module)
    rows, columns = shape[::-1] if embedding else shape
    for name, expected in ((a, (rank, columns)), (b, (rows, rank))):
        if adapter.shape(name) != expected:
            raise _bad(
                adapter,
                f"{name} has shape {adapter.shape(name)}",
                f"{expected}: rank {rank} on {module} of shape {shape}",
            )
    return Delta(a, b, alpha / (math.sqrt(rank) if config.use_rslora else rank), embedding)


def _check_replaced(
    base: TensorSource,
    adapter: Shards,
    config: AdapterConfig,
    replaced: dict[str, str],
    adapted: set[str],
) -> None:
    """Complete tensors in the adapter: just those that modules_to_save and bias announce."""
    saved = config.modules_to_save
    for name, stored in replaced.items():
        module = _module(name)
        is_bias = name.endswith(".bias")
        announced = module.endswith(saved) or (
            is_bias and (config.bias == "all" or (config.bias == "lora_only" and module in adapted))
        )
        if not announced or (module in adapted and not is_bias):
            raise _bad(adapter, f"{stored} is not announced", "modules_to_save or bias naming it")
        shape = _base_shape(base, adapter, name)
        if adapter.shape(stored) != shape:
            raise _bad(adapter, f"{stored} has shape {adapter.shape(stored)}", f"{shape}")
    for item in saved:
        if not any(_module(name).endswith(item) for name in replaced):
            raise _bad(adapter, f"no tensor of modules_to_save {item!r}", "its complete tensors")
    for name in base.names():
        module, _, kind = name.rpartition(".")
        wanted = kind == "bias" and (
            config.bias == "all" or (config.bias == "lora_only" and module in adapted)
        )
        if (wanted or module.endswith(saved)) and name not in replaced:
            raise _bad(
                adapter,
                f"{name} was trained but is not stored",
                f"it, as bias {config.bias!r} and modules_to_save {list(saved)} announce",
            )


def _check_base_copy(base: TensorSource, adapter: Shards, name: str, stored: str) -> None:
    """PEFT stores the untouched embedding beside its LoRA; it must be the base's own.

    The base is compared as the copy's dtype has it: adapters are often trained on a rounded base.
    """
    shape = _base_shape(base, adapter, name)
    if name not in (EMBEDDING, HEAD) or adapter.shape(stored) != shape:
        raise _bad(adapter, f"{stored} has shape {adapter.shape(stored)}", f"a copy of {shape}")
    step = max(1, BLOCK_ELEMENTS // shape[1])
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        own = base.read_rows(_stored(base, name), start, stop)
        copy = adapter.read_rows(stored, start, stop)
        if not np.array_equal(_rounded(own, adapter.dtype(stored)), copy):
            raise _bad(
                adapter, f"{stored} differs from the base's {name}", "the base it was trained on"
            )


def _rounded(values: Floats, dtype: str) -> Floats:
    """float32 values rounded to `dtype`, to nearest even, as float32."""
    if dtype == "float32":
        return values
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def _module(name: str) -> str:
    """The module that owns a tensor: `lm_head` of `lm_head.weight`."""
    return name.rpartition(".")[0]


def _stored(base: TensorSource, name: str) -> str:
    """The name under which the base has it: a tied head is the embedding."""
    return EMBEDDING if name == HEAD and HEAD not in base.names() else name


def _base_shape(base: TensorSource, adapter: Shards, name: str) -> tuple[int, ...]:
    stored = _stored(base, name)
    if stored not in base.names():
        raise _bad(adapter, f"the base has no {name}", "an adapter made for this model")
    return base.shape(stored)


def _weights(folder: Path) -> Path:
    file = folder / ADAPTER_WEIGHTS_NAME
    if file.exists():
        return file
    pickled = any(any(folder.glob(pattern)) for pattern in PICKLES)
    raise CheckpointError(
        "the adapter's weights are a pickle, which can run code when it is read"
        if pickled
        else "the adapter has no weights",
        where=folder,
        expected=ADAPTER_WEIGHTS_NAME,
        remedy="where you trust it, load it with PEFT and save it again: "
        "save_pretrained(FOLDER, safe_serialization=True)",
    )


def _bad(adapter: Shards, what: str, expected: str) -> CheckpointError:
    return CheckpointError(
        what,
        where=adapter.files[0],
        expected=expected,
        remedy="use the base that the adapter was trained on; or merge with PEFT "
        "(merge_and_unload), save, and convert the result",
    )
