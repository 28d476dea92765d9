"""A word where a cast to a narrower precision takes away what tells rows apart: float64 data far from 0 in float32."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from jax.typing import DTypeLike

# How many rows show whether digits are lost, and what part of the spread is a loss.
_LOOKED_AT = 1000
_LOST = 0.01


def warn_of_lost_digits(x: Any, dtype: DTypeLike, name: str, what: str = "") -> None:
    """Warn of the first column that the cast blurs by a hundredth of its spread; some rows are looked at.

    Args:
        x: the rows, (n, d), as they come.
        dtype: what they are cast to.
        name: of the argument.
        what: that precision is of, as in ``", the precision of the net"``.
    """
    if not isinstance(x, np.ndarray) or np.can_cast(x.dtype, dtype):
        return
    few = np.asarray(x[np.linspace(0, len(x) - 1, min(len(x), _LOOKED_AT)).astype(int)], float)
    seen = {"where": np.isfinite(few), "axis": 0}
    with np.errstate(over="ignore", invalid="ignore"):
        spread = np.max(few, initial=-np.inf, **seen) - np.min(few, initial=np.inf, **seen)
        error = np.max(np.abs(few - few.astype(dtype)), initial=0.0, **seen)
    lost = np.flatnonzero((spread > 0) & (error > _LOST * spread))
    if lost.size:
        warnings.warn(
            f"{name}: column {lost[0]} loses its digits in {np.dtype(dtype)}{what}; take its mean away, or enable "
            "jax_enable_x64" + (" and make the net with dtype='float64'" if what else ""),
            stacklevel=3,
        )
