"""Published measurements of language models on devices, as cases for the model of time.

Data: profiles/published.csv, each row with where it was published and how far it can be trusted
(A: run and described; B: something assumed, see its note; C: second-hand; X: anomalous). Engines
are named by what their users know of them: llama-plain is llama.cpp before CUDA graphs (until May
2024), llama-2024 with the first of them, llama of 2025 and later.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache

from packager.core.package_data import profiles_folder
from packager.core.records import Device
from packager.devices.database import load_device
from packager.estimate.time_model import Load, Rates, rates
from packager.formats.gguf.footprint import weight_family

FILE_NAME = "published.csv"
# These repeat grouped keys and values for every query head before they multiply.
REPEATING = ("autoawq", "tinychat", "torch")
# Engines that share a launch constant with others: what they do is of one kind.
CLASSES = {
    "exllama": "torch",  # kernel after kernel from Python
    "autoawq": "fused4",
    "exllamav2": "fused4",
    "tinychat": "fused4",
}
HALF = 2
MIN_PARAMETERS, MAX_PARAMETERS = 2e9, 16e9
FEWER_BITS = ("Q2", "Q3", "EXL2-3")  # below 4 bits for most weights, whatever the average


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement on a device: `value` in tokens per second, or bytes."""

    source: str
    device: Device
    model: str
    quantisation: str
    metric: str
    tokens: int
    value: float
    file_bytes: int
    parameters: int
    load: Load[float, str]
    rates: Rates[float]
    tier: str
    note: str

    @property
    def seconds(self) -> float:
        """Of a token, or of the whole prompt."""
        return (self.tokens if self.metric == "prefill" else 1) / self.value

    @property
    def in_scope(self) -> bool:
        """Discrete GPU of compute capability 7 or more, 2 to 16 billion parameters, 4 bits."""
        device = self.device
        return (
            device.kind == "gpu"
            and float(device.compute_capability or 0) >= 7
            and MIN_PARAMETERS <= self.parameters <= MAX_PARAMETERS
            and not self.quantisation.startswith(FEWER_BITS)
            and self.tier != "X"
        )


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file that others have converted, and its size as listed."""

    model: str
    quantisation: str
    bytes: float


@cache
def read_published() -> tuple[Row, ...]:
    """Every measurement on a device, in the order of the file."""
    return tuple(_row(data) for data in _read() if data["device"])


def read_files() -> list[PublishedFile]:
    """Every listed file."""
    return [
        PublishedFile(data["model"], data["quantisation"], float(data["value"]))
        for data in _read()
        if data["metric"] == "file"
    ]


def _read() -> list[dict[str, str]]:
    with (profiles_folder() / FILE_NAME).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _row(data: dict[str, str]) -> Row:
    device = load_device(data["device"])
    parameters = int(data["parameters"])
    return Row(
        source=data["source"],
        device=device,
        model=data["model"],
        quantisation=data["quantisation"],
        metric=data["metric"],
        tokens=int(data["tokens"]),
        value=float(data["value"]),
        file_bytes=int(data["file_bytes"]),
        parameters=parameters,
        load=_load(data, parameters),
        rates=rates(device),
        tier=data["tier"],
        note=data["note"],
    )


def _load(data: dict[str, str], parameters: int) -> Load[float, str]:
    layers, hidden, heads, vocab, cache_bytes, batch = (
        int(data[key])
        for key in ("layers", "hidden", "heads", "vocab", "cache_bytes_per_token", "batch_tokens")
    )
    engine, kind = data["engine"], family(data["quantisation"])
    if engine in REPEATING:
        cache_bytes = 2 * HALF * layers * hidden
    matrices = 1 if data["tied"] == "1" else 2
    return Load(
        weights_bytes=float(data["streamed_bytes"]),
        parameters=float(parameters - matrices * vocab * hidden),
        layers=layers,
        hidden=hidden,
        heads=heads,
        vocab=vocab,
        cache_bytes=cache_bytes,
        family=kind,
        engine=CLASSES.get(engine, engine),
        product=product(kind, engine),
        fused=float(engine not in ("llama-plain", "llama-2024")),
        batch_tokens=batch,
        cold=float(data["cold"]),
    )


def family(quantisation: str) -> str:
    """The kind of weights that a quantisation's name means, as the constants know it."""
    return weight_family(quantisation) or "group4"


def product(kind: str, engine: str) -> str:
    """How products of many rows are computed: llama.cpp since mid 2024 keeps quantised ones."""
    if kind == "float":
        return "float"
    return "int8" if engine == "llama" else "expand"
