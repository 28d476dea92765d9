"""The closed form and the ELBOs once more, in plain NumPy float64, written out with dense matrices and no reuse.

Slow and obvious on purpose: every formula is the textbook one (explicit inverses, explicit determinants, loops over
rows where a loop is clearer), so that it can be checked by eye. The library is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy.special import expit, gammaln

from glmvae import families


def no_base_measure(x, phi):
    return 0.0 * x


class Model(NamedTuple):
    """A family of the library beside its textbook functions of theta, and data drawn for it."""

    family: Any
    log_normalizer: Callable
    mean: Callable
    variance: Callable
    log_base_measure: Callable
    link: Callable
    draw: Callable
    scale: float = 1.0
    #: what ``dispersion=None`` means; None where it is estimated.
    fixed_dispersion: float | None = 1.0

    def log_prob(self, x, eta, phi=1.0):
        theta = self.scale * eta
        return (x * theta - self.log_normalizer(theta)) / phi + self.log_base_measure(x, phi)

    def null(self, mean):
        return self.link(mean) / self.scale


def _binomial(family, n, scale=1.0, grey=False):
    def draw(rng, eta):
        p = expit(scale * eta)
        return p if grey else rng.binomial(np.broadcast_to(n, eta.shape).astype(int), p).astype(float)

    def log_choose(x, phi):
        return no_base_measure(x, phi) if np.all(n == 1) else gammaln(n + 1) - gammaln(x + 1) - gammaln(n - x + 1)

    return Model(
        family,
        lambda t: n * np.logaddexp(0, t),
        lambda t: n * expit(t),
        lambda t: n * expit(t) * expit(-t),
        log_choose,
        lambda m: np.log(m / (n - m)),
        draw,
        scale,
    )


TRIALS = np.array([1.0, 5.0, 9.0, 16.0])

MODELS = {
    "gaussian": Model(
        families.Gaussian(),
        lambda t: t**2 / 2,
        lambda t: t,
        np.ones_like,
        lambda x, phi: -(x**2 / phi + np.log(2 * np.pi * phi)) / 2,
        lambda m: m,
        lambda rng, eta: eta + 0.5 * rng.normal(size=eta.shape),
        fixed_dispersion=None,
    ),
    "bernoulli": _binomial(families.Bernoulli(), 1.0),
    "bernoulli_grey": _binomial(families.Bernoulli(), 1.0, grey=True),
    "bernoulli_tanh": _binomial(families.Bernoulli(activation_scale=2.0), 1.0, scale=2.0),
    "binomial": _binomial(families.Binomial(5), 5.0),
    "binomial_columns": _binomial(families.Binomial(jnp.asarray(TRIALS)), TRIALS),
    "poisson": Model(
        families.Poisson(),
        np.exp,
        np.exp,
        np.exp,
        lambda x, phi: -gammaln(x + 1),
        np.log,
        lambda rng, eta: rng.poisson(np.exp(np.minimum(eta, 3.0))).astype(float),
    ),
}


def draw(name: str, *, rows=40, columns=4, rank=2, strength=1.0, seed=0) -> np.ndarray:
    """Float64 data with a low-rank signal; every column varies."""
    rng = np.random.default_rng(seed)
    eta = strength * rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns)) + 0.3 * rng.normal(size=columns)
    x = MODELS[name].draw(rng, eta)
    if MODELS[name].fixed_dispersion is not None:  # so that no column is constant by accident
        x[0], x[1] = np.minimum(x[0], x.min(axis=0)), np.maximum(x[1], 1.0)
        x[0] = np.where(x.std(axis=0) > 0, x[0], 0.0)
    return x


class DenseOptimum(NamedTuple):
    loadings: np.ndarray
    intercept: np.ndarray
    dispersion: Any
    eigenvalues: np.ndarray
    elbo: float
    encoder_weight: np.ndarray
    encoder_bias: np.ndarray
    covariance: np.ndarray


def expansion(model: Model, x, eta0, phi):
    """Working response (N, d), working weight (d,) and constant (N, d) as in DESIGN: (x - mu) / mu', F'' / phi."""
    theta0 = model.scale * eta0
    response = eta0 + (x - model.mean(theta0)) / (model.scale * model.variance(theta0))
    weight = model.scale**2 * model.variance(theta0) / phi * np.ones(x.shape[1])
    constant = model.log_prob(x, eta0, phi) + 0.5 * weight * (response - eta0) ** 2
    return response, weight, constant


def expansion_point(model: Model, x, expand_at):
    if isinstance(expand_at, str):
        return np.zeros(x.shape[1]) if expand_at == "zero" else model.null(x.mean(axis=0))
    return np.broadcast_to(np.asarray(expand_at, float), x.shape[1:])


