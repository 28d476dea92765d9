"""What every picture needs: the Axes it draws on, and arguments looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from glmvae import _checks
from glmvae._optional import optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^v<>P"


def new_axes(ax: Axes | None, size: tuple[float, float] = (6.4, 4.0)) -> Axes:
    """The Axes given, or those of a new figure."""
    if ax is not None:
        require(hasattr(ax, "plot") and hasattr(ax, "get_xlabel"), "ax", "matplotlib Axes", ax)
        return ax
    return optional("matplotlib.pyplot", "a plot").subplots(figsize=size, layout="constrained")[1]


def require(holds: bool, name: str, expected: str, got: Any) -> None:
    """TypeError unless it holds."""
    if not holds:
        raise TypeError(f"{name}: expected {expected}, got {type(got).__name__}")


def numbers(value: Any, name: str) -> np.ndarray:
    """An array of floats; a posterior is not one."""
    advice = " (pass its .mean)" if hasattr(value, "mean") and hasattr(value, "covariance") else ""
    require(not advice and not isinstance(value, Mapping), name, f"an array{advice}", value)
    return np.asarray(_checks.array(value, name), float)
