"""Extrapolation of the climb from its last few points and steps (Anderson's method).

A point is theta, and beside it log phi of every column where the dispersion is free: EM for a noise a column alone,
which is factor analysis, creeps. Distances are measured by the metric of the weighted least squares, and log phi by
its information.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from glmvae.ascent.decoder import SOLVABLE, moved, stacked

if TYPE_CHECKING:
    from glmvae.ascent.climb import State

# Steps of the past that are looked at, and the rounding units that their products may be off by.
MEMORY = 6
_RIDGE = 100


def point_of(state: State) -> np.ndarray:
    """Where a state is."""
    return _beside(stacked(state.decoder), state, state.objective.dispersion)


def point_after(state: State, caution: np.ndarray) -> np.ndarray:
    """Where its step leads, that of every column 2^-caution long."""
    return _beside(moved(state.decoder, state.step, caution), state, state.step.dispersion)


def _beside(theta: np.ndarray, state: State, phi: Any) -> np.ndarray:
    if state.step.dispersion is None:
        return theta
    log_phi = np.log(np.maximum(np.asarray(phi, np.float64), np.finfo(np.float64).tiny))
    return np.column_stack([theta, np.broadcast_to(log_phi, len(theta))])


def metric_of(state: State) -> np.ndarray:
    """That of the least squares, and the root of the information of log phi, half an entry's each."""
    if state.step.dispersion is None:
        return state.step.metric
    return np.column_stack([state.step.metric, np.sqrt(0.5 * np.asarray(state.sums.entries, np.float64))])


def parts_of(point: np.ndarray, state: State) -> tuple[np.ndarray, np.ndarray | None]:
    """theta and phi of a point; a phi that is held is what it was to the last digit."""
    if state.step.dispersion is None:
        return point, None
    now, best = np.asarray(state.objective.dispersion), np.asarray(state.step.dispersion)
    with np.errstate(over="ignore"):
        phi = np.exp(point[:, -1] if now.ndim else point[0, -1]).astype(now.dtype)
    return point[:, :-1], np.where(best == now, now, phi)


def extrapolated(
    here: np.ndarray,
    ahead: np.ndarray,
    metric: np.ndarray,
    points: list[np.ndarray],
    steps: list[np.ndarray],
    eps: float,
) -> np.ndarray:
    """Anderson's proposal from this point and step and those before."""
    moved = np.stack([here - p for p in points])
    changed = np.stack([ahead - s for s in steps])
    weighted = (changed * metric).reshape(len(points), -1)
    gram = weighted @ weighted.T
    size = np.sqrt(np.diag(gram))
    size = np.where(size > 0, size, 1.0)
    ridge = max(_RIDGE * eps, SOLVABLE) * np.eye(len(points))
    solved = np.linalg.solve(gram / (size[:, None] * size) + ridge, weighted @ (ahead * metric).ravel() / size)
    return here + ahead - np.tensordot(solved / size, moved + changed, axes=1)
