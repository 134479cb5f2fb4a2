"""Least squares for positive constants, on the logarithm of times: Levenberg-Marquardt, in numpy.

Minimises, over constants c with guesses g and spreads s,

    sum weight * huber(log(estimate(c) / measured) / SCALE) + sum (log(c / g) / s)^2 / 2

so an error of 10 % counts alike at any speed, a few wild rows do not decide, and a constant that
no row speaks of keeps its guess. Knows nothing of what is fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

SCALE = 0.05  # guessed: what two honest runs on two machines of one kind differ by
WILD = 0.10  # guessed: beyond this an error counts in proportion, not by its square
STEP = 1e-4  # of a logarithm, for derivatives
ROUNDS = 30
ENOUGH = 1e-9  # of the cost: less gain ends the fit


def fit(
    logs: Callable[[np.ndarray], np.ndarray],
    measured_logs: np.ndarray,
    guesses: Sequence[float],
    spreads: Sequence[float],
    weights: np.ndarray | float = 1.0,
) -> np.ndarray:
    """The constants, (C,); `logs` gives the logarithms of estimates (R,) from constants (C,).

    weights: what each row counts for, (R,).
    """
    center, width = np.log(guesses), np.asarray(spreads, float)

    def residuals(x: np.ndarray) -> np.ndarray:
        errors: np.ndarray = logs(np.exp(x)) - measured_logs
        return errors

    def cost(x: np.ndarray, errors: np.ndarray) -> float:
        size, wild = np.abs(errors) / SCALE, WILD / SCALE
        rows = np.where(size < wild, size**2 / 2, wild * (size - wild / 2))
        return float((weights * rows).sum() + (((x - center) / width) ** 2).sum() / 2)

    x, damping = center.copy(), 1e-2
    errors = residuals(x)
    now = cost(x, errors)
    for _ in range(ROUNDS):
        slopes = np.stack(
            [(residuals(x + row) - errors) / STEP for row in STEP * np.eye(x.size)], 1
        )
        counted = np.minimum(1, WILD / np.maximum(np.abs(errors), 1e-12)) / SCALE**2 * weights
        curve = slopes.T @ (slopes * counted[:, None]) + np.diag(width**-2)
        slope = slopes.T @ (counted * errors) + (x - center) / width**2
        while True:
            new = x - np.linalg.solve(curve + damping * np.diag(np.diag(curve)), slope)
            new_errors = residuals(new)
            then = cost(new, new_errors)
            if then < now or damping > 1e6:
                break
            damping *= 4
        gained, damping = now - then, damping / 5
        if gained <= 0:
            break
        x, errors, now = new, new_errors, then
        if gained < ENOUGH * now:
            break
    return np.exp(x)
