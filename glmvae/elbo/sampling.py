"""Draws from the posteriors of a block of rows, and log p at what a decoder makes of them.

Rows draw independently, and what a row draws does not depend on the others: its key is the given one folded with the
number of the row, then with the number of the draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from glmvae import _checks
from glmvae.model import Objective
from glmvae.rows import Rows, observed, row_sum
from glmvae.variational import Posterior

# Entries of the predictors that are drawn at once where a decoder runs eagerly.
_ENTRIES = 420_000

State = TypeVar("State")


class Sampler(NamedTuple):
    """A key a row, the means, and the Cholesky factors and log-determinants of the covariances, one a row or shared."""

    keys: Array
    mean: Float[Array, "n k"]
    root: Float[Array, "m k k"]
    log_det: Float[Array, " m"]


def sampler(key: Array, index: Array, posterior: Posterior, num_rows: int) -> Sampler:
    """The sampler of so many rows, ``index`` their numbers; what they share may have a leading axis of 1."""
    return _sampler(key, jnp.broadcast_to(index, (num_rows,)), posterior)


@jax.jit
def _sampler(key: Array, index: Array, posterior: Posterior) -> Sampler:
    covariance = posterior.covariance
    mean = jnp.broadcast_to(posterior.mean, (len(index), posterior.mean.shape[1]))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    if not covariance.shape[-1]:
        return Sampler(keys, mean, covariance, jnp.zeros(len(covariance), covariance.dtype))
    root = jnp.linalg.cholesky(covariance)
    return Sampler(keys, mean, root, 2 * jnp.sum(jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)), axis=-1))


@jax.jit
def draw(source: Sampler, draws: Array) -> tuple[Float[Array, "s n k"], Float[Array, "s n k"]]:
    """z = mean + root noise of every draw and row, and the noise."""
    shape, dtype = source.mean.shape[1:], source.mean.dtype

    def noise(key: Array, number: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(key, number), shape, dtype)

    noises = jax.vmap(jax.vmap(noise, (0, None)), (None, 0))(source.keys, draws)
    return source.mean[None] + jnp.squeeze(source.root[None] @ noises[..., None], -1), noises


def over_draws(add: Callable[[State, Array], State], state: State, draws: Array | np.ndarray, rows: Rows) -> State:
    """``add(state, draws)`` for the numbers of all draws: one at a time in a compiled program, else many."""
    if not _checks.concrete(rows.x):

        def step(state: State, some: Any) -> tuple[State, None]:
            return add(state, some), None

        return jax.lax.scan(step, state, draws[:, None])[0]
    at_once = max(1, _ENTRIES // rows.x.size)
    for start in range(0, len(draws), at_once):
        state = add(state, jnp.asarray(draws[start : start + at_once]))
    return state


@jax.jit
def log_prob_of(rows: Rows, eta: Float[Array, "m d"], objective: Objective) -> Float[Array, "s n"]:
    """log p of every draw and row at what the decoder says of it, eta (s n, d) without the offset."""
    family, phi = objective.family.for_rows(rows), objective.dispersion_of_entries

    def of(eta: Array) -> Array:
        eta = eta if rows.offset is None else eta + rows.offset
        # What is missing must not overflow: 0 times infinity is no gradient
        return row_sum(rows, family.log_prob(rows.x, observed(rows, eta), phi))

    return jax.vmap(of)(eta.reshape(-1, *rows.x.shape))


def rows_of(z: Float[Array, "s n k"]) -> Float[Array, "m k"]:
    """The draws as rows of latent vectors, (s n, k)."""
    return z.reshape(z.shape[0] * z.shape[1], z.shape[2])
