"""The constants of the estimate: what each means, what it was guessed to be, how far it may move.

The guesses are starting points and hold a constant that few measurements speak of; the values that
ship are fitted to profiles/published.csv by packager/estimate/validate.py and lie, with the
intervals, in profiles/estimate.json. A test fits them again: they cannot be set by hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from packager import formats
from packager.core.package_data import read_record
from packager.core.records import Interval

FILE_NAME = "estimate.json"


@dataclass(frozen=True, slots=True)
class Constant:
    """guess: before any measurement. spread: standard deviation of its logarithm around that."""

    name: str
    guess: float
    spread: float
    meaning: str


def _each(prefix: str, guesses: dict[str, float], spread: float, meaning: str) -> list[Constant]:
    return [Constant(f"{prefix}_{name}", g, spread, meaning) for name, g in guesses.items()]


_TABLE = [
    # Rates of streams. Families are kinds of weights, see published.family.
    *_each(
        "share",
        {"float": 0.92, "block8": 0.92, "block4": 0.92, "kquant": 0.92, "group4": 0.92},
        0.05,
        "bandwidth that streaming weights reaches, where nothing else limits; near what copies "
        "reach. It may fit above 1, since the rate of instructions takes its part on top",
    ),
    Constant(
        "bytes_per_cycle", 8.5, 0.4,
        "bytes that one multiprocessor takes in per cycle: loads in flight and the instructions "
        "to expand them. It is why HBM is never filled. Guess: half a 16 byte load per cycle",
    ),
    Constant("share_cache", 0.9, 0.1, "bandwidth that fused attention reaches on keys and values"),
    Constant(
        "ecc", 0.92, 0.03,
        "bandwidth left by error correction within GDDR memory (it takes 6 % of the memory)",
    ),
    # Starts of kernels, in microseconds for each layer, by engine.
    *_each(
        "launch",
        {"llama-plain": 75, "llama-2024": 70},
        0.4,
        "llama.cpp before CUDA graphs, and with its first ones, made anew for each token: about 20 "
        "kernels of 3 to 4 us per layer",
    ),
    *_each(
        "launch",
        {"llama": 30, "vulkan": 30, "mlc": 30},
        0.2,
        "one graph for the whole step: what is left is the time between kernels",
    ),
    Constant(
        "launch_fused4", 45, 0.4,
        "engines for 4-bit weights with some fused kernels per layer (ExLlamaV2, AutoAWQ, "
        "TinyChat), whatever starts them",
    ),
    Constant(
        "launch_torch", 65, 0.2,
        "torch without graphs, and ExLlama 1: kernel after kernel from Python",
    ),
    Constant("launch_hbm", 40, 0.8, "more per layer on cards with HBM: longer ways to memory"),
    Constant("start", 145, 0.5, "microseconds for each step, whatever the model"),
    Constant("vocabulary", 1.5, 0.7, "nanoseconds for each entry: logits to the host, sampling"),
    # Attention of llama.cpp before it was fused: bound by latency, not by bytes.
    Constant("cell_cycles", 27, 0.5, "cycles for each layer and position, llama.cpp to 2024"),
    Constant("cell_hbm", 0.6, 0.5, "the same on cards with HBM, as a factor"),
    # Prompts.
    Constant("peak_float", 0.6, 0.3, "part of the float16 peak that products of many rows reach"),
    Constant("peak_int8", 0.35, 0.3, "part of the int8 peak that llama.cpp's products reach"),
    Constant("peak_attention", 0.3, 0.5, "part of the float16 peak that fused attention reaches"),
    Constant(
        "expand", 2.0, 0.5,
        "times that weights expanded to 2 bytes go through memory, where products need floats",
    ),
    Constant("activations", 25, 0.5, "passes over 4-byte activations, per layer and token"),
    Constant(
        "activation_cycles", 30, 0.5,
        "cycles per layer, token and hidden value in small kernels (sums, norms, GELU, copies)",
    ),
    Constant(
        "score_bytes", 18, 0.5,
        "bytes moved for each head and pair of positions, where scores are kept in memory",
    ),
    Constant("cold", 40, 0.5, "milliseconds that the first prompt of a process loads kernels for"),
]  # fmt: skip
CONSTANTS = {constant.name: constant for constant in _TABLE}

# Guessed: two barriers of a thread pool for each of about seven products.
LAUNCH_CPU_US = 20.0


@dataclass(frozen=True, slots=True)
class Fitted:
    """What ships: values by constant, and by family how measured / estimated spreads."""

    constants: dict[str, float]
    spreads: dict[str, Interval]


def guessed() -> dict[str, float]:
    """Launches of engines without published measurements; they are never part of the fit."""
    engines = (formats.load(name).ENGINE for name in formats.names())
    launches = {f"launch_{e.name}": e.launch_us for e in engines if e.launch_us is not None}
    return launches | {"launch_cpu": LAUNCH_CPU_US}


@dataclass(frozen=True, slots=True)
class _File:
    constants: dict[str, float]
    spreads: dict[str, tuple[float, float, float]]


def load_fitted() -> Fitted:
    """profiles/estimate.json, with what is guessed."""
    file = read_record(FILE_NAME, _File)
    spreads = {name: Interval(*ends) for name, ends in file.spreads.items()}
    return Fitted(file.constants | guessed(), spreads)
