"""How far the closed form can be carried: the paper's L-hat, the bound by column, the exact optimum, seconds each.

Rates are compared within one run. Compilation is kept apart by a first call of one round.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from glmvae import datasets, fit, moments, posterior, refine
from glmvae.elbo import elbo_exact
from glmvae.families import Bernoulli


class Refined(NamedTuple):
    """Of one data set, nats per row and seconds. ``eigh_seconds`` is that of as many plain eigendecompositions."""

    name: str
    rows: int
    elbo_taylor: float
    closed_form_elbo: float
    closed_form_seconds: float
    column_bound: float
    column_elbo: float
    column_seconds: float
    column_rounds: int
    eigh_seconds: float
    exact_elbo: float
    exact_seconds: float
    exact_rounds: int


def run(
    names: tuple[str, ...] = ("digits", "frey", "mnist"),
    *,
    latent_dim: int = 20,
    beta: float = 1.0,
    max_rows: int = 10_000,
    column_rounds: int = 15,
    exact_rounds: int = 30,
    tolerance: float = 1e-3,
) -> list[Refined]:
    """Print a line a data set, and return them."""
    results = []
    for name in names:
        x = jnp.asarray(np.asarray(datasets.load(name).train)[:max_rows])
        result = _measure(name, x, latent_dim, beta, column_rounds, exact_rounds, tolerance)
        results.append(result)
        print(
            f"{name}: {result.rows} rows, L-hat {result.elbo_taylor:.3f} (exact ELBO {result.closed_form_elbo:.3f}, "
            f"{result.closed_form_seconds:.2f} s), column bound {result.column_bound:.3f} (exact ELBO "
            f"{result.column_elbo:.3f}, {result.column_rounds} rounds, {result.column_seconds:.2f} s, "
            f"{result.column_seconds / result.eigh_seconds:.2f} of plain eigh), exact optimum {result.exact_elbo:.3f} "
            f"({result.exact_rounds} rounds, {result.exact_seconds:.2f} s)"
        )
    return results


def _timed(f: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    value = jax.block_until_ready(f())
    return value, time.perf_counter() - start


def _measure(
    name: str, x: jax.Array, latent_dim: int, beta: float, column_rounds: int, exact_rounds: int, tolerance: float
) -> Refined:
    family = Bernoulli()
    fit(x, family, latent_dim, beta=beta)
    start, fit_seconds = _timed(lambda: fit(x, family, latent_dim, beta=beta))
    data = moments(x, family=family)
    eigh = jax.jit(jnp.linalg.eigh)
    jax.block_until_ready(eigh(data.covariance))
    refine(start, data, family, method="column", max_rounds=1)
    column, column_seconds = _timed(
        lambda: refine(start, data, family, method="column", max_rounds=column_rounds, tolerance=1e-12)
    )
    eigh_seconds = sum(_timed(lambda: eigh(data.covariance))[1] for _ in range(column.history.shape[0]))
    refine(start, x, family, max_rounds=1)
    exact, exact_seconds = _timed(lambda: refine(start, x, family, max_rounds=exact_rounds, tolerance=tolerance))

    def elbo(optimum: Any) -> float:
        q = posterior(optimum, x)
        return float(jnp.mean(elbo_exact(optimum.loadings, optimum.intercept, x, q, family, beta=beta)))

    return Refined(
        name=name,
        rows=x.shape[0],
        elbo_taylor=float(start.elbo_taylor),
        closed_form_elbo=elbo(start),
        closed_form_seconds=fit_seconds,
        column_bound=float(column.lower_bound),
        column_elbo=elbo(column),
        column_seconds=column_seconds,
        column_rounds=column.history.shape[0],
        eigh_seconds=eigh_seconds,
        exact_elbo=float(exact.elbo),
        exact_seconds=exact_seconds,
        exact_rounds=exact.history.shape[0] - 1,
    )
