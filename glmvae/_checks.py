"""Checks at the eager boundary: an error names the argument, what was expected, what came, the first bad index.

Values are looked at only when they are concrete; under ``jit``, ``vmap`` and ``grad`` a check of values is
silent and a bad value shows as a documented NaN. Shapes and types are always checked.
"""

from __future__ import annotations

import math
import operator
import sys
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

if TYPE_CHECKING:
    from glmvae.families import Family, Support

# Rows.
_BLOCK = 1000


def concrete(value: Any) -> bool:
    """Whether the value can be looked at, that is, no part of it is a tracer."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def holds(value: Array, support: Support | None = None) -> bool:
    """Whether every entry of a concrete value is finite, or in a support, under a transformation as well."""
    with jax.ensure_compile_time_eval():
        return bool(_holds(value, support))


@jax.jit
def _holds(value: Array, support: Support | None) -> Array:
    """Block by block, so that nothing of the size of a matrix is made."""

    def inside(value: Array, support: Support | None) -> Array:
        return jnp.all(jnp.isfinite(value) if support is None else support.contains(value))

    if value.ndim != 2 or value.shape[0] <= _BLOCK:
        return inside(value, support)

    def so_far(i: Array, held: Array) -> Array:
        start = jnp.minimum(i * _BLOCK, value.shape[0] - _BLOCK)

        def cut(leaf: Array) -> Array:  # the value, and a bound that has one value an entry
            return jax.lax.dynamic_slice_in_dim(leaf, start, _BLOCK) if jnp.ndim(leaf) == 2 else leaf

        return held & inside(*jax.tree.map(cut, (value, support)))

    return jax.lax.fori_loop(0, math.ceil(value.shape[0] / _BLOCK), so_far, jnp.asarray(True))


def numeric(value: Any, name: str) -> Array:
    """A real floating array: float32 and float64 are kept, all else becomes JAX's default float.

    A Python number stays weakly typed, so that it takes the precision of the arrays it meets.
    """
    if isinstance(value, int | float) and not isinstance(value, np.generic):
        return jnp.asarray(float(value))
    if not isinstance(value, jax.Array):
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise TypeError(f"{name}: expected an array of numbers, got rows of unequal length") from error
        if value.dtype.kind not in "fiub":
            raise TypeError(f"{name}: expected an array of numbers, got dtype {value.dtype}")
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise TypeError(f"{name}: expected real numbers, got dtype {value.dtype}")
    if value.dtype not in (np.dtype("float32"), np.dtype("float64")):
        return jnp.asarray(value, jnp.result_type(float))
    return jnp.asarray(value)


def family(value: Any, name: str = "family") -> None:
    """An observation model, made (``Bernoulli()``) and not only named (``Bernoulli``)."""
    from glmvae.families import Family

    if not isinstance(value, Family):
        got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{name}: expected a family such as Bernoulli(), got {got}")


def first_index(bad: Any) -> str:
    """The first true entry of a mask as ``[i, j]``."""
    return str([int(i) for i in np.argwhere(np.asarray(bad))[0]])


def _first_value(value: Any, bad: Any) -> str:
    return f"{np.asarray(value)[np.asarray(bad)].ravel()[0]:g}"


def finite(value: Array, name: str) -> Array:
    if concrete(value) and not holds(value):
        bad = ~np.isfinite(np.asarray(value))
        where = f" at {first_index(bad)}" if bad.ndim else ""
        raise ValueError(f"{name}: expected finite numbers, got {_first_value(value, bad)}{where}")
    return value


def in_support(x: Array, family: Family, name: str) -> Array:
    """x, every entry of which the family can produce (or read as a proportion)."""
    if not concrete((x, family)):
        return finite(x, name)
    columns_of(x, family, name)
    if not holds(x, family.support):
        finite(x, name)
        with jax.ensure_compile_time_eval():
            bad = ~np.asarray(family.support.contains(x))
        where = f" at {first_index(bad)}" if bad.ndim else ""
        member = family.of_column(int(np.argwhere(bad)[0][-1])) if bad.ndim else family
        raise ValueError(
            f"{name}: expected values in the support {member.support} of {member!r}, got {_first_value(x, bad)}{where}"
        )
    return x


def columns_of(x: Array, family: Family, name: str) -> None:
    """x has as many columns as the family is for."""
    columns = family.columns
    if columns is not None and (not x.ndim or columns != x.shape[-1]):
        raise ValueError(f"{name}: expected {columns} columns, the number {family!r} is for, got shape {x.shape}")
    trials = np.shape(getattr(family, "trials", 0))
    if len(trials) == 2 and trials != x.shape:
        raise ValueError(f"{name}: expected shape {trials}, that of the trials per entry, got shape {x.shape}")


def one_a_column(family: Family) -> None:
    """The family has no parameter per entry, whose averages moments know nothing of."""
    trials = np.shape(getattr(family, "trials", 0))
    if len(trials) == 2:
        raise ValueError(
            f"family: moments need trials that are a scalar or one a column, got shape {trials}; "
            'trials per entry are for refine(method="entry" or "exact"), started from fit(x / trials, Bernoulli(), ...)'
        )


def matrix(value: Any, name: str, *, columns: int | None = None, rows: int | None = None) -> Array:
    """A finite matrix with at least one row and one column."""
    return finite(_shaped(numeric(value, name), name, columns, rows), name)


def _shaped(array: Array, name: str, columns: int | None = None, rows: int | None = None) -> Array:
    if array.ndim != 2:
        raise ValueError(f"{name}: expected 2 dimensions (rows, columns), got shape {array.shape}")
    if 0 in array.shape:
        raise ValueError(f"{name}: expected at least one row and one column, got shape {array.shape}")
    if columns is not None and array.shape[1] != columns:
        raise ValueError(f"{name}: expected {columns} columns, got shape {array.shape}")
    if rows is not None and array.shape[0] != rows:
        raise ValueError(f"{name}: expected {rows} rows, got shape {array.shape}")
    return array


def vector(value: Any, name: str, length: int) -> Array:
    """A finite vector of that length."""
    array = numeric(value, name)
    if array.shape != (length,):
        raise ValueError(f"{name}: expected shape ({length},), got shape {array.shape}")
    return finite(array, name)


_family = family  # where an argument has the name


def rows_of(x: Any, family: Family, columns: int | None = None, name: str = "x") -> Array:
    """Data: a matrix of observations in the family's support."""
    _family(family)
    array = numeric(x, name)
    if array.ndim == 2 and 0 not in array.shape:
        in_support(array, family, name)
    return _shaped(array, name, columns)


