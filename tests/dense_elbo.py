"""The ELBOs of affine decoders, once more, in plain NumPy and SciPy float64: dense matrices, loops, no reuse.

Slow and obvious on purpose, so that it can be checked by eye: explicit inverses and determinants, a sum over a grid for
every expectation. Everything has row fields (trials, offset, covariates, missing, weight).

``bound`` is any function (problem, m, v) -> three arrays (N, d): what stands for E log p(x | eta), eta ~ N(m, v), its
derivative in m, and -2 times that in v: ``exact``, the two of Jaakkola and Jordan, and what ``quadratic`` makes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.special import logsumexp


class Problem(NamedTuple):
    """Rows and what is maximised over them; every field has its full shape (made by ``problem``)."""

    x: np.ndarray  # (N, d)
    family: Any  # with its trials, (N, d) where they are the rows'
    beta: float
    phi: Any  # a scalar or (d,); None: estimated
    offset: np.ndarray  # (N, d)
    covariates: np.ndarray  # (N, p)
    missing: np.ndarray  # (N, d)
    weight: np.ndarray  # (N,)
    bounded: bool = False  # offsets or trials an entry: the closed form of a binomial is that of Boehning's bound

    def row(self, i):
        rows = slice(i, i + 1)
        fields = {name: getattr(self, name)[rows] for name in ("x", "offset", "covariates", "missing")}
        return self._replace(**fields, family=self.family.of_rows(rows), weight=np.ones(1))

    def mean(self, values):
        """The mean of one value a row, by weight."""
        return float(self.weight @ values / self.weight.sum())


class Decoder(NamedTuple):
    loadings: np.ndarray  # (d, k)
    intercept: np.ndarray  # (d,)
    coefficients: np.ndarray  # (p, d)


def problem(
    x, family, *, beta=1.0, phi=None, trials=None, offset=0.0, covariates=None, missing=False, weight=1.0
) -> Problem:
    x = np.asarray(x, float)
    missing = np.broadcast_to(missing, x.shape)
    bounded = trials is not None or np.any(offset != 0)
    if trials is not None:
        trials = np.broadcast_to(np.asarray(trials, float), x.shape)
        missing = missing | (trials == 0)
        family = family.with_trials(np.where(missing, 1.0, trials))
    offset = np.asarray(offset, float)
    if offset.ndim == 1 and len(offset) == len(x):
        offset = offset[:, None]
    return Problem(
        np.where(missing, 1.0, x),  # in the support of every family
        family,
        beta,
        family.fixed_dispersion if phi is None else phi,
        np.where(missing, 0.0, np.broadcast_to(offset, x.shape)),
        np.zeros((len(x), 0)) if covariates is None else np.broadcast_to(covariates, (len(x), np.shape(covariates)[1])),
        missing,
        np.broadcast_to(np.asarray(weight, float), x.shape[:1]),
        bounded,
    )


def decoder(loadings, intercept, coefficients=None) -> Decoder:
    intercept = np.asarray(intercept, float)
    coefficients = np.zeros((0, len(intercept))) if coefficients is None else np.asarray(coefficients, float)
    return Decoder(np.asarray(loadings, float), intercept, coefficients)


# Expectations and bounds -----------------------------------------------------------------------------------


def expectation(f, mean, variance):
    """E f(eta), eta ~ N(mean, variance) an entry: the trapezoid rule, fine beside the nearest pole of a sigmoid.

    The range is wider than the Gaussian's by one standard deviation of eta: E exp(eta) has its mass there. It is exact
    to rounding up to standard deviations of 300, beyond which only a search for a maximum strays.
    """
    deviation = np.sqrt(variance)
    widest = deviation.max(initial=0.0)
    step, reach = 0.5 / np.clip(widest, 2.0, 300.0), 10 + min(widest, 30.0)
    grid = step * np.arange(-round(reach / step), round(reach / step) + 1)
    density = step * np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
    values = f(mean + np.multiply.outer(grid, deviation))
    return np.tensordot(density, values, axes=1)


def expected_log_prob(p: Problem, mean, variance):
    return expectation(lambda eta: p.family.log_prob(p.x, eta, p.phi), mean, variance)


def exact(p: Problem, mean, variance):
    """E log p itself: its derivatives are E of those of log p (Bonnet, Price)."""
    return (
        expected_log_prob(p, mean, variance),
        expectation(lambda eta: p.family.score(p.x, eta, p.phi), mean, variance),
        expectation(lambda eta: p.family.observed_weight(p.x, eta, p.phi), mean, variance),
    )


def quadratic(eta0, weight=None):
    """E of the second-order expansion at eta0 (any shape), with Fisher's weight or a given one."""

    def bound(p: Problem, mean, variance):
        w = p.family.weight(eta0 + 0 * mean, p.phi) if weight is None else weight + 0 * mean
        score, delta = p.family.score(p.x, eta0 + 0 * mean, p.phi), mean - eta0
        value = p.family.log_prob(p.x, eta0 + 0 * mean, p.phi) + score * delta - 0.5 * w * (delta**2 + variance)
        return value, score - w * delta, w

    return bound


