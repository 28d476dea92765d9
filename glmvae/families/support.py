"""Where observations of a family lie."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


class Support(NamedTuple):
    """The interval in which observations lie; the ends belong to it where they are finite and not open."""

    lower: ArrayLike = -math.inf
    upper: ArrayLike = math.inf
    open_lower: ArrayLike = False

    def contains(self, x: Array) -> Array:
        """Whether each entry lies in the support (NaN and infinity never do)."""
        x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))
        lower, upper = (of_rank(jnp.asarray(limit, x.dtype), x.ndim) for limit in (self.lower, self.upper))
        above = (x > lower) | ((x == lower) & jnp.logical_not(of_rank(jnp.asarray(self.open_lower), x.ndim)))
        return jnp.isfinite(x) & above & (x <= upper)

    def __str__(self) -> str:
        if np.ndim(self.lower):
            return f"of {len(np.asarray(self.lower))} columns"
        left = f"({self.lower:g}" if self.open_lower or np.isinf(self.lower) else f"[{self.lower:g}"
        upper = np.asarray(self.upper)
        name = f"{float(upper):g}" if upper.ndim == 0 else "trials"
        return f"{left}, {name}" + (")" if np.all(np.isinf(upper)) else "]")


def of_rank(value: Array, rank: int) -> Array:
    """One value a column, (d,), beside arrays (..., d) of that rank; a scalar stays one."""
    return value.reshape((1,) * (rank - value.ndim) + value.shape) if 0 < value.ndim < rank else value
