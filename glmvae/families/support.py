"""Where observations of a family lie."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from glmvae import _checks

if TYPE_CHECKING:
    from glmvae.families.base import Family


class Support(NamedTuple):
    """The interval in which observations lie; the ends belong to it where they are finite and not open."""

    lower: ArrayLike = -math.inf
    upper: ArrayLike = math.inf
    open_lower: ArrayLike = False

    def contains(self, x: Array) -> Array:
        """Whether each entry lies in the support (NaN and infinity never do)."""
        known = _checks.concrete((x, tuple(self)))  # NumPy compiles nothing
        numpy: Any = np if known else jnp
        x = numpy.asarray(x, x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.result_type(float))
        lower, upper = (of_rank(numpy.asarray(limit, x.dtype), x.ndim) for limit in (self.lower, self.upper))
        above = (x > lower) | ((x == lower) & ~of_rank(numpy.asarray(self.open_lower, bool), x.ndim))
        held = numpy.isfinite(x) & above & (x <= upper)
        return jax.device_put(held) if known else held

    def off_the_ends(self, mean: Array) -> Array:
        """Means of data, those at an end as far from it as no rate that is observed."""
        eps, tiny = jnp.finfo(mean.dtype).eps, jnp.finfo(mean.dtype).tiny
        lower, upper = (of_rank(jnp.asarray(end, mean.dtype), mean.ndim) for end in (self.lower, self.upper))
        scale = jnp.where(jnp.isfinite(lower) & jnp.isfinite(upper), upper - lower, 1.0)
        at_lower = eps * jnp.maximum(jnp.minimum(scale, 1.0), jnp.abs(lower))
        return jnp.clip(mean, lower + jnp.where(mean > lower, tiny / eps, at_lower), upper - eps * scale)

    def __str__(self) -> str:
        if np.ndim(self.lower):
            return f"of {len(np.asarray(self.lower))} columns"
        left = f"({self.lower:g}" if self.open_lower or np.isinf(self.lower) else f"[{self.lower:g}"
        upper = np.asarray(self.upper)
        name = f"{float(upper):g}" if upper.ndim == 0 else "trials"
        return f"{left}, {name}" + (")" if np.all(np.isinf(upper)) else "]")


def check_support(value: Any, name: str) -> None:
    """Limits with something between them.

    Raises:
        TypeError: no Support.
        ValueError: the lower is not below the upper.
    """
    if not isinstance(value, Support):
        raise TypeError(f"{name}: expected a Support such as Support(0.0), got {value!r}")
    if not np.all(np.asarray(value.lower) < np.asarray(value.upper)):
        raise ValueError(f"{name}: expected a lower limit below the upper, got {value.lower} and {value.upper}")


def of_rank(value: Array, rank: int) -> Array:
    """One value a column, (d,), beside arrays (..., d) of that rank; a scalar stays one."""
    return value.reshape((1,) * (rank - value.ndim) + value.shape) if 0 < value.ndim < rank else value


def refuse_value(
    x: np.ndarray,
    bad: np.ndarray,
    family: Family | None,
    origin: tuple[int, ...],
    name: str,
    column_names: tuple[str, ...] | None = None,
) -> None:
    """Raise for the first entry that is not finite or out of the support."""
    value, where = _checks.first_bad(x, bad, origin, column_names)
    if family is None or not np.isfinite(value):
        _checks.refuse_first(x, bad, origin, name, column_names)
    assert family is not None
    member = family.of_column(int(np.argwhere(bad)[0][-1])) if bad.ndim else family
    raise ValueError(f"{name}: expected values in the support {member.support} of {member!r}, got {value:g}{where}")
