"""A folder of GPTQ weights, read for running: settings, codes and the rest, as torch tensors.

safetensors maps the file and checks its header; what the header says is checked here against the
model's configuration. Layout: AutoGPTQ's, versions 1 and 2. Knows nothing of kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from runtimes.errors import IntegrityError
from runtimes.trust.files import open_plain, read_plain
from runtimes.trust.strict_json import parse_json

MODEL_NAME, CONFIG_NAME, SETTINGS_NAME = "model.safetensors", "config.json", "quantize_config.json"
MAX_CONFIG_BYTES = 1 << 20  # guessed: a config.json has some kilobytes
MAX_COUNT = 1 << 20  # guessed: far beyond any layer, head or vocabulary
WORD_BITS = 32
GROUPS = (32, 64, 128, 256)  # those that torch's kernels take
SETTINGS: dict[str, tuple[object, ...]] = {
    "bits": (4, 8),
    "group_size": GROUPS,
    "checkpoint_format": (None, "gptq", "gptq_v2"),
    "quant_method": (None, "gptq"),
    "pack_dtype": (None, "int32"),
    "lm_head": (None, False),
}


@dataclass(frozen=True, slots=True)
class Config:
    """Geometry and settings. head_bits: what the head is packed to when it is loaded; 16: not."""

    layers: int
    heads: int
    kv_heads: int
    hidden: int
    vocab: int
    norm_eps: float
    rope_theta: float
    tied: bool
    window_tokens: int | None
    bits: int
    group: int
    version: int
    head_bits: int

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads


@dataclass(frozen=True, slots=True)
class Codes:
    """One linear: codes (out, in) uint8, scales (out, G) and zeros (out, G) float32, bias (out,).

    order: that of the inputs (in,), where the codes have them group by group in another.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    bias: torch.Tensor
    order: torch.Tensor | None

    def to(self, device: torch.device) -> Codes:
        """The same on `device`."""
        order = None if self.order is None else self.order.to(device)
        return Codes(
            self.codes.to(device),
            self.scales.to(device),
            self.zeros.to(device),
            self.bias.to(device),
            order,
        )

    def weights(self) -> torch.Tensor:
        """What they stand for, float32 (out, in), inputs in their natural order."""
        rows, columns = self.codes.shape
        steps = self.codes.view(rows, self.scales.shape[1], -1) - self.zeros[:, :, None]
        found = (steps * self.scales[:, :, None]).view(rows, columns)
        return found if self.order is None else found[:, self.order.argsort()]


def read_config(folder: Path) -> Config:
    """Read both configuration files; IntegrityError where they are not those of such a model."""
    model, settings = _read(folder / CONFIG_NAME), _read(folder / SETTINGS_NAME)
    meta = settings.get("meta")
    if not isinstance(meta, dict | None):
        raise _bad(folder, f"meta is {meta!r}", "an object")
    for key, options in SETTINGS.items():
        _one_of(folder, settings, key, options)
    window = model.get("sliding_window")
    names = dict(
        layers="num_hidden_layers", heads="num_attention_heads", kv_heads="num_key_value_heads",
        hidden="hidden_size", vocab="vocab_size",
    )  # fmt: skip
    counts = {name: _count(folder, name, model.get(key)) for name, key in names.items()}
    window_tokens = None if window is None else _count(folder, "sliding_window", window)
    if counts["hidden"] % counts["heads"] or counts["heads"] % counts["kv_heads"]:
        raise _bad(folder, f"{counts['heads']} heads do not divide the model", "a divisor")
    head_bits = {"head_bits": 16} | (meta or {})
    _one_of(folder, head_bits, "head_bits", (4, 8, 16))
    _one_of(folder, model, "tie_word_embeddings", (None, True, False))
    return Config(
        layers=counts["layers"],
        heads=counts["heads"],
        kv_heads=counts["kv_heads"],
        hidden=counts["hidden"],
        vocab=counts["vocab"],
        norm_eps=_number(folder, model, "norm_epsilon"),
        rope_theta=_theta(folder, model),
        tied=model.get("tie_word_embeddings") is not False,
        window_tokens=window_tokens,
        bits=settings["bits"],
        group=settings["group_size"],
        version=2 if settings.get("checkpoint_format") == "gptq_v2" else 1,
        head_bits=head_bits["head_bits"],
    )


def _one_of(folder: Path, data: dict[str, Any], key: str, options: tuple[object, ...]) -> None:
    """Refuse a value that is none of `options`, by its type as well: 4.0 is not 4, 0 not false."""
    value = data.get(key)
    if not any(type(value) is type(option) and value == option for option in options):
        raise _bad(folder, f"{key} is {repr(value)[:200]}", f"one of {options}")


def _theta(folder: Path, model: dict[str, Any]) -> float:
    # transformers 5 keeps it in a record of its own
    record = model.get("rope_parameters")
    return _number(folder, record if isinstance(record, dict) else model, "rope_theta")


