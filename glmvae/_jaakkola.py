"""Jaakkola and Jordan's bound of the logistic log-likelihood: one xi a column in closed form, or one xi an entry.

    -softplus(t) >= -t / 2 - log(2 cosh(xi / 2)) - (omega / 2) (t^2 - xi^2),     omega = tanh(xi / 2) / (2 xi)

touches at t = +-xi; xi = 0 is the curvature 1/4 of the paper. With n trials, log p = x t - n softplus(t) + K has the
weight w = rho^2 n omega / phi and the response y = rho (x - n / 2) / (phi w), t = rho eta. For one xi a column the
bound's optimum is probabilistic PCA of G^1/2 Cov(y) G^1/2, and the xi best for it is xi_j^2 = mean E t_j^2.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from glmvae.families import Binomial, Family, NegativeBinomial
from glmvae.families._base import pytree_family
from glmvae.moments import Moments


class Logistic(NamedTuple):
    """log p = (slope t - trials softplus(t)) / phi + K."""

    slope: Array
    trials: Array


def logistic_form(family: Any, x: Array) -> Logistic:
    """The family's log-likelihood as a logistic one: binomial (x of n) or negative binomial (x of x + r)."""
    if isinstance(family, Binomial):
        return Logistic(x, jnp.broadcast_to(family._trials(x), x.shape))
    return Logistic(x, x + family._size(x))


def is_logistic(family: Family) -> bool:
    """Whether Jaakkola and Jordan's bound applies."""
    return isinstance(family, Binomial | NegativeBinomial)


