"""How long a step takes on a device, from what it moves and computes: the model of time.

    decode  = weights + keys and values + layers x launch + start + vocabulary
    prefill = products + activations + attention + layers x batches x launch

Each part is a roofline term: memory, instructions and arithmetic limit it together. They overlap in
part, so a term is the root of the sum of squares of their times (hypot). "Instructions" is the rate
of bytes that all multiprocessors take in, bytes_per_cycle x cycles per second. It limits cards with
much bandwidth and few multiprocessors, as those with HBM. With this third roof the fit needed no
other constant for HBM but longer launches. Constants: packager/estimate/constants.py.
All fields may be numbers, or arrays (R,) of as many cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import numpy as np

from packager.core.records import Device

Array = np.ndarray
Number = float | Array
Text = str | Array
N = TypeVar("N", bound=Number)
T = TypeVar("T", bound=Text)
Constants = Mapping[str, float]

# FP32 lanes of a multiprocessor (CUDA C++ programming guide, arithmetic instructions); newer: 128
LANES = {"7.0": 64, "7.2": 64, "7.5": 64, "8.0": 64}
HBM = ("7.0", "8.0", "9.0")  # V100, A100 and A30, H100 and H200: the chips that have it
CPU_LANES = 16  # guessed: AVX2, two multiply-adds of 8 lanes per core and cycle


@dataclass(frozen=True, slots=True)
class Rates(Generic[N]):
    """A device's rates: per second, all multiprocessors together. hbm, ecc: 0 or 1."""

    bandwidth: N
    cycles: N
    clock: N
    float16: N
    int8: N
    hbm: N
    ecc: N


@dataclass(frozen=True, slots=True)
class Load(Generic[N, T]):
    """A model as an engine runs it.

    weights_bytes: read for each token. parameters: of the layers alone. cache_bytes: of keys and
    values per position, as attention reads them. family: of weights, see `family`. product:
    "float", "int8" or "expand" (stored in fewer bits, multiplied as float16). fused: 1 where
    attention keeps no scores. batch_tokens: most tokens of one pass of a prompt.
    """

    weights_bytes: N
    parameters: N
    layers: N
    hidden: N
    heads: N
    vocab: N
    cache_bytes: N
    family: T
    engine: T
    product: T
    fused: N
    batch_tokens: N
    cold: N


@dataclass(frozen=True, slots=True)
class Roofline:
    """A part of a step: seconds if memory, or arithmetic and instructions, were all that limits."""

    memory_s: Number
    arithmetic_s: Number


@dataclass(frozen=True, slots=True)
class Time:
    """A step's parts. `seconds` scales them by a device's calibration."""

    terms: tuple[Roofline, ...]
    launch_s: Number

    def seconds(self, memory: float = 1, arithmetic: float = 1, launch: float = 1) -> Number:
        """All parts together, each kind times its multiplier."""
        parts = (np.hypot(s.memory_s * memory, s.arithmetic_s * arithmetic) for s in self.terms)
        return sum(parts) + self.launch_s * launch


def rates(device: Device) -> Rates[float]:
    """What the model of time knows of a device."""
    gpu_lanes = LANES.get(device.compute_capability or "", 128)
    lanes = CPU_LANES if device.kind == "cpu" else gpu_lanes
    cycles = device.fp32_flops_per_s.value / (2 * lanes)
    hbm = device.kind == "gpu" and device.compute_capability in HBM
    return Rates(
        bandwidth=device.bandwidth_bytes_per_s.value,
        cycles=cycles,
        clock=cycles / device.multiprocessors,
        # llama.cpp and cuBLAS sum in float16 where that is faster
        float16=device.fp16_half_flops_per_s.value,
        int8=device.int8_ops_per_s.value,
        hbm=float(hbm),
        ecc=float(device.ecc and not hbm),  # HBM has bits of its own for it
    )


def stack_rates(items: Sequence[Rates[float]]) -> Rates[Array]:
    """Many devices as one, each field an array (R,)."""
    return Rates(**_columns(Rates, items))


def stack_loads(items: Sequence[Load[float, str]]) -> Load[Array, Array]:
    """Many models as one, each field an array (R,)."""
    return Load(**_columns(Load, items))


