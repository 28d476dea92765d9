"""Checks of what a caller sets, numbers and keys: the error names the argument, what was expected, what came.

Values are looked at only when they are concrete, as in :mod:`glmvae._checks`.
"""

from __future__ import annotations

import math
import operator
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from glmvae._checks import array as as_array
from glmvae._checks import at_once, compute_dtype, concrete, finite, first_index, refuse_masked


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


def prng_key(value: Any, name: str) -> Array:
    """One key of JAX's random numbers, typed or raw."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key) and value.ndim == 0:
        return value
    if isinstance(value, jax.Array) and value.dtype == jnp.uint32 and value.ndim == 1:
        return value
    got = f"{value.dtype} of shape {value.shape}" if isinstance(value, jax.Array) else repr(value)
    raise TypeError(f"{name}: expected one key such as jax.random.key(0), got {got}")


def latent_dim(value: Any, number: int, name: str = "latent_dim", of: str = "columns", least: int = 1) -> int:
    """An integer between 1 (or ``least``) and the number of columns (or rows, or units)."""
    value = integer(value, name, least=-sys.maxsize)
    if not least <= value <= number:
        raise ValueError(f"{name}: expected an integer from {least} to the number of {of}, {number}, got {value}")
    return value


def _numbers(value: Any, name: str) -> np.ndarray | None:
    if not concrete(value):
        return None
    refuse_masked(value, name)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from error
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return array


def _first_value(value: Any, bad: Any) -> str:
    return f"{np.asarray(value)[np.asarray(bad)].ravel()[0]:g}"


def _refuse(array: np.ndarray, bad: np.ndarray | np.bool_, name: str, expected: str) -> None:
    if np.any(bad):
        where = f" at {first_index(bad)}" if array.ndim else ""
        raise ValueError(f"{name}: expected {expected}, got {_first_value(array, bad)}{where}")


def positive(
    value: Any, name: str, columns: int | None = None, *, vector: bool = False, dtype: np.dtype | None = None
) -> Array:
    """A positive finite number as an array, also in the precision in use; with ``vector`` or ``columns`` one a column.

    In ``dtype`` if there is one; else a scalar stays weakly typed, and takes the precision of the arrays it meets. What
    is traced and not positive becomes NaN.
    """
    array = _numbers(value, name)
    shape = np.shape(value)
    if len(shape) > (vector or columns is not None) or (shape and columns not in (None, *shape)):
        many = "(d,)" if columns is None else f"({columns},)"
        expected = f"a scalar or shape {many}" if vector or columns is not None else "a scalar"
        raise ValueError(f"{name}: expected {expected}, got shape {shape}")
    if array is None:
        traced = jnp.asarray(value, dtype)
        traced = traced if jnp.issubdtype(traced.dtype, jnp.floating) else traced.astype(float)
        return jnp.where(traced > 0, traced, jnp.nan)
    _refuse(array, ~(np.isfinite(array) & (array > 0)), name, "a positive finite number")
    with at_once(), np.errstate(over="ignore", under="ignore"):
        if dtype is not None:
            result = jax.device_put(array.astype(dtype))
        else:
            result = jnp.asarray(float(array)) if not array.ndim else jnp.asarray(array, compute_dtype(array.dtype))
        rounded = np.asarray(result)
    least, most = np.finfo(rounded.dtype).tiny, np.finfo(rounded.dtype).max
    _refuse(array, ~((rounded >= least) & (rounded <= most)), name, f"a number that {rounded.dtype} can hold")
    return result


def positive_vector(value: Any, name: str, dtype: np.dtype | None = None) -> Array:
    """A vector of positive finite numbers, one at least, as :func:`positive` has them."""
    if np.ndim(value) != 1 or not np.size(value):
        raise ValueError(f"{name}: expected a vector of at least one number, got shape {np.shape(value)}")
    return positive(as_array(value, name), name, vector=True, dtype=dtype)


def at_least(value: Any, least: float, name: str) -> None:
    """A finite number, or vector of them, none below ``least``."""
    array = _numbers(value, name)
    if array is None:
        return
    _refuse_matrix(array, name)
    _refuse(array, ~(np.isfinite(array) & (array >= least)), name, f"a finite number of at least {least:g}")
    _refuse_unheld(array, name)


def not_negative(value: Any, name: str) -> Any:
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
    _refuse_unheld(array, name)


def _refuse_unheld(array: np.ndarray, name: str) -> None:
    """Numbers that overflow the precision in use, or underflow it."""
    numbers = np.finfo(compute_dtype(array.dtype))
    size = np.abs(array)
    bad = ((size < numbers.tiny) & (size > 0)) | (size > numbers.max)
    _refuse(array, bad, name, f"a number that {numbers.dtype} can hold")


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
    _refuse_unheld(array, name)