def _count(folder: Path, name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_COUNT:
        raise _bad(folder, f"{name} is {value!r}", "an integer above 0")
    return value


def _number(folder: Path, data: dict[str, Any], key: str) -> float:
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
        raise _bad(folder, f"{key} is {value!r}", "a number above 0")
    return float(value)


def _read(file: Path) -> dict[str, Any]:
    try:
        data = parse_json(read_plain(file, MAX_CONFIG_BYTES))
    except (OSError, ValueError) as error:
        raise _bad(file, f"it cannot be read: {error}", "a JSON object") from None
    if not isinstance(data, dict):
        raise _bad(file, "it is no object", "a JSON object")
    return data


def _bad(where: Path, what: str, expected: str) -> IntegrityError:
    return IntegrityError(
        f"these are no GPTQ weights that can be run: {what}",
        where=where,
        expected=expected,
        remedy="convert or copy the model again",
    )


class Files:
    """The tensors of one folder, each checked for its shape as it is read."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.file, self.config = folder / MODEL_NAME, config
        try:
            open_plain(self.file, follow=True).close()  # the library waits for a pipe
            opened: Any = safe_open(self.file, framework="pt")
        except (SafetensorError, OSError, ValueError) as error:
            raise _bad(self.file, str(error)[:300], "a valid safetensors file") from None
        self._open = opened
        self._names = set(opened.keys())

    def read(self, name: str, shape: tuple[int, ...], *kinds: torch.dtype) -> torch.Tensor:
        """A tensor as it is stored, of one of `kinds`; any finite float without."""
        if name not in self._names:
            raise _bad(self.file, f"{name} is missing", "every tensor of the model")
        try:
            found: torch.Tensor = self._open.get_tensor(name)
        except (SafetensorError, AttributeError) as error:  # the latter: a type torch has not got
            raise _bad(self.file, f"{name}: {str(error)[:300]}", f"{shape}") from None
        right = found.dtype in kinds if kinds else found.is_floating_point()
        if tuple(found.shape) != shape or not right:
            raise _bad(self.file, f"{name} is {found.dtype} {tuple(found.shape)}", f"{shape}")
        if not kinds and not all(end.isfinite() for end in found.aminmax()):  # NaN is both ends
            raise _bad(self.file, f"{name} has a value that is not finite", "finite values")
        return found

    def size(self, name: str) -> int:
        """Elements of a vector that is there."""
        shape: list[int] = self._open.get_slice(name).get_shape() if name in self._names else []
        if len(shape) != 1:
            raise _bad(self.file, f"{name} is missing, or no vector", "every tensor of the model")
        return int(shape[0])

    def half_bytes(self) -> int:
        """What all tensors would take in float16, each code expanded."""
        total = 0
        for name in self._names:
            count = math.prod(self._open.get_slice(name).get_shape())
            total += 2 * count * (WORD_BITS // self.config.bits if name.endswith(".qweight") else 1)
        return total

    def codes(self, modules: list[str], shapes: list[tuple[int, int]]) -> Codes:
        """Linears of the same inputs as one, their rows one after another."""
        parts = [self._codes(m, *shape) for m, shape in zip(modules, shapes, strict=True)]
        order = parts[0].order
        for part in parts[1:]:
            if not _same_order(part.order, order):
                raise _bad(self.file, f"the inputs of {modules} are in different orders", "one")
        return Codes(
            torch.cat([part.codes for part in parts]),
            torch.cat([part.scales for part in parts]),
            torch.cat([part.zeros for part in parts]),
            torch.cat([part.bias for part in parts]),
            order,
        )

    def _codes(self, module: str, outputs: int, inputs: int) -> Codes:
        bits, group = self.config.bits, self.config.group
        if inputs % group:
            raise _bad(self.file, f"{module} has {inputs} inputs", f"a multiple of {group}")
        groups, words = inputs // group, WORD_BITS // bits
        int32 = torch.int32
        qweight = self.read(f"{module}.qweight", (inputs // words, outputs), int32)
        qzeros = self.read(f"{module}.qzeros", (groups, outputs // words), int32)
        scales = self.read(f"{module}.scales", (groups, outputs)).float().T.contiguous()
        zeros = _unpack(qzeros, bits).T.float() + (1 if self.config.version == 1 else 0)
        if zeros.max() >= 1 << bits:
            raise _bad(self.file, f"{module} has the zero point 0", "1 or more, in version 1")
        codes = _unpack(qweight.T, bits)
        group_of = self.read(f"{module}.g_idx", (inputs,), int32)
        order = group_of.argsort(stable=True)
        if not torch.equal(
            group_of[order], torch.arange(groups, dtype=int32).repeat_interleave(group)
        ):
            raise _bad(self.file, f"{module}.g_idx has other groups", f"{groups} of {group} inputs")
        is_natural = torch.equal(order, torch.arange(inputs))
        if not is_natural:
            codes = codes[:, order]
        bias = self.read(f"{module}.bias", (outputs,)).float()
        kept = None if is_natural else order
        return Codes(codes.contiguous(), scales, zeros.contiguous(), bias, kept)


def _same_order(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 (R, W) to uint8 (R, W * 32 / bits), the lowest bits first."""
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32)
    parts = (words.contiguous()[:, :, None] >> shifts) & ((1 << bits) - 1)
    return parts.to(torch.uint8).reshape(len(words), -1)
