"""The closed form, once more, written out with the rows in hand. NumPy and SciPy float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
from dense_elbo import Decoder, Problem, elbo, quadratic
from dense_families import Gaussian

# The expansion ---------------------------------------------------------------------------------------------


def moments(x, weight=1.0):
    """Total weight, mean and covariance (divided by the total), row by row."""
    weight = np.broadcast_to(np.asarray(weight, float), x.shape[:1])
    mean = weight @ x / weight.sum()
    covariance = sum(w * np.outer(row - mean, row - mean) for w, row in zip(weight, x, strict=True)) / weight.sum()
    return weight.sum(), mean, covariance


def expansion(family, x, eta0, phi, weight=None):
    """Working response (N, d), working weight and constant (N, d): log p ~ constant - weight (response - eta)^2 / 2."""
    w = family.weight(np.asarray(eta0, float), phi) * np.ones(x.shape[1]) if weight is None else weight
    response = eta0 + family.score(x, eta0, phi) / w
    return response, w, family.log_prob(x, eta0, phi) + 0.5 * w * (response - eta0) ** 2


def expansion_point(family, x, expand_at, weight=1.0):
    if isinstance(expand_at, str):
        return np.zeros(x.shape[1]) if expand_at == "zero" else family.null(moments(x, weight)[1])
    return np.broadcast_to(np.asarray(expand_at, float), x.shape[1:])


def closed_form_expansion(p: Problem, expand_at="zero"):
    """eta0 and the weight of every column that ``fit`` expands with.

    With an offset or trials an entry: eta0 = offset and, for a binomial, the weight max_i n_ij / 4 of Boehning's bound.
    """
    if p.missing.any():
        raise ValueError("the closed form knows no missing entries")
    if p.bounded:
        return p.offset, p.family.largest_weight(p.x, p.weight > 0) / p.phi
    eta0 = expansion_point(p.family, p.x, expand_at, p.weight)
    return eta0, p.family.weight(eta0, p.phi) * np.ones(p.x.shape[1])


# Dispersion ------------------------------------------------------------------------------------------------


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


def searched_gaussian_dispersion(eigenvalues, latent_dim, beta) -> float:
    """The same by a bounded search over log sigma^2 for the maximum of the profile."""
    ends = np.log(np.mean(eigenvalues)) + np.array([-12.0, 3.0])
    search = scipy.optimize.minimize_scalar(
        lambda s: -gaussian_profile(eigenvalues, latent_dim, beta, np.exp(s)),
        bounds=ends,
        method="bounded",
        options={"xatol": 1e-10},
    )
    return float(np.exp(search.x))


# The closed form -------------------------------------------------------------------------------------------


class DenseOptimum(NamedTuple):
    loadings: np.ndarray
    intercept: np.ndarray
    coefficients: np.ndarray  # (p, d)
    dispersion: Any
    eigenvalues: np.ndarray
    elbo: float
    encoder_weight: np.ndarray  # posterior mean = weight x + bias where there is neither offset nor covariate
    encoder_bias: np.ndarray
    covariance: np.ndarray
    mean: np.ndarray  # (N, k), of the rows

    @property
    def decoder(self):
        return Decoder(self.loadings, self.intercept, self.coefficients)


def fit(p: Problem, latent_dim, *, expand_at="zero") -> DenseOptimum:
    """(15)-(20) with the rows in hand; covariates by least squares of the working responses on (1, C)."""
    estimated = p.phi is None
    if estimated and not isinstance(p.family, Gaussian):
        raise ValueError(f"no closed form of the dispersion of {p.family}")
    eta0, w = closed_form_expansion(p._replace(phi=1.0) if estimated else p, expand_at)
    y, _, _ = expansion(p.family, p.x, eta0, 1.0 if estimated else p.phi, w)
    design = np.column_stack([np.ones(len(y)), p.covariates])
    normal = design.T @ (p.weight[:, None] * design)
    solved = np.linalg.solve(normal, design.T @ (p.weight[:, None] * (y - p.offset)))
    b, coefficients = solved[0], solved[1:]
    residual = y - p.offset - design @ solved
    covariance = moments(residual, p.weight)[2]
    if estimated:
        raw = np.linalg.eigvalsh(covariance)[::-1]
        p = p._replace(phi=best_gaussian_dispersion(raw * p.family.scale**2, latent_dim, p.beta))
        w = w / p.phi
    root = np.diag(np.sqrt(w))
    values, vectors = np.linalg.eigh(root @ covariance @ root)
    values, vectors = values[::-1], vectors[:, ::-1]
    k = np.maximum(values[:latent_dim], p.beta)
    length = np.diag(np.sqrt(k - p.beta))
    loadings = np.linalg.inv(root) @ vectors[:, :latent_dim] @ length
    encoder_y = np.diag(1 / k) @ length @ vectors[:, :latent_dim].T @ root  # mu_z = encoder_y (y - b)
    mean, spread = residual @ encoder_y.T, p.beta * np.diag(1 / k)
    found = Decoder(loadings, b, coefficients)
    value = p.mean(elbo(p, found, mean, spread, quadratic(eta0, w)))
    rise = (p.family.score(1 + 0 * p.x, eta0 + 0 * p.x, p.phi) - p.family.score(0 * p.x, eta0 + 0 * p.x, p.phi))[0] / w
    encoder = encoder_y * rise  # dy / dx is one value a column where the weight is
    bias = -encoder @ moments(p.x, p.weight)[1]
    return DenseOptimum(loadings, b, coefficients, p.phi, values, value, encoder, bias, spread, mean)


def profile(p: Problem, d: Decoder, expand_at="zero") -> float:
    """L-hat of an affine decoder under its best posterior, (12), (14), with C and S written out."""
    eta0, w = closed_form_expansion(p, expand_at)
    y, _, constant = expansion(p.family, p.x, eta0, p.phi, w)
    residual = y - p.offset - d.intercept - p.covariates @ d.coefficients
    s = sum(weight * np.outer(r, r) for weight, r in zip(p.weight, residual, strict=True)) / p.weight.sum()
    c = np.diag(1 / w) + d.loadings @ d.loadings.T / p.beta
    log_det = np.linalg.slogdet(c)[1] + np.sum(np.log(w))
    return float(-0.5 * (np.trace(np.linalg.inv(c) @ s) + p.beta * log_det) + p.mean(constant.sum(axis=1)))
