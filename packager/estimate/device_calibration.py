"""Three multipliers that turn a device's specification into what it does: a fit, and its samples.

    measured = sum hypot(memory x m, arithmetic x a) + launch x l    (time_model.Time)

The samples are short runs of small models of random weights through the shipped runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from packager.core.errors import DeviceError
from packager.core.records import Calibration
from packager.estimate import least_squares
from packager.estimate.time_model import Time

MIN_SAMPLES = 3
# Guessed: how far a device may be from its specification, as standard deviations of logarithms.
# What the samples do not tell apart stays near 1.
SPREADS = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True)
class Sample:
    """What a step took, and what the specification says of it."""

    seconds: float
    expected: Time


def fit_calibration(samples: Sequence[Sample], engine: str, date: str) -> Calibration:
    """The multipliers that explain the samples, all positive.

    Raises DeviceError where there are too few, or one took no time.
    """
    if len(samples) < MIN_SAMPLES or any(not sample.seconds > 0 for sample in samples):
        raise DeviceError(
            f"{len(samples)} samples do not tell what the device does",
            expected=f"{MIN_SAMPLES} or more, each of more than 0 s",
            remedy="measure again on an idle machine",
        )
    memory, arithmetic, launch = multipliers(
        [sample.expected for sample in samples], [sample.seconds for sample in samples]
    )
    return Calibration(memory, arithmetic, launch, engine, date)


def multipliers(expected: Sequence[Time], seconds: Sequence[float]) -> tuple[float, float, float]:
    """(memory, arithmetic, launch) that fit measured seconds best."""

    def logs(x: np.ndarray) -> np.ndarray:
        return np.log([float(time.seconds(*x)) for time in expected])

    memory, arithmetic, launch = least_squares.fit(
        logs, np.log(seconds), (1.0, 1.0, 1.0), SPREADS
    ).tolist()
    return memory, arithmetic, launch
