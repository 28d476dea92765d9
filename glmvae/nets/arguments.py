"""What a net is made with: looked at, and in its precision."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from glmvae import _checks, _settings
from glmvae.blocks import as_dtype
from glmvae.families.checks import check_columns
from glmvae.model import Objective, as_objective


def widths(value: Any, name: str) -> tuple[int, ...]:
    """Those of hidden layers."""
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise TypeError(f"{name}: expected a sequence of integers such as (100,), got {value!r}")
    return tuple(_settings.integer(width, name) for width in value)


def float_dtype(dtype: Any) -> np.dtype:
    """A precision that JAX is set to; its default where there is none."""
    if dtype is None:
        return np.dtype(jnp.result_type(float))
    try:
        wanted = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"dtype: expected float32 or float64, got {dtype!r}") from error
    if wanted not in (np.dtype("float32"), np.dtype("float64")):
        raise ValueError(f"dtype: expected float32 or float64, got {wanted}")
    if jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise ValueError("dtype: float64 needs jax.config.update('jax_enable_x64', True), which is off")
    return wanted


def objective_for(value: Any, columns: int, dtype: np.dtype) -> Objective:
    """The objective, in the precision of the net."""
    objective = as_objective(value)
    check_columns(columns, objective.family, "columns")
    if jnp.ndim(objective.dispersion) and jnp.shape(objective.dispersion) != (columns,):
        raise ValueError(f"dispersion: expected a scalar or shape ({columns},), got {jnp.shape(objective.dispersion)}")
    return as_dtype(objective, dtype)


def scaling(value: Any, columns: int, dtype: np.dtype) -> tuple[Array, Array] | None:
    """Mean and standard deviation of every column."""
    if value is None:
        return None
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"standardise: expected (mean, sd), see nets.standardisation, got {type(value).__name__}")
    mean, deviation = (_checks.vector(part, f"standardise[{i}]", columns) for i, part in enumerate(value))
    _settings.positive(deviation, "standardise[1]", columns)
    return jnp.asarray(mean, dtype), jnp.asarray(deviation, dtype)
