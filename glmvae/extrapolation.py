"""Extrapolation of a fixed-point iteration from its last few points and steps.

A map that creeps towards its fixed point along a few directions tells, by how its steps changed from point to point,
where they would vanish (Anderson's method): the combination of past steps that is least, in a metric of the caller's.
What it proposes is no more than that. The caller keeps it where its objective rose, and takes the plain step elsewhere.
"""

from __future__ import annotations

import numpy as np

# Points that are remembered; the rounding units that the products of steps may be off by, and the least.
_POINTS = 6
_RIDGE = 100
_SOLVABLE = 1e-12


class Memory:
    """The last few points of an iteration, and the step that each called for: arrays of one shape, rounded to eps."""

    def __init__(self, eps: float) -> None:
        self._points: list[np.ndarray] = []
        self._steps: list[np.ndarray] = []
        self._ridge = max(_RIDGE * eps, _SOLVABLE)

    def __len__(self) -> int:
        return len(self._points)

    def remember(self, point: np.ndarray, step: np.ndarray) -> None:
        """A point that was left."""
        self._points.append(point)
        self._steps.append(step)
        del self._points[:-_POINTS], self._steps[:-_POINTS]

    def forget(self) -> None:
        """All of them: where they led was no good."""
        self._points.clear()
        self._steps.clear()

    def extrapolated(self, point: np.ndarray, step: np.ndarray, metric: np.ndarray | float = 1.0) -> np.ndarray:
        """The proposal from a point, its step and those remembered, one at least.

        Source: Anderson (1965), "Iterative procedures for nonlinear integral equations".
        """
        moved = np.stack([point - p for p in self._points])
        changed = np.stack([step - s for s in self._steps])
        weighted = (changed * metric).reshape(len(self), -1)
        gram = weighted @ weighted.T
        size = np.sqrt(np.diag(gram))
        size = np.where(size > 0, size, 1.0)
        ridge = self._ridge * np.eye(len(self))
        solved = np.linalg.solve(gram / (size[:, None] * size) + ridge, weighted @ (step * metric).ravel() / size)
        return point + step - np.tensordot(solved / size, moved + changed, axes=1)