def _columns(kind: type[Any], items: Sequence[object]) -> dict[str, Any]:
    return {f.name: np.array([getattr(item, f.name) for item in items]) for f in fields(kind)}


def decode(load: Load[N, T], rates: Rates[N], constants: Constants, depth_tokens: Number) -> Time:
    """One token; depth_tokens positions of the cache are seen by it."""
    fraction = _pick(constants, "share", load.family)
    fused = load.fused * depth_tokens * load.cache_bytes
    cells = (1 - load.fused) * depth_tokens * load.layers * constants["cell_cycles"] / rates.clock
    cells = cells * np.where(rates.hbm, constants["cell_hbm"], 1)
    launch = _pick(constants, "launch", load.engine) + rates.hbm * constants["launch_hbm"]
    start = constants["start"] + 1e-3 * constants["vocabulary"] * load.vocab
    return Time(
        (
            _roofline(load.weights_bytes, rates, constants, fraction),
            _roofline(fused, rates, constants, constants["share_cache"]),
            Roofline(0.0, cells),
        ),
        1e-6 * (load.layers * launch + start),
    )


def prefill(
    load: Load[N, T], rates: Rates[N], constants: Constants, tokens: Number, pairs: Number
) -> Time:
    """A prompt of `tokens` new tokens; pairs: how many (query, key) see each other, exactly."""
    batches = np.ceil(tokens / load.batch_tokens)
    int8 = load.product == "int8"
    expanded = np.where(load.product == "expand", 2 * load.parameters * constants["expand"], 0.0)
    weights = _roofline(batches * (load.weights_bytes + expanded), rates, constants, 1.0)
    peak = np.where(
        int8, rates.int8 * constants["peak_int8"], rates.float16 * constants["peak_float"]
    )
    products = 2 * load.parameters * tokens / peak
    values = tokens * load.layers * load.hidden
    # engines compute whole blocks of keys for a batch, half of the last one in vain
    seen = pairs + tokens * np.minimum(load.batch_tokens, tokens) / 2
    scores = (1 - load.fused) * seen * load.heads * load.layers * constants["score_bytes"]
    attention = 4 * seen * load.hidden * load.layers / (
        rates.float16 * constants["peak_attention"]
    )  # fmt: skip
    launch = _pick(constants, "launch", np.where(_starts(load), "llama-plain", load.engine))
    return Time(
        (
            Roofline(weights.memory_s, np.hypot(weights.arithmetic_s, products)),
            _roofline(4 * values * constants["activations"], rates, constants, 1.0),
            Roofline(0.0, values * constants["activation_cycles"] / rates.cycles),
            _roofline(scores, rates, constants, 1.0),
            Roofline(0.0, load.fused * attention),
        ),
        1e-6 * launch * load.layers * batches + 1e-3 * constants["cold"] * load.cold,
    )


def pairs_seen(past_tokens: int, new_tokens: int, window_tokens: int | None) -> int:
    """Pairs of query and key for `new_tokens` after `past_tokens`: sum of min(position + 1, W)."""
    first, last = past_tokens + 1, past_tokens + new_tokens
    if window_tokens is None or last <= window_tokens:
        return (first + last) * new_tokens // 2
    inside = max(0, window_tokens - past_tokens)
    return (first + window_tokens) * inside // 2 + (new_tokens - inside) * window_tokens


def _starts(load: Load[N, T]) -> np.ndarray:
    """Engines that decode in one graph start a prompt's kernels one by one all the same."""
    return np.isin(load.engine, ("llama", "llama-2024", "vulkan", "mlc"))


def _roofline(
    bytes_moved: Number, rates: Rates[N], constants: Constants, fraction: Number
) -> Roofline:
    ecc = np.where(rates.ecc, constants["ecc"], 1)
    return Roofline(
        bytes_moved / (rates.bandwidth * ecc * fraction),
        bytes_moved / (rates.cycles * constants["bytes_per_cycle"]),
    )


def _pick(constants: Constants, prefix: str, names: Text) -> Number:
    """The constant `prefix`_NAME of each name."""
    if isinstance(names, str):
        return constants[f"{prefix}_{names}"]
    listed = np.atleast_1d(names).tolist()
    values = {name: constants[f"{prefix}_{name}"] for name in set(listed)}
    found = np.array([values[name] for name in listed])
    return found if np.ndim(names) else float(found[0])
