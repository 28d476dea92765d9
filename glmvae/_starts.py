"""Where an ascent starts when the optimum it was given is worse than no latent units at all.

A start is probabilistic PCA of whitened scores g_ij / sqrt(w_j), the paper's closed form with a quadratic whose
weights are averaged over the rows, so that offsets, trials per entry and missing entries have a place in it:

    zero            the expansion at eta = 0
    null            at the intercept-only GLM
    log-response    at the intercept-only GLM, the score w (link((x + mu) / 2) - eta0) in place of x - mu, which a
                    single large count cannot dominate
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from glmvae._problem import Problem, block_of, blocks
from glmvae._rows import Decoder
from glmvae.expansion import working_weight

STARTS = ("zero", "null", "log-response")


def _score(block: Problem, eta: Array) -> tuple[Array, Array]:
    """g and Fisher's w at eta, 0 where an entry is missing."""
    family, phi = block.family, block.dispersion
    gradient = family.natural_parameter_derivative(eta) * (block.x - family.mean(eta)) / phi
    weight = jnp.broadcast_to(working_weight(family, eta, phi), block.x.shape)
    return _observed(block, gradient), _observed(block, weight)


def _observed(block: Problem, values: Array) -> Array:
    return values if block.observed is None else jnp.where(block.observed, values, 0.0)


def _predictor(block: Problem, intercept: Array) -> Array:
    eta = jnp.broadcast_to(intercept, block.x.shape)
    return eta if block.offset is None else eta + block.offset


@jax.jit
def null_intercept(problem: Problem, mean: Float[Array, " d"]) -> Float[Array, " d"]:
    """The intercept-only GLM, by Fisher scoring where an offset or trials per entry leave no closed form."""
    num_rows, columns = problem.x.shape
    size, num_blocks = blocks(problem)
    start = problem.family.link(mean)
    start = jnp.where(jnp.isfinite(start), start, 0.0)
    if start.ndim == 2:  # trials per entry
        start = jnp.mean(start, axis=0)
    if problem.offset is not None:
        start = start - (problem.offset if problem.offset.ndim == 1 else jnp.mean(problem.offset, axis=0))

    def scores(intercept: Array) -> tuple[Array, Array]:
        def body(i: Array, carry: tuple) -> tuple:
            first = jnp.minimum(i * size, num_rows - size)
            block = block_of(problem, first, size)
            new = (jnp.arange(size) + first >= i * size)[:, None]
            gradient, weight = _score(block, _predictor(block, intercept))
            return (
                carry[0] + jnp.sum(jnp.where(new, gradient, 0.0), axis=0),
                carry[1] + jnp.sum(jnp.where(new, weight, 0.0), axis=0),
            )

        zeros = jnp.zeros(columns, problem.x.dtype)
        return jax.lax.fori_loop(0, num_blocks, body, (zeros, zeros))

    def step(_: Array, intercept: Array) -> Array:
        gradient, weight = scores(intercept)
        move = gradient / jnp.where(weight > 0, weight, 1.0)
        return intercept + jnp.clip(jnp.where(weight > 0, move, 0.0), -1.0, 1.0)

    return jax.lax.fori_loop(0, 30, step, start)


@partial(jax.jit, static_argnames=("kind", "latent_dim"))
def closed_form_start(problem: Problem, null: Float[Array, " d"], *, kind: str, latent_dim: int) -> Decoder:
    """One of :data:`STARTS`."""
    num_rows, columns = problem.x.shape
    size, num_blocks = blocks(problem)
    eta0 = jnp.zeros_like(null) if kind == "zero" else null
    dtype = problem.x.dtype

    def body(i: Array, carry: tuple) -> tuple:
        total, gram, weights = carry
        first = jnp.minimum(i * size, num_rows - size)
        block = block_of(problem, first, size)
        new = (jnp.arange(size) + first >= i * size)[:, None]
        eta = _predictor(block, eta0)
        score, weight = _score(block, eta)
        if kind == "log-response":
            response = block.family.link(0.5 * (block.x + block.family.mean(eta)))
            score = _observed(block, weight * (response - eta))
        score, weight = jnp.where(new, score, 0.0), jnp.where(new, weight, 0.0)
        return total + jnp.sum(score, axis=0), gram + score.T @ score, weights + jnp.sum(weight, axis=0)

    zeros = jnp.zeros(columns, dtype)
    carry = (zeros, jnp.zeros((columns, columns), dtype), zeros)
    total, gram, weights = (a / num_rows for a in jax.lax.fori_loop(0, num_blocks, body, carry))
    usable = (weights > 0) & jnp.isfinite(weights)
    scale = jnp.where(usable, jax.lax.rsqrt(jnp.where(usable, weights, 1.0)), 0.0)
    spread = (gram - jnp.outer(total, total)) * scale[:, None] * scale
    spread = jnp.where(jnp.isfinite(spread), spread, 0.0)
    values, vectors = jnp.linalg.eigh(spread)
    values, vectors = values[::-1][:latent_dim], vectors[:, ::-1][:, :latent_dim]
    loadings = vectors * scale[:, None] * jnp.sqrt(jnp.maximum(values - problem.beta, 0.0))
    return Decoder(loadings, eta0 + jnp.where(usable, total / jnp.where(usable, weights, 1.0), 0.0))
