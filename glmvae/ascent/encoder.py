"""The best affine encoder of a decoder, for the exact ELBO: mu(x) = A (x - mean x) + a, one Sigma for all rows.

The posteriors that an ascent finds are no affine function of x. With g_i the gradient of E log p in the predictor and w
the weights averaged over rows,

    d ELBO / d mu_i = r_i = W' g_i - beta mu_i,     Sigma = beta H^-1,     H = beta I + W' diag(w) W

The ELBO is concave in (A, a) where log p is concave in eta. L-BFGS climbs it in H^1/2 (A Cov(x)^1/2, a), where its
curvature is near 1, Sigma follows by its fixed point; the start is the regression of the posterior means on x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from glmvae.ascent.climb import Problem
from glmvae.ascent.terms import exact_terms
from glmvae.blocks import total
from glmvae.model import Affine, Objective, Posterior, kl_of, predictor_moments
from glmvae.optimum import Encoder
from glmvae.rows import Rows
from glmvae.spectral import decompose
from glmvae.statistics import moments

# Rounds of A, a and of Sigma, and steps of L-BFGS in each.
_ROUNDS = 4
_STEPS = 25
# An encoder need not be better than that: nats per row, and of the ELBO.
_TOLERANCE = 2e-4
_RELATIVE = 2e-5


class _Sums(NamedTuple):
    num_rows: Array
    elbo: Array
    residual: Array
    cross: Array
    weight: Array


def best_encoder(problem: Problem, decoder: Affine, objective: Objective, posterior: Posterior) -> Encoder:
    """The encoder of plain rows."""
    data = moments(problem.source)
    values, vectors = (np.asarray(a, np.float64) for a in decompose(data.covariance))
    usable = values > values.shape[0] * np.finfo(data.covariance.dtype).eps * values[0]
    inverse_root = vectors * np.where(usable, 1 / np.sqrt(np.where(usable, values, 1.0)), 0.0)
    dtype = decoder.loadings.dtype

    def at(encoder: Encoder) -> _Sums:
        sums = total(
            _encoded, problem.source, encoder, data.mean, decoder, objective, family=objective.family, check=False
        )
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), sums)

    cross, mean, count, spread = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64),
        total(_regression, problem.source, data.mean, given=posterior, family=objective.family, check=False),
    )
    whitened = np.concatenate([cross @ inverse_root, mean[:, None]], axis=1) / count
    covariance = spread / count
    here = at(_encoder(whitened, inverse_root, covariance, dtype))
    for _ in range(_ROUNDS):
        curvature = _curvature(here, decoder, objective)
        best = float(objective.beta) * np.linalg.inv(curvature)

        def at_whitened(whitened: np.ndarray, covariance: np.ndarray = best) -> _Sums:
            return at(_encoder(whitened, inverse_root, covariance, dtype))

        climbed = _climbed(whitened, curvature, at_whitened, inverse_root)
        there = at_whitened(climbed)
        if not there.elbo > here.elbo:
            break
        gain = (there.elbo - here.elbo) / count
        whitened, covariance, here = climbed, best, there
        if not gain > _TOLERANCE + _RELATIVE * abs(here.elbo / count):
            break
    found = _encoder(whitened, inverse_root, covariance, dtype)
    bias = found.bias - found.weight @ np.asarray(data.mean)
    return Encoder(*(jnp.asarray(a, dtype) for a in (found.weight, bias, found.covariance)))


def _climbed(
    start: np.ndarray, curvature: np.ndarray, at: Callable[[np.ndarray], _Sums], inverse_root: np.ndarray
) -> np.ndarray:
    """(A Cov(x)^1/2, a) where the ELBO is largest."""
    from scipy.optimize import minimize

    root = np.linalg.cholesky(curvature)

    def negative(scaled: np.ndarray) -> tuple[float, np.ndarray]:
        sums = at(np.linalg.solve(root.T, scaled.reshape(start.shape)))
        with np.errstate(over="ignore", invalid="ignore"):  # a step too long, which the line search shortens
            gradient = np.concatenate([sums.cross @ inverse_root, sums.residual[:, None]], axis=1)
            return -float(sums.elbo / sums.num_rows), -np.linalg.solve(root, gradient).ravel() / sums.num_rows

    options = {"maxiter": _STEPS, "maxcor": 8, "ftol": _RELATIVE / 10, "gtol": 1e-6}
    found = minimize(negative, (root.T @ start).ravel(), jac=True, method="L-BFGS-B", options=options)
    return np.linalg.solve(root.T, found.x.reshape(start.shape))


def _encoder(whitened: np.ndarray, inverse_root: np.ndarray, covariance: np.ndarray, dtype: Any) -> Encoder:
    parts = whitened[:, :-1] @ inverse_root.T, whitened[:, -1], covariance
    return Encoder(*(np.asarray(part, dtype) for part in parts))  # type: ignore[arg-type]


def _curvature(sums: _Sums, decoder: Affine, objective: Objective) -> np.ndarray:
    """H, (kappa, kappa)."""
    loadings = np.asarray(decoder.loadings, np.float64)
    curvature = loadings.T @ (loadings * (sums.weight / sums.num_rows)[:, None])
    return float(objective.beta) * np.eye(decoder.latent_dim) + curvature


def _regression(rows: Rows, q: Posterior, centre: Array) -> tuple[tuple[Array, Array, Array, Array], None]:
    each = jnp.where(rows.weight > 0, rows.weight, 0.0)
    weighted = each[:, None] * q.mean
    covariance = jnp.sum(each[:, None, None] * q.covariance, axis=0)
    return (weighted.T @ (rows.x - centre[None]), jnp.sum(weighted, axis=0), jnp.sum(each), covariance), None


def _encoded(
    rows: Rows, _: None, encoder: Encoder, centre: Array, decoder: Affine, objective: Objective
) -> tuple[_Sums, None]:
    mean = (rows.x - centre[None]) @ encoder.weight.T + encoder.bias[None]
    q = Posterior(mean, encoder.covariance[None])
    m, v = predictor_moments(decoder, rows, q)
    value, gradient, weight = exact_terms(objective, rows, m, v)
    each = jnp.where(rows.weight > 0, rows.weight, 0.0)
    elbo = jnp.sum(value, axis=1) - objective.beta * kl_of(q)
    residual = each[:, None] * (gradient @ decoder.loadings - objective.beta * mean)
    return _Sums(
        jnp.sum(each),
        jnp.sum(jnp.where(each > 0, each * elbo, 0.0)),
        jnp.sum(residual, axis=0),
        residual.T @ (rows.x - centre[None]),
        each @ weight,
    ), None