def integer(value: Any, name: str, least: int = 1) -> int:
    """An integer, not a boolean, of at least ``least``."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    try:
        value = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from error
    if value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value}")
    return value


def latent_dim(value: Any, number: int, name: str = "latent_dim", of: str = "columns", least: int = 1) -> int:
    """An integer between 1 (or ``least``) and the number of columns (or rows, or units)."""
    value = integer(value, name, least=-sys.maxsize)
    if not least <= value <= number:
        raise ValueError(f"{name}: expected an integer from {least} to the number of {of}, {number}, got {value}")
    return value


def _numbers(value: Any, name: str) -> np.ndarray | None:
    if not concrete(value):
        return None
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from error
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return array


def _refuse(array: np.ndarray, bad: np.ndarray | np.bool_, name: str, expected: str) -> None:
    if np.any(bad):
        where = f" at {first_index(bad)}" if array.ndim else ""
        raise ValueError(f"{name}: expected {expected}, got {_first_value(array, bad)}{where}")


def positive(value: Any, name: str, columns: int | None = None) -> None:
    """A positive finite number, or one a column where ``columns`` is given."""
    array = _numbers(value, name)
    if array is None:
        return
    allowed = ((),) if columns is None else ((), (columns,))
    if array.shape not in allowed:
        expected = "a scalar" if columns is None else f"a scalar or shape ({columns},)"
        raise ValueError(f"{name}: expected {expected}, got shape {array.shape}")
    _refuse(array, ~(np.isfinite(array) & (array > 0)), name, "a positive finite number")


def at_least(value: Any, least: float, name: str, *, entries: bool = False) -> None:
    """A finite number, or vector of them, none below ``least``; with ``entries`` a matrix of them too."""
    array = _numbers(value, name)
    if array is None:
        return
    if not (entries and array.ndim == 2):
        _refuse_matrix(array, name)
    _refuse(array, ~(np.isfinite(array) & (array >= least)), name, f"a finite number of at least {least:g}")


def not_negative(value: Array, name: str) -> Array:
    """Finite numbers, none below 0."""
    finite(value, name)
    if concrete(value):
        array = np.asarray(value)
        _refuse(array, array < 0, name, "no number below 0")
    return value


def positive_each(value: Any, name: str) -> None:
    """A positive finite number, or vector of them."""
    array = _numbers(value, name)
    if array is None:
        return
    _refuse_matrix(array, name)
    _refuse(array, ~(np.isfinite(array) & (array > 0)), name, "a positive finite number")


def _refuse_matrix(array: np.ndarray, name: str) -> None:
    if array.ndim > 1:
        raise ValueError(f"{name}: expected a scalar or a vector, one a column, got shape {array.shape}")


def length(value: Any) -> int | None:
    """The number of columns that a parameter is for: None for a scalar, which is for any number."""
    shape = np.shape(value)
    return shape[-1] if shape else None


def nonzero_scalar(value: Any, name: str) -> None:
    """A finite scalar other than 0."""
    array = _numbers(value, name)
    if array is None:
        return
    if array.ndim or not math.isfinite(array) or array == 0:
        raise ValueError(f"{name}: expected a finite scalar other than 0, got {value!r}")
