"""Extrapolation of the climb from its last few points and steps (Anderson's method).

A point is theta, and beside it log phi of every column where the dispersion is free: EM for a noise a column alone,
which is factor analysis, creeps. Distances are measured by the metric of the weighted least squares, and log phi by
its information.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from glmvae.ascent.decoder import SOLVABLE

# Steps of the past that are looked at, and the rounding units that their products may be off by.
MEMORY = 6
_RIDGE = 100


def joined(theta: np.ndarray, phi: Any) -> np.ndarray:
    """A point: theta (d, r), and log phi as one more column unless phi is None."""
    if phi is None:
        return theta
    log_phi = np.log(np.maximum(np.asarray(phi, np.float64), np.finfo(np.float64).tiny))
    return np.column_stack([theta, np.broadcast_to(log_phi, len(theta))])


def parted(point: np.ndarray, now: Any, best: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """theta and phi of a point; None where ``best``, the phi called for, is. Where it is as now, phi is held."""
    if best is None:
        return point, None
    now = np.asarray(now)
    with np.errstate(over="ignore"):
        phi = np.exp(point[:, -1] if now.ndim else point[0, -1]).astype(now.dtype)
    return point[:, :-1], np.where(np.asarray(best) == now, now, phi)


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
