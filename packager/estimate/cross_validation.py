"""The model of time replayed on published measurements, on devices that it has not seen.

For each device the constants are fitted without any of its rows, and its rows are estimated from
its specification: leave one device out. Takes some seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from packager.estimate import least_squares
from packager.estimate.constants import CONSTANTS
from packager.estimate.device_calibration import multipliers
from packager.estimate.published import Row, read_published
from packager.estimate.time_model import (
    Array,
    Load,
    Rates,
    Time,
    decode,
    pairs_seen,
    prefill,
    stack_loads,
    stack_rates,
)

KINDS = ("decode", "prefill")
# Guessed: what a row counts for in the fit, by how far it can be trusted (see published.py).
COUNTS = {"A": 1.0, "B": 0.5, "C": 0.25}
MIN_STEPS = 3  # of a host, to calibrate on two and judge by the others


@dataclass(frozen=True, slots=True)
class Replay:
    """Rows, the logarithms of their seconds, and log(estimated / measured) of each, (R,).

    constants: by device, those that were fitted without it.
    """

    rows: list[Row]
    measured: np.ndarray
    errors: np.ndarray
    constants: dict[str, dict[str, float]]

    def of(self, kind: str) -> np.ndarray:
        """The errors of one kind of row."""
        found: np.ndarray = self.errors[np.array([row.metric == kind for row in self.rows])]
        return found


class Cases:
    """Rows of both kinds as arrays, estimated all at once."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = [row for kind in KINDS for row in rows if row.metric == kind]
        self.measured = np.log([row.seconds for row in self.rows])
        self._parts: list[tuple[str, Load[Array, Array], Rates[Array], Array]] = []
        for kind in KINDS:
            own = [row for row in self.rows if row.metric == kind]
            if own:
                tokens = np.array([row.tokens for row in own], float)
                loads = stack_loads([row.load for row in own])
                self._parts.append((kind, loads, stack_rates([row.rates for row in own]), tokens))

    def estimated(self, constants: dict[str, float]) -> np.ndarray:
        """Logarithms of the estimated seconds, (R,)."""
        return np.concatenate([_estimated(*part, constants) for part in self._parts])


def _estimated(
    kind: str,
    load: Load[Array, Array],
    rates: Rates[Array],
    tokens: Array,
    constants: dict[str, float],
) -> np.ndarray:
    if kind == "decode":
        return np.log(decode(load, rates, constants, tokens).seconds())
    pairs = np.array([pairs_seen(0, int(count), None) for count in tokens], float)
    return np.log(prefill(load, rates, constants, tokens, pairs).seconds())


def fit_rows() -> list[Row]:
    """The rows that constants are fitted on and judged by: in scope, and an engine's steady state.

    Prompts through other engines than llama.cpp are left out: AutoAWQ's contain the start of the
    process, and TinyChat's are from one discrete device, so nothing can be left out for them.
    """
    return [
        row
        for row in read_published()
        if row.in_scope
        and row.metric in KINDS
        and (row.metric == "decode" or row.load.engine.startswith("llama"))
    ]


def fit(rows: Sequence[Row]) -> dict[str, float]:
    """The constants that fit the rows, those that no row speaks of as guessed."""
    cases, names = Cases(rows), list(CONSTANTS)
    values = least_squares.fit(
        lambda x: cases.estimated(dict(zip(names, x, strict=True))),
        cases.measured,
        [CONSTANTS[name].guess for name in names],
        [CONSTANTS[name].spread for name in names],
        np.array([COUNTS[row.tier] for row in cases.rows]),
    )
    return dict(zip(names, values.tolist(), strict=True))


def replay(rows: Sequence[Row]) -> Replay:
    """Estimate every row with constants that were fitted without its device."""
    cases, constants = Cases(rows), {}
    devices = np.array([row.device.name for row in cases.rows])
    errors = np.zeros(len(cases.rows))
    for device in sorted(set(devices)):
        constants[device] = fit([row for row in rows if row.device.name != device])
        own = Cases([row for row in cases.rows if row.device.name == device])
        errors[devices == device] = own.estimated(constants[device]) - own.measured
    return Replay(cases.rows, cases.measured, errors, constants)


def calibrated_errors(replay: Replay) -> dict[str, np.ndarray]:
    """log(estimated / measured) by kind, where a host's first rows calibrate it for the others.

    A host is a device in one publication, with llama.cpp of one generation. Its first decode row,
    its last and its first prompt calibrate; the constants were fitted without the device.
    """
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    hosts: dict[tuple[str, str, str], list[Row]] = {}
    for row in replay.rows:
        if row.load.engine.startswith("llama"):
            key = (row.device.name, row.source, row.load.engine)
            hosts.setdefault(key, []).append(row)
    for (device, _, _), own in hosts.items():
        steps = [row for row in own if row.metric == "decode"]
        prompts = [row for row in own if row.metric == "prefill"]
        if len(steps) < MIN_STEPS:
            continue
        chosen = [steps[0], steps[-1], *prompts[:1]]
        times = [_time(row, replay.constants[device]) for row in chosen]
        scale = multipliers(times, [row.seconds for row in chosen])
        for row in own:
            if row not in chosen:
                seconds = float(_time(row, replay.constants[device]).seconds(*scale))
                found[row.metric].append(np.log(seconds / row.seconds))
    return {kind: np.array(logs) for kind, logs in found.items()}


def _time(row: Row, constants: dict[str, float]) -> Time:
    if row.metric == "decode":
        return decode(row.load, row.rates, constants, row.tokens)
    pairs = pairs_seen(0, row.tokens, None)
    return prefill(row.load, row.rates, constants, row.tokens, pairs)
