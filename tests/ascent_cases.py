"""Small tables of every kind for the tests of the ascent: one shape, so that their programs are compiled once."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import dense_reference as dense
import numpy as np

from glmvae import fit
from glmvae.families import Bernoulli, Binomial, Family, Gamma, Gaussian, NegativeBinomial, Poisson

N, D, K = 60, 5, 2
#: Nats per row: what the ascent is asked for in tests that compare optima.
TIGHT = 1e-10
#: An ELBO of a few nats in float32, summed in another order.
ROUNDING = {"float64": 1e-9, "float32": 2e-5}


class Case(NamedTuple):
    """A family, rows, the closed form they start from, and the family once more in plain NumPy."""

    family: Family
    x: np.ndarray
    start: Any
    dense: Any

    def problem(self, result: Any, **fields: Any) -> dense.Problem:
        """The reference's problem with the objective of a result; ``fields`` are those of Rows, and x."""
        phi = np.asarray(result.dispersion, float)
        x = fields.pop("x", self.x)
        return dense.problem(np.asarray(x, float), self.dense, beta=float(result.beta), phi=phi, **fields)

    def elbo(self, result: Any, posterior: Any = None, bound: Any = dense.exact, **fields: Any) -> float:
        """The mean of the exact ELBO (or of a bound), by the reference, of a decoder and its posterior."""
        p = self.problem(result, **fields)
        q = result.posterior if posterior is None else posterior
        covariance = np.broadcast_to(np.asarray(q.covariance, float), (len(p.x), *q.covariance.shape[1:]))
        return p.mean(dense.elbo(p, decoder(result), np.asarray(q.mean, float), covariance, bound))

    def null(self, phi: Any = 1.0) -> float:
        """The null model's log-likelihood a row."""
        x = np.asarray(self.x, float)
        eta = self.dense.null(x.mean(axis=0)) + 0 * x
        return float(self.dense.log_prob(x, eta, np.asarray(phi, float)).sum(axis=1).mean())


def decoder(result: Any) -> dense.Decoder:
    """The reference's."""
    return dense.decoder(result.loadings, result.intercept, result.model.coefficients)


_FAMILIES = {
    "bernoulli": (Bernoulli(), dense.Binomial(), None),
    "binomial": (Binomial(6), dense.Binomial(6.0), None),
    "poisson": (Poisson(), dense.Poisson(), None),
    "gaussian": (Gaussian(), dense.Gaussian(), None),
    "gamma": (Gamma(), dense.Gamma(), 0.5),
    "negative binomial": (NegativeBinomial(3.0), dense.NegativeBinomial(3.0), None),
}


@functools.cache
def case(kind: str, dtype: Any = "float64") -> Case:
    """Low-rank data of a kind and its closed form."""
    rng = np.random.default_rng(7)
    eta = 0.8 * rng.normal(size=(N, K)) @ rng.normal(size=(K, D)) + 0.3 * rng.normal(size=D)
    x = {
        "bernoulli": lambda: rng.random(eta.shape) < 1 / (1 + np.exp(-2 * eta)),
        "binomial": lambda: rng.binomial(6, 1 / (1 + np.exp(-eta))),
        "poisson": lambda: rng.poisson(np.exp(eta)),
        "gaussian": lambda: eta + rng.normal(size=eta.shape),
        "gamma": lambda: rng.gamma(2.0, np.exp(eta) / 2),
        "negative binomial": lambda: rng.poisson(rng.gamma(3.0, np.exp(eta))),
    }[kind]()
    family, reference, phi = _FAMILIES[kind]
    x = np.asarray(x, dtype)
    return Case(family, x, fit(x, family, K, dispersion=phi), reference)
