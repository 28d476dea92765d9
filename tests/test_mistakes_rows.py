"""Deliberate mistakes in what a row scores: in the ELBO's terms, and in what rows bring beside x."""

from typing import NamedTuple

import dense_reference as dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from dense_reference import MODELS, expansion_point
from mistaken import ATOL, BETA, CASES, UNITS, Case, caught, data_of, model_of
from numpy.polynomial.hermite_e import hermegauss

from glmvae import Affine, AffineModel, Objective, Posterior, Rows, elbo_exact, elbo_quadratic
from glmvae.families import Binomial

pytestmark = pytest.mark.float64

# The ELBO of a row -----------------------------------------------------------------------------------------


class Setting(NamedTuple):
    x: np.ndarray
    loadings: np.ndarray
    intercept: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray


def setting(case):
    rng = np.random.default_rng(2)
    x = data_of(case)[0][:3]
    root = 0.4 * rng.normal(size=(UNITS, UNITS))
    covariance = root @ root.T + 0.1 * np.eye(UNITS)
    return Setting(
        x, 0.5 * rng.normal(size=(4, UNITS)), 0.3 * rng.normal(size=4), rng.normal(size=(3, UNITS)), covariance
    )


def divergence(s: Setting, wrong: str) -> np.ndarray:
    parts = {
        "KL without the trace": np.trace(s.covariance),
        "KL without the determinant": -np.linalg.slogdet(s.covariance)[1],
        "KL without the mean": np.sum(s.mean**2, axis=1),
        "KL without the dimension": -float(UNITS),
    }
    total = sum(value for name, value in parts.items() if name != wrong)
    return total if wrong == "1/2 missing from the KL" else 0.5 * total


def row_values(case: Case, kind: str, wrong: str = "") -> np.ndarray:
    """``elbo_quadratic`` or ``elbo_exact`` of three rows once more."""
    s, model = setting(case), MODELS[case.name]
    m = s.mean @ s.loadings.T + s.intercept
    cov = np.diag(np.diag(s.covariance)) if wrong == "diagonal of Sigma for Sigma" else s.covariance
    v = np.einsum("jk,kl,jl->j", s.loadings, cov, s.loadings)
    if wrong == "variance dropped":
        v = 0 * v
    if wrong == "root of v for v":
        v = np.sqrt(v)
    beta = 1.0 if wrong == "beta dropped" else BETA
    if kind == "quadratic":
        eta0 = expansion_point(model, s.x, case.expand_at)
        theta0 = model.scale * eta0
        w = model.scale**2 * model.variance(theta0) / case.phi
        y = eta0 + (s.x - model.mean(theta0)) / (model.scale * model.variance(theta0))
        at_eta0 = model.log_prob(s.x, eta0, case.phi)
        expected = at_eta0 + 0.5 * w * (y - eta0) ** 2 - 0.5 * w * ((y - m) ** 2 + v)
        if wrong == "1/2 missing":
            expected = at_eta0 + w * (y - eta0) ** 2 - w * ((y - m) ** 2 + v)
    elif case.name == "poisson":
        rate = np.exp(m + (v if wrong == "1/2 missing" else v / 2))
        expected = (s.x * m - rate) / case.phi + model.log_base_measure(s.x, case.phi)
    else:
        assert case.name == "gaussian"
        spread = v if wrong == "1/2 missing" else v / 2
        expected = model.log_prob(s.x, m, case.phi) - spread / case.phi
    if wrong == "log base measure dropped":
        expected = expected - model.log_base_measure(s.x, case.phi)
    return expected.sum(axis=1) - beta * divergence(s, wrong)


def by_cubature(case: Case, kind: str) -> np.ndarray:
    """E [log p - beta (log q - log prior)] by a product rule over z, log p and its expansion from autodiff."""
    s, family = setting(case), MODELS[case.name].family
    nodes, weights = hermegauss(40)
    t = np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2)
    p = np.outer(weights, weights).ravel() / (2 * np.pi)
    eta0 = expansion_point(MODELS[case.name], s.x, case.expand_at)

    def log_p(x, eta):
        return jnp.sum(family.log_prob(x, eta, case.phi))

    def of_row(x, mean):
        z = mean + t @ jnp.linalg.cholesky(s.covariance).T
        eta = z @ s.loadings.T + s.intercept
        value = jax.vmap(log_p, in_axes=(None, 0))(x, eta)
        if kind == "quadratic":
            step = eta - eta0
            gradient, hessian = jax.grad(log_p, 1)(x, eta0), jax.hessian(log_p, 1)(x, eta0)
            value = log_p(x, eta0) + step @ gradient + 0.5 * jnp.sum((step @ hessian) * step, axis=1)
        q = jax.scipy.stats.multivariate_normal.logpdf(z, mean, s.covariance)
        prior = jax.scipy.stats.multivariate_normal.logpdf(z, jnp.zeros(UNITS), jnp.eye(UNITS))
        return p @ (value - BETA * (q - prior))

    return np.asarray(jax.jit(jax.vmap(of_row))(s.x, s.mean))


