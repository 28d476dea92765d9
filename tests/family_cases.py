"""Every family, with SciPy's word for what it claims to be: one list for all tests."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.scipy.special import gammaln
from jax.scipy.stats import norm
from scipy.special import expit

# JAX's own softplus has no second derivative beyond 15 in float32 (tests/test_softplus.py)
from glmvae.families import Bernoulli, Binomial, CustomFamily, Family, Gaussian, Poisson, Support
from glmvae.families.softplus_calculus import softplus

COLUMNS = 3
TRIALS = np.array([1.0, 4.0, 16.0])


class Case(NamedTuple):
    """A family, its SciPy distribution given (eta, phi), and arguments to try it at; three columns throughout."""

    family: Family
    scipy: Callable
    x: np.ndarray  # (rows, COLUMNS), in the support
    outside: tuple[float, ...]  # values out of the support, at column 0
    dispersion: float = 1.0
    eta: np.ndarray = np.array([-1.5, 0.25, 0.75])

    @property
    def discrete(self) -> bool:
        return isinstance(self.scipy(np.zeros(COLUMNS), 1.0).dist, scipy.stats.rv_discrete)


@functools.partial(jax.jit, static_argnames="method")
def run(method, family, *values):
    """A method of a family, compiled: families that differ in a number alone share the program."""
    return getattr(family, method)(*values)


def probit(eta):
    """theta(eta) of a Bernoulli with mean Phi(eta)."""
    return norm.logcdf(eta) - norm.logcdf(-eta)


def count_measure(x, dispersion):
    return -gammaln(x + 1)


def draw_count(key, mean, dispersion):
    return jax.random.poisson(key, mean).astype(mean.dtype)


def gamma_normalizer(theta):
    return -jnp.log(-theta)


def gamma_activation(eta):
    return -jnp.exp(-eta)


def gamma_measure(x, dispersion):
    shape = 1 / dispersion
    return (shape - 1) * jnp.log(x) - gammaln(shape) + shape * jnp.log(shape)


COUNTS = np.array([[0.0, 1.0, 2.0], [3.0, 0.0, 5.0], [1.0, 4.0, 0.0], [2.0, 2.0, 7.0]])
BINARY = np.array([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
REAL = np.array([[0.5, -1.0, 2.25], [-3.0, 0.0, 1.0], [1.5, 0.75, -0.5], [0.0, 2.0, -1.0]])
NEVER = (np.nan, np.inf, -np.inf)

CASES = {}
for rho in (1.0, 2.0, -0.5):
    mark = "" if rho == 1 else f" rho={rho:g}"
    CASES[f"Gaussian{mark}"] = Case(
        Gaussian(activation_scale=rho),
        lambda eta, phi, rho=rho: scipy.stats.norm(rho * eta, np.sqrt(phi)),
        REAL,
        NEVER,
        dispersion=0.5,
    )
    CASES[f"Bernoulli{mark}"] = Case(
        Bernoulli(activation_scale=rho),
        lambda eta, phi, rho=rho: scipy.stats.bernoulli(expit(rho * eta)),
        BINARY,
        (*NEVER, -0.1, 1.1),
    )
    CASES[f"Binomial(5){mark}"] = Case(
        Binomial(5, activation_scale=rho),
        lambda eta, phi, rho=rho: scipy.stats.binom(5, expit(rho * eta)),
        np.minimum(COUNTS, 5),
        (*NEVER, -1.0, 5.5),
    )
    CASES[f"Binomial(columns){mark}"] = Case(
        Binomial(TRIALS, activation_scale=rho),
        lambda eta, phi, rho=rho: scipy.stats.binom(TRIALS, expit(rho * eta)),
        np.minimum(COUNTS, TRIALS),
        (*NEVER, -1.0, 2.0),
    )
    CASES[f"Poisson{mark}"] = Case(
        Poisson(activation_scale=rho),
        lambda eta, phi, rho=rho: scipy.stats.poisson(np.exp(rho * eta)),
        COUNTS,
        (*NEVER, -1.0),
    )
CASES["Custom Poisson"] = Case(
    CustomFamily(jnp.exp, count_measure, limits=Support(0.0), sampler=draw_count),
    lambda eta, phi: scipy.stats.poisson(np.exp(eta)),
    COUNTS,
    (*NEVER, -1.0),
)
CASES["Custom probit"] = Case(
    CustomFamily(softplus, activation=probit, limits=Support(0.0, 1.0)),
    lambda eta, phi: scipy.stats.bernoulli(scipy.stats.norm.cdf(eta)),
    BINARY,
    (*NEVER, -0.1, 1.1),
)
CASES["Custom gamma"] = Case(
    CustomFamily(gamma_normalizer, gamma_measure, gamma_activation, Support(0.0, open_lower=True)),
    lambda eta, phi: scipy.stats.gamma(1 / phi, scale=phi * np.exp(eta)),
    np.abs(REAL) + 0.25,
    (*NEVER, -1.0, 0.0),
    dispersion=0.5,
)
BUILT_IN = [name for name in CASES if not name.startswith("Custom")]
