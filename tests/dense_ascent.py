"""Every maximum that has no closed form, once more: BFGS for ELBOs, Newton for a GLM. NumPy and SciPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
from dense_elbo import Decoder, Problem, elbo, elbo_and_gradient, exact


def _rows_of(flat, n, k):
    """Means (n, k) and roots (n, k, k), lower triangular with the logarithm of the diagonal in ``flat``."""
    root = np.zeros((n, k, k))
    root[:, *np.tril_indices(k)] = flat[n * k :].reshape(n, -1)
    root[:, range(k), range(k)] = np.exp(root[:, range(k), range(k)])
    return flat[: n * k].reshape(n, k), root


def _flat_rows(mean, root, *, gradient_at=None):
    """The inverse; for a gradient, ``gradient_at`` is the root it is taken at."""
    k = mean.shape[1]
    root = root.copy()
    diagonal = root[:, range(k), range(k)]
    root[:, range(k), range(k)] = (
        np.log(diagonal) if gradient_at is None else diagonal * gradient_at[:, range(k), range(k)]
    )
    return np.concatenate([mean.ravel(), root[:, *np.tril_indices(k)].ravel()])


def _climb(value_and_gradient, start, *, gradient=1e-11, times=5):
    """BFGS, begun again from where it ends until that gains nothing. Maximum and its gradient."""

    def downhill(flat):
        with np.errstate(all="ignore"):  # a step of a search may overflow
            value, gradient = value_and_gradient(flat)
        good = np.isfinite(value) and np.all(np.isfinite(gradient))
        return (-value, -gradient) if good else (1e100, np.zeros_like(flat))

    best = np.inf
    for _ in range(times):
        found = scipy.optimize.minimize(
            downhill, start, jac=True, method="BFGS", options={"gtol": gradient, "maxiter": 3000}
        )
        start = found.x
        if best - found.fun < 1e-13 * abs(found.fun):
            break
        best = found.fun
    return start, -found.jac


def best_posterior(p: Problem, d: Decoder, bound=exact):
    """Means (N, k) and covariances (N, k, k) of the largest ELBO, row by row: BFGS, then a root of the gradient."""
    n, k = len(p.x), d.loadings.shape[1]
    mean, covariance = np.zeros((n, k)), np.zeros((n, k, k))

    def of_row(row):
        def value_and_gradient(flat):
            m, root = _rows_of(flat, 1, k)
            value, gradient = elbo_and_gradient(row, d, m, root, bound)
            return value, _flat_rows(gradient[3], gradient[4], gradient_at=root)

        flat, _ = _climb(value_and_gradient, np.zeros(k + k * (k + 1) // 2), gradient=1e-4, times=1)
        return scipy.optimize.root(lambda flat: value_and_gradient(flat)[1], flat, tol=1e-14).x

    for i in range(n if k else 0):
        m, root = _rows_of(of_row(p.row(i)), 1, k)
        mean[i], covariance[i] = m[0], root[0] @ root[0].T
    return mean, covariance


class DenseMaximum(NamedTuple):
    decoder: Decoder
    mean: np.ndarray
    covariance: np.ndarray
    dispersion: Any
    elbo: float
    gradient: float  # its largest entry: 0 at a maximum


def refine(p: Problem, latent_dim, bound=exact, *, start: Decoder | None = None, seed=0) -> DenseMaximum:
    """The ELBO maximised over decoder, posteriors and a dispersion that is estimated, all at once: for tiny problems.

    From the GLM with small random loadings, or from a decoder and its best posteriors.
    """
    n, dim, covariates, k = *p.x.shape, p.covariates.shape[1], latent_dim
    estimated, p = p.phi is None, p._replace(phi=1.0 if p.phi is None else p.phi)
    if start is None:
        start = glm(p)[0]
        start = start._replace(loadings=0.5 * np.random.default_rng(seed).normal(size=(dim, k)))
        mean, covariance = np.zeros((n, k)), np.broadcast_to(0.5 * np.eye(k), (n, k, k))
    else:
        mean, covariance = best_posterior(p, start, bound)
    shapes = [(dim, k), (dim,), (covariates, dim)]
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes])

    def parts(flat):
        d = Decoder(*(a.reshape(s) for a, s in zip(np.split(flat[: ends[-1]], ends[:-1]), shapes, strict=True)))
        return d, *_rows_of(flat[ends[-1] : -1], n, k), np.exp(flat[-1]) if estimated else p.phi

    def value_and_gradient(flat):
        d, mean, root, phi = parts(flat)
        value, gradient = elbo_and_gradient(p._replace(phi=phi), d, mean, root, bound)
        of_phi = 0.0
        if estimated:  # in log phi, by a central difference
            step, covariance = 1e-4, root @ np.swapaxes(root, 1, 2)
            ends_of = [p.mean(elbo(p._replace(phi=phi * np.exp(h)), d, mean, covariance, bound)) for h in (step, -step)]
            of_phi = (ends_of[0] - ends_of[1]) / (2 * step)
        rows = _flat_rows(gradient[3], gradient[4], gradient_at=root)
        return value, np.concatenate([*(g.ravel() for g in gradient[:3]), rows, [of_phi]])

    rows = _flat_rows(mean, np.linalg.cholesky(covariance))
    flat, gradient = _climb(value_and_gradient, np.concatenate([*(a.ravel() for a in start), rows, [0.0]]))
    d, mean, root, phi = parts(flat)
    value, covariance = value_and_gradient(flat)[0], root @ np.swapaxes(root, 1, 2)
    return DenseMaximum(d, mean, covariance, phi, value, np.abs(gradient).max())


def glm(p: Problem):
    """Maximum likelihood without latent units, by Newton's method in every column: a decoder and log p of every row.

    The coefficients do not depend on a scalar dispersion, which is 1 where it is estimated.
    """
    p = p._replace(phi=1.0 if p.phi is None else p.phi)
    n, dim = p.x.shape
    design = np.column_stack([np.ones(n), p.covariates])
    solved = np.zeros((design.shape[1], dim))
    for j in range(dim):
        share = p.weight * ~p.missing[:, j]

        def at(solved, j=j, share=share):
            with np.errstate(over="ignore"):
                return share @ p.family.log_prob(p.x, design @ solved + p.offset, p.phi)[:, j]

        for _ in range(200):
            eta = design @ solved + p.offset
            score, w = (f(p.x, eta, p.phi)[:, j] for f in (p.family.score, p.family.observed_weight))
            step = np.zeros_like(solved)
            step[:, j] = np.linalg.solve(design.T @ ((share * w)[:, None] * design), design.T @ (share * score))
            while not at(solved + step) >= at(solved) - 1e-9:
                step = step / 2
            solved = solved + step
            if np.abs(step).max() < 1e-13:
                break
    d = Decoder(np.zeros((dim, 0)), solved[0], solved[1:])
    return d, elbo(p, d, np.zeros((n, 0)), np.zeros((0, 0)))