ROW_MISTAKES = [
    *((name, case, "quadratic") for name in ("KL without the trace", "1/2 missing") for case in CASES),
    ("KL without the determinant", "gaussian", "exact"),
    ("KL without the mean", "poisson", "exact"),
    ("KL without the dimension", "gaussian", "exact"),
    ("1/2 missing from the KL", "poisson", "quadratic"),
    ("beta dropped", "gaussian", "exact"),
    ("beta dropped", "tanh", "quadratic"),
    ("diagonal of Sigma for Sigma", "poisson", "exact"),
    ("diagonal of Sigma for Sigma", "tanh", "quadratic"),
    ("variance dropped", "gaussian", "exact"),
    ("root of v for v", "poisson", "exact"),
    ("1/2 missing", "poisson", "exact"),
    ("1/2 missing", "gaussian", "exact"),
    ("log base measure dropped", "poisson", "exact"),
    ("log base measure dropped", "binomial", "quadratic"),
]


def test_a_mistake_in_a_row_is_caught():
    kinds = [(case, "quadratic") for case in CASES] + [("gaussian", "exact"), ("poisson", "exact")]
    cubature = {(case, kind): by_cubature(CASES[case], kind) for case, kind in kinds}

    def is_noticed(wrong, case, kind):
        return np.abs(row_values(CASES[case], kind, wrong) - cubature[case, kind]).max() > 1e-3

    missed = [mistake for mistake in ROW_MISTAKES if not is_noticed(*mistake)]
    assert not missed
    # Without a mistake rows are the cubature, and the library's too
    for (name, kind), expected in cubature.items():
        case, s = CASES[name], setting(CASES[name])
        q, model = Posterior(s.mean, s.covariance[None]), model_of(case, s.loadings, s.intercept)
        quadratic = elbo_quadratic(model, s.x, q, expand_at=case.expand_at)
        np.testing.assert_allclose(row_values(case, kind), expected, atol=ATOL)
        np.testing.assert_allclose(quadratic if kind == "quadratic" else elbo_exact(model, s.x, q), expected, atol=ATOL)


# What rows bring -------------------------------------------------------------------------------------------


class Brought(NamedTuple):
    """Six rows of binomials with every field, and what else a score depends on."""

    x: np.ndarray
    trials: np.ndarray
    offset: np.ndarray
    covariates: np.ndarray
    missing: np.ndarray
    weight: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    loadings: np.ndarray
    intercept: np.ndarray
    coefficients: np.ndarray
    beta: float = 0.7
    phi: float = 0.8

    def of_rows(self, rows):
        """The same for some rows, in any order."""
        return self._replace(**{name: getattr(self, name)[rows] for name in self._fields[:8]})


def brought() -> Brought:
    p, d, mean, root = dense.example("binomial", fields=("trials", "offset", "covariates", "missing", "weight"))
    fields = (p.x, p.family.trials, p.offset, p.covariates, p.missing, p.weight)
    return Brought(*fields, mean, root @ np.swapaxes(root, 1, 2), *d)


def by_hand(s: Brought, wrong: str = "") -> np.ndarray:
    """The exact ELBO of every row once more."""
    n = {
        "trials of the wrong row": np.roll(s.trials, 1, axis=0),
        "trials of the first row for all": s.trials[:1],
        "trials of all rows in every row": s.trials.sum(axis=0)[None],
    }.get(wrong, s.trials)
    offset = {"offset dropped": 0.0, "offset of the wrong row": np.roll(s.offset, 1, axis=0)}.get(wrong, s.offset)
    known = s.covariates @ s.coefficients
    known = {"covariates dropped": 0.0, "covariates of the wrong row": np.roll(known, 1, axis=0)}.get(wrong, known)
    m = s.mean @ s.loadings.T + s.intercept + known + offset
    q = s.covariance[:1] if wrong == "covariance of the first row for all" else s.covariance
    v = np.einsum("jk,nkl,jl->nj", s.loadings, q, s.loadings)
    phi, beta = (1.0 if wrong == f"{name} taken from the default" else getattr(s, name) for name in ("phi", "beta"))
    value = (s.x * m - n * dense.expectation(lambda eta: np.logaddexp(0, eta), m, v)) / phi
    value = value + dense.Binomial(n).log_base_measure(s.x)
    value = value if wrong == "a missing entry counted" else np.where(s.missing, 0.0, value)
    rows = value.sum(axis=1) - beta * dense.kl_divergence(s.mean, s.covariance)
    return rows * s.weight if wrong == "a row's own result weighted" else rows


