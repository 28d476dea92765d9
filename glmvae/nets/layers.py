"""The parts of the nets: what enters, He kernels, affine layers, the standardised input, the bounded log variance."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from glmvae.families import Family
from glmvae.rows import Rows
from glmvae.statistics.residuals import brings_residuals, encoder_input, is_bounded

# A log variance within is what the net says. Above, the nets of the paper have e^10, those with standardised inputs,
# which are for data of any size, the prior's own variance: a Poisson mean is exponential in z, and overflows far from
# the prior.
LEAST, MOST, MOST_STANDARDISED = -70.0, 10.0, 0.0


@partial(jax.jit, static_argnames=("shapes", "dtype"))
def he_kernels(key: Array, shapes: tuple[tuple[int, int], ...], dtype: DTypeLike) -> list[Array]:
    """He et al. (2015): N(0, 2 / fan-in), which keeps the scale of activations through ReLU layers."""
    ends = list(itertools.accumulate(rows * columns for rows, columns in shapes))
    parts = jnp.split(jax.random.normal(key, (ends[-1],), dtype), ends[:-1])  # one draw compiles faster than many
    return [part.reshape(shape) * (2 / shape[0]) ** 0.5 for part, shape in zip(parts, shapes, strict=True)]


def affine(kernel: Array) -> nnx.Linear:
    def init(*_: Any) -> Array:
        return kernel

    return nnx.Linear(*kernel.shape, kernel_init=init, param_dtype=kernel.dtype, rngs=nnx.Rngs(0))


def bounded(raw: Array, most: float = MOST) -> Array:
    """A log variance that neither overflows nor stands still: the identity between two ends, logarithmic beyond."""
    above, below = jnp.maximum(raw - most, 0.0), jnp.maximum(LEAST - raw, 0.0)
    return jnp.clip(raw, LEAST, most) + jnp.log1p(jnp.log1p(above)) - jnp.log1p(below)


def standardised(x: Array, mean: Array, deviation: Array) -> Array:
    shape = (1,) * (x.ndim - 1) + (-1,)
    return (x - mean.reshape(shape)) / deviation.reshape(shape)


def eye(size: int, like: Array) -> Array:
    """The identity beside matrices a row."""
    return jnp.eye(size, dtype=like.dtype).reshape((1,) * (like.ndim - 1) + (size, size))


def raw_log_variance(log_variance: np.ndarray, most: float = MOST) -> np.ndarray:
    """What :func:`bounded` takes to that log variance."""
    above, below = np.maximum(log_variance - most, 0.0), np.maximum(LEAST - log_variance, 0.0)
    return np.clip(log_variance, LEAST, most) + np.expm1(np.expm1(above)) - np.expm1(below)


def encoder_inputs(family: Family, rows: Rows) -> Float[Array, "n d"]:
    """x, less what offset and trials explain where the closed form has that: what its affine encoder acts on."""
    if not brings_residuals(family, rows):
        return rows.x

    def of(member: Family, x: Array, offset: Array | None, trials: Array | None) -> Array:
        alone = Rows.tree_unflatten(None, [x, trials, offset, None, None, None])
        return encoder_input(member, alone) if member.is_quadratic or is_bounded(member) else x

    return family.by_member(of, rows.x, rows.offset, rows.trials)