def profile(model: Model, x, loadings, intercept, *, eta0, beta, phi) -> float:
    """L-hat of an affine decoder under its best posterior, (12), (14), with C and S written out."""
    y, w, constant = expansion(model, x, eta0, phi)
    c = np.diag(1 / w) + loadings @ loadings.T / beta
    s = (y - intercept).T @ (y - intercept) / len(x)
    log_det = np.linalg.slogdet(c)[1] + np.sum(np.log(w))
    return float(-0.5 * (np.trace(np.linalg.inv(c) @ s) + beta * log_det) + constant.sum(axis=1).mean())


def best_gaussian_dispersion(eigenvalues, latent_dim, beta) -> float:
    """The sigma^2 of the best profile, found by trying every number of active units that is consistent."""
    d = len(eigenvalues)
    candidates = []
    for a in range(latent_dim + 1):
        if d - beta * a <= 0:
            continue
        s = eigenvalues[a:].sum() / (d - beta * a)
        below = a == latent_dim or beta * s >= eigenvalues[a] * (1 - 1e-12)
        if s > 0 and below and (a == 0 or eigenvalues[a - 1] > beta * s):
            candidates.append(s)
    return max(candidates, key=lambda s: gaussian_profile(eigenvalues, latent_dim, beta, s))


def gaussian_profile(eigenvalues, latent_dim, beta, variance) -> float:
    """L-hat maximised over all but sigma^2, from the eigenvalues of Cov(x)."""
    scaled = np.asarray(eigenvalues) / variance
    k = np.maximum(scaled[:latent_dim], beta)
    fitted = np.sum(beta * scaled[:latent_dim] / k + beta * np.log(k / beta)) + scaled[latent_dim:].sum()
    return float(-0.5 * (fitted + len(scaled) * np.log(2 * np.pi * variance)))


def fit(model: Model, x, latent_dim, *, beta=1.0, phi=None, expand_at="zero") -> DenseOptimum:
    """(15)-(20) with the rows in hand."""
    eta0 = expansion_point(model, x, expand_at)
    if phi is None:
        phi = model.fixed_dispersion
    if phi is None:
        raw = np.linalg.eigvalsh(np.cov(x, rowvar=False, bias=True).reshape(x.shape[1], -1))[::-1]
        phi = best_gaussian_dispersion(raw, latent_dim, beta)
    y, w, _ = expansion(model, x, eta0, phi)
    b = y.mean(axis=0)
    root = np.diag(np.sqrt(w))
    values, vectors = np.linalg.eigh(root @ ((y - b).T @ (y - b) / len(x)) @ root)
    values, vectors = values[::-1], vectors[:, ::-1]
    k = np.maximum(values[:latent_dim], beta)
    length = np.diag(np.sqrt(k - beta))
    loadings = np.linalg.inv(root) @ vectors[:, :latent_dim] @ length
    encoder_y = np.diag(1 / k) @ length @ vectors[:, :latent_dim].T @ root  # mu_z = encoder_y (y - b)
    encoder = encoder_y / (model.scale * model.variance(model.scale * eta0))
    elbo = profile(model, x, loadings, b, eta0=eta0, beta=beta, phi=phi)
    return DenseOptimum(loadings, b, phi, values, elbo, encoder, -encoder @ x.mean(axis=0), beta * np.diag(1 / k))


def kl_divergence(mean, covariance):
    """Of every row from N(0, I), one row at a time."""
    covariance = np.broadcast_to(covariance, (len(mean), *np.shape(covariance)[-2:]))
    return np.array(
        [0.5 * (np.trace(s) - np.linalg.slogdet(s)[1] + m @ m - len(m)) for m, s in zip(mean, covariance, strict=True)]
    )


def elbo_exact(model: Model, loadings, intercept, x, mean, covariance, *, beta=1.0, phi=1.0, nodes=4001):
    """The beta-ELBO of every row: a fine Riemann sum over each eta_j, 12 standard deviations either side."""
    covariance = np.broadcast_to(covariance, (len(mean), *np.shape(covariance)[-2:]))
    eta = mean @ loadings.T + intercept
    variance = np.einsum("jk,nkl,jl->nj", loadings, covariance, loadings)
    t = np.linspace(-12, 12, nodes)
    density = np.exp(-0.5 * t**2) / np.sqrt(2 * np.pi) * (t[1] - t[0])
    expected = np.zeros_like(eta)
    for ti, pi in zip(t, density, strict=True):
        expected += pi * model.log_prob(x, eta + ti * np.sqrt(variance), phi)
    return expected.sum(axis=1) - beta * kl_divergence(mean, covariance)