def library(s: Brought) -> np.ndarray:
    model = AffineModel(Affine(s.loadings, s.intercept, s.coefficients), Objective(Binomial(None), s.beta, s.phi))
    rows = Rows(s.x, trials=s.trials, offset=s.offset, covariates=s.covariates, missing=s.missing, weight=s.weight)
    return np.asarray(elbo_exact(model, rows, Posterior(s.mean, s.covariance)))


def same(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def check_offset(score, s):
    """What goes from the offset to the intercept changes nothing; what is added to it alone does."""
    shift = np.array([0.3, -0.2, 0.5, 0.1])
    same(score(s), score(s._replace(offset=s.offset - shift, intercept=s.intercept + shift)))
    assert np.abs(score(s) - score(s._replace(offset=s.offset + shift))).min() > 1e-3


def check_covariates(score, s):
    """Known columns are an offset whose coefficients are estimated."""
    known = s.covariates @ s.coefficients
    same(score(s), score(s._replace(offset=s.offset + known, coefficients=0 * s.coefficients)))


def check_alone(score, s):
    """A row is alone what it is among others."""
    same(score(s), np.concatenate([score(s.of_rows(slice(i, i + 1))) for i in range(len(s.x))]))


def check_order(score, s):
    order = np.array([3, 0, 5, 1, 4, 2])
    same(score(s.of_rows(order)), score(s)[order])


def check_beta(score, s):
    """The ELBO falls by the KL divergence where beta rises by 1; that one is SciPy's entropy and a variance."""
    normal = scipy.stats.multivariate_normal
    entropy = np.array([normal(m, c).entropy() for m, c in zip(s.mean, s.covariance, strict=True)])
    second = np.sum(s.mean**2, axis=1) + np.trace(s.covariance, axis1=1, axis2=2)
    divergence = 0.5 * (second + s.mean.shape[1] * np.log(2 * np.pi)) - entropy
    same(score(s) - score(s._replace(beta=s.beta + 1)), divergence)


def check_dispersion(score, s):
    """phi times what depends on eta does not depend on phi."""
    still = [score(s._replace(phi=phi)) for phi in (0.5, 1.0, 2.0)]
    same(still[0] - still[1], 2 * (still[1] - still[2]))
    assert np.abs(still[0] - still[1]).min() > 1e-3


def check_missing(score, s):
    """Whatever stands where an entry is missing, in the support, is nothing."""
    same(score(s), score(s._replace(x=np.where(s.missing, 0.0, s.x))))
    assert np.all(score(s)[s.missing.any(axis=1)] > score(s._replace(missing=s.missing & False))[s.missing.any(axis=1)])


def check_weight(score, s):
    same(score(s), score(s._replace(weight=2 * s.weight)))


SCORING = [
    ("offset dropped", check_offset),
    ("offset of the wrong row", check_alone),
    ("covariates dropped", check_covariates),
    ("covariates of the wrong row", check_alone),
    ("trials of the wrong row", check_alone),
    ("trials of the first row for all", check_order),
    ("trials of all rows in every row", check_alone),
    ("covariance of the first row for all", check_order),
    ("beta taken from the default", check_beta),
    ("phi taken from the default", check_dispersion),
    ("a missing entry counted", check_missing),
    ("a row's own result weighted", check_weight),
]


def test_a_mistake_in_what_rows_bring_is_caught():
    s = brought()
    missed = [wrong for wrong, check in SCORING if not caught(check, lambda t, w=wrong: by_hand(t, w), s)]
    assert not missed
    for check in dict(SCORING).values():  # without a mistake it passes, and so does the library
        check(by_hand, s)
        check(library, s)
    same(library(s), by_hand(s))