def jaakkola(p: Problem, mean, variance, square):
    """-softplus(t) >= -t/2 - log(2 cosh(xi/2)) - tanh(xi/2) / (4 xi) (t^2 - xi^2) with n of them, xi^2 = ``square``.

    A column of a mixed family that has no logistic form has to be Gaussian: its E log p is quadratic already.
    """
    n, scale = p.family.logistic_trials(p.x), p.family.scale
    xi = np.sqrt(np.maximum(square, 1e-12))
    omega, t = np.tanh(xi / 2) / (2 * xi), scale * mean
    value = p.x * t - n * (t / 2 + np.logaddexp(xi / 2, -xi / 2))
    value = value - 0.5 * n * omega * (t**2 + scale**2 * variance - square)
    value = value / p.phi + p.family.log_base_measure(p.x, p.phi)
    bound = value, scale * (p.x - n / 2 - n * omega * t) / p.phi, scale**2 * n * omega / p.phi
    return tuple(np.where(np.isnan(n), e, b) for e, b in zip(exact(p, mean, variance), bound, strict=True))


def jaakkola_entry(p: Problem, mean, variance):
    """Jaakkola and Jordan's bound with the best xi an entry, xi^2 = E t^2."""
    return jaakkola(p, mean, variance, p.family.scale**2 * (mean**2 + variance))


def jaakkola_column(p: Problem, mean, variance):
    """One xi a column, the best one."""
    count = p.weight[:, None] * np.where(p.missing, 0.0, p.family.logistic_trials(p.x))
    square = p.family.scale**2 * np.sum(count * (mean**2 + variance), axis=0) / count.sum(axis=0)
    return jaakkola(p, mean, variance, square)


# ELBOs -----------------------------------------------------------------------------------------------------


def predictor(p: Problem, d: Decoder, mean, covariance):
    """Mean and variance of every eta under the posterior of its row, (N, d) each."""
    covariance = np.broadcast_to(covariance, (len(p.x), *np.shape(covariance)[-2:]))
    eta = mean @ d.loadings.T + d.intercept + p.covariates @ d.coefficients + p.offset
    return eta, np.einsum("jk,nkl,jl->nj", d.loadings, covariance, d.loadings)


def kl_divergence(mean, covariance):
    """Of every row from N(0, I), one row at a time."""
    covariance = np.broadcast_to(covariance, (len(mean), *np.shape(covariance)[-2:]))
    return np.array(
        [0.5 * (np.trace(s) - np.linalg.slogdet(s)[1] + m @ m - len(m)) for m, s in zip(mean, covariance, strict=True)]
    )


def elbo(p: Problem, d: Decoder, mean, covariance, bound=exact):
    """The beta-ELBO of every row, (N,): ``exact``, or with another bound in place of E log p."""
    value = bound(p, *predictor(p, d, mean, covariance))[0]
    return np.where(p.missing, 0.0, value).sum(axis=1) - p.beta * kl_divergence(mean, covariance)


def log_likelihood(p: Problem, d: Decoder, *, nodes=401, reach=9.0):
    """log of the integral of p(x | z) N(z; 0, 1) of every row, one latent unit, by the trapezoid rule."""
    z = np.linspace(-reach, reach, nodes)
    logs = []
    for value in z:
        eta = predictor(p, d, np.full((len(p.x), 1), value), np.zeros((1, 1)))[0]
        log_p = np.where(p.missing, 0.0, p.family.log_prob(p.x, eta, p.phi)).sum(axis=1)
        logs.append(log_p - 0.5 * value**2 - 0.5 * np.log(2 * np.pi) + np.log(z[1] - z[0]))
    return logsumexp(logs, axis=0)


def elbo_and_gradient(p: Problem, d: Decoder, mean, root, bound=exact):
    """The weighted mean ELBO and its derivatives in loadings, intercept, coefficients, means and roots, S = R R'."""
    share = p.weight / p.weight.sum()
    covariance = root @ np.swapaxes(root, 1, 2)
    value, slope, weight = bound(p, *predictor(p, d, mean, covariance))
    value, slope, weight = (np.where(p.missing, 0.0, a) for a in (value, slope, weight))
    total = share @ (value.sum(axis=1) - p.beta * kl_divergence(mean, covariance))
    g = share[:, None] * slope
    loadings = g.T @ mean - np.einsum("n,nj,jk,nkl->jl", share, weight, d.loadings, covariance)
    eye = np.eye(mean.shape[1])
    per_row = [
        -(d.loadings.T @ np.diag(h) @ d.loadings + p.beta * (eye - np.linalg.inv(s))) @ r
        for h, s, r in zip(weight, covariance, root, strict=True)
    ]
    of_root = share[:, None, None] * np.reshape(per_row, root.shape)
    return total, (
        loadings,
        g.sum(axis=0),
        p.covariates.T @ g,
        g @ d.loadings - share[:, None] * p.beta * mean,
        of_root,
    )
