"""A stand-in for NVIDIA's pynvml: these tests ran on no NVIDIA GPU. It answers as a driver would.

What each card states is taken from its specification, as are the shapes of the answers from
nvidia-ml-py 13.615.71.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any


class NVMLError(Exception):
    """The names of the errors are nvidia-ml-py's."""


class NVMLError_LibraryNotFound(NVMLError):
    pass


class NVMLError_DriverNotLoaded(NVMLError):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


class NVMLError_FunctionNotFound(NVMLError):
    pass


@dataclass(frozen=True)
class Card:
    """None: this card's driver does not support the question."""

    name: str
    capability: tuple[int, int]
    total: int | None
    free: int | None
    memory_mhz: int | None
    bus_bits: int | None
    clock_mhz: int | None
    cores: int | None
    ecc: tuple[int, int] | None = None
    mig: tuple[int, int] | None = None


MIB = 1 << 20
T4 = Card("Tesla T4", (7, 5), 15360 * MIB, 14900 * MIB, 5001, 256, 1590, 2560, ecc=(1, 1))
A100 = Card(
    "NVIDIA A100-SXM4-80GB", (8, 0), 81920 * MIB, 80000 * MIB, 1593, 5120, 1410, 6912,
    ecc=(1, 1), mig=(0, 0),
)  # fmt: skip
RTX_3060 = Card("NVIDIA GeForce RTX 3060", (8, 6), 12288 * MIB, 11500 * MIB, 7501, 192, 1777, 3584)
GB10 = Card("NVIDIA GB10", (12, 1), None, None, None, None, 2418, 6144)
GTX_1050_TI = Card(
    "NVIDIA GeForce GTX 1050 Ti", (6, 1), 4096 * MIB, 3900 * MIB, 3504, 128, 1392, 768
)


@dataclass
class Driver:
    """What nvmlInit meets: an error, or cards; it counts what is open."""

    cards: list[Card]
    error: NVMLError | None = None
    open: int = 0


def fake_nvml(*cards: Card, error: NVMLError | None = None) -> tuple[ModuleType, Driver]:
    """A module as `import pynvml` gives it, and the driver behind it."""
    module, driver = ModuleType("pynvml"), Driver(list(cards), error)

    def init() -> None:
        if driver.error is not None:
            raise driver.error
        driver.open += 1

    def shutdown() -> None:
        driver.open -= 1

    def answer(field_name: str) -> Any:
        def ask(card: Card) -> Any:
            value = getattr(card, field_name)
            if value is None:
                raise NVMLError_NotSupported("Not Supported")
            return value

        return ask

    def memory(card: Card) -> SimpleNamespace:
        return SimpleNamespace(total=answer("total")(card), free=answer("free")(card))

    def clock(card: Card, kind: int) -> int:
        return answer({1: "clock_mhz", 2: "memory_mhz"}[kind])(card)

    module.__dict__.update(
        NVMLError=NVMLError,
        NVMLError_LibraryNotFound=NVMLError_LibraryNotFound,
        NVMLError_NotSupported=NVMLError_NotSupported,
        NVMLError_FunctionNotFound=NVMLError_FunctionNotFound,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        nvmlInit=init,
        nvmlShutdown=shutdown,
        nvmlDeviceGetCount=lambda: len(driver.cards),
        nvmlDeviceGetHandleByIndex=lambda index: driver.cards[index],
        nvmlDeviceGetName=answer("name"),
        nvmlDeviceGetCudaComputeCapability=answer("capability"),
        nvmlDeviceGetMemoryInfo=memory,
        nvmlDeviceGetMaxClockInfo=clock,
        nvmlDeviceGetMemoryBusWidth=answer("bus_bits"),
        nvmlDeviceGetNumGpuCores=answer("cores"),
        nvmlDeviceGetEccMode=answer("ecc"),
        nvmlDeviceGetMigMode=answer("mig"),
        nvmlSystemGetDriverVersion=lambda: "570.86.15",
        nvmlSystemGetCudaDriverVersion_v2=lambda: 12080,
    )
    return module, driver