def omega(xi: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """tanh(xi / 2) / (2 xi), 1/4 at 0."""
    small = jnp.abs(xi) < 1e-2
    safe = jnp.where(small, 1.0, xi)
    square = xi**2
    return jnp.where(small, 0.25 - square / 48 + square**2 / 480, jnp.tanh(0.5 * safe) / (2 * safe))


def log_two_cosh(xi: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """log(2 cosh(xi / 2)), without overflow."""
    size = jnp.abs(xi)
    return 0.5 * size + jnp.log1p(jnp.exp(-size))


@pytree_family()
@dataclasses.dataclass(frozen=True, eq=False)
class LogisticBound:
    """E of the bound under N(mean, variance), with the best xi an entry: xi^2 = E t^2. In place of a family.

        slope E t - trials (E t / 2 + log(2 cosh(xi / 2)))

    Its gradient in the mean and its weight, -2 d/dv, are those of the quadratic at that xi. As in the family, the value
    is without K(x).
    """

    family: Any

    def expected_terms(self, x: Array, mean: Array, variance: Array, dispersion: Array) -> tuple[Array, Array, Array]:
        form = logistic_form(self.family, x)
        scale = self.family._scale(mean)
        t = scale * mean
        xi = jnp.sqrt(t**2 + scale**2 * variance)
        weight = form.trials * omega(xi)
        centred = form.slope - 0.5 * form.trials
        value = (centred * t - form.trials * log_two_cosh(xi)) / dispersion
        gradient = scale * (centred - weight * t) / dispersion
        return value, gradient, scale**2 * weight / dispersion

    def expected_weight(self, x: Array, mean: Array, variance: Array, dispersion: Array) -> Array:
        return self.expected_terms(x, mean, variance, dispersion)[2]


def _slope(family: Any, data: Moments) -> Array:
    """How far slope - trials / 2 moves with x about its mean.

    For a negative binomial trials move with x too: with mean trials n the score (x - mu) r / n of the null model
    stands in. Where x spreads so far that this objective would have no maximum, less.
    """
    if isinstance(family, Binomial):
        return jnp.ones_like(data.mean)
    r, variance = family._size(data.mean), jnp.diag(data.covariance)
    largest = jnp.sqrt(data.mean * r / jnp.where(variance > 0, variance, 1.0))
    score = jnp.broadcast_to(r, data.mean.shape) / (data.mean + r)
    return jnp.where(variance > 0, jnp.minimum(score, largest), score)


class ColumnRound(NamedTuple):
    """The optimum for one xi a column; ``bound`` is its value, and ``xi`` the best one for it."""

    loadings: Float[Array, "d k"]
    intercept: Float[Array, " d"]
    eigenvalues: Float[Array, " d"]
    encoder_weight: Float[Array, "k d"]
    encoder_bias: Float[Array, " k"]
    covariance: Float[Array, "k k"]
    bound: Float[Array, ""]
    xi: Float[Array, " d"]


@partial(jax.jit, static_argnames="latent_dim")
def column_round(
    data: Moments, family: Any, beta: Array, phi: Array, xi: Float[Array, " d"], *, latent_dim: int
) -> ColumnRound:
    """One round: the closed-form optimum given xi, by one eigendecomposition, and its xi."""
    form = logistic_form(family, data.mean)
    scale = family._scale(data.mean)
    slope = _slope(family, data)
    centred = form.slope - 0.5 * form.trials
    weight = scale**2 * form.trials * omega(xi) / phi
    per_x = scale * slope / (phi * jnp.sqrt(weight))  # whitened response = per_x x + ...
    values, vectors = jnp.linalg.eigh(data.covariance * per_x[:, None] * per_x)
    values, vectors = jnp.maximum(values[::-1], 0.0), vectors[:, ::-1]
    top, vectors = values[:latent_dim], vectors[:, :latent_dim]
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), axis=0)[None], axis=0)
    vectors = vectors * jnp.where(largest < 0, -1.0, 1.0).astype(vectors.dtype)
    kept = jnp.maximum(top, beta)
    length = jnp.sqrt(kept - beta)
    loadings = vectors / jnp.sqrt(weight)[:, None] * length
    intercept = scale * centred / (phi * weight)
    encoder = (length / kept)[:, None] * (vectors * per_x[:, None]).T

    statistic = jnp.zeros_like(data.mean) if data.base_statistic is None else data.base_statistic
    constant = (-form.trials * (log_two_cosh(xi) - 0.5 * omega(xi) * xi**2)) / phi
    constant = constant + family.log_base_measure_from(statistic, phi)
    spread = per_x**2 * jnp.diag(data.covariance) + weight * intercept**2  # mean of w y^2
    quadratic = jnp.sum(beta * top / kept + beta * jnp.log(kept / beta)) + jnp.sum(values[latent_dim:])
    return ColumnRound(
        loadings=loadings,
        intercept=intercept,
        eigenvalues=values,
        encoder_weight=encoder,
        encoder_bias=-encoder @ data.mean,
        covariance=jnp.diag(beta / kept),
        bound=jnp.sum(constant + 0.5 * spread) - 0.5 * quadratic,
        # the mean of E zz' is I where W is not 0
        xi=jnp.abs(scale) * jnp.sqrt(intercept**2 + jnp.sum(loadings**2, axis=1)),
    )


class ColumnNull(NamedTuple):
    """The null model's log-likelihood, nats per row, and the xi at which the bound attains it."""

    bound: Float[Array, ""]
    xi: Float[Array, " d"]


@jax.jit
def column_null(data: Moments, family: Any, phi: Array) -> ColumnNull:
    """The intercept-only GLM from moments."""
    form = logistic_form(family, data.mean)
    t = family._scale(data.mean) * family.null_predictor(data.mean)
    statistic = jnp.zeros_like(data.mean) if data.base_statistic is None else data.base_statistic
    # slope t - trials softplus(t), with softplus(t) = t / 2 + log(2 cosh(t / 2))
    value = ((form.slope - 0.5 * form.trials) * t - form.trials * log_two_cosh(t)) / phi
    return ColumnNull(jnp.sum(value + family.log_base_measure_from(statistic, phi)), jnp.abs(t))
