"""Deliberate mistakes: each is put into a small second implementation, and the check named beside it must notice.

The same check passes on the implementation without the mistake, so that it is the mistake that it notices. The checks
judge by other means than the formula at fault: automatic differentiation, cubature over z, a perturbation, the rows.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import expansion_point
from mistaken import ATOL, BETA, CASES, UNITS, Case, caught, data_of, model_of, objective_of

from glmvae import (
    Affine,
    AffineModel,
    Posterior,
    Rows,
    affine_posterior,
    elbo_exact,
    elbo_profile,
    elbo_quadratic,
    elbo_taylor,
    moments,
)

pytestmark = pytest.mark.float64


class Result(NamedTuple):
    loadings: np.ndarray
    intercept: np.ndarray
    elbo: float
    encoder_weight: np.ndarray
    encoder_bias: np.ndarray
    covariance: np.ndarray
    activity: np.ndarray


# The closed form -------------------------------------------------------------------------------------------


def closed_form(case: Case, wrong: str = "") -> Result:
    x, model = data_of(case)
    eta0, n, d = expansion_point(model, x, case.expand_at), len(x), x.shape[1]
    theta0 = model.scale * eta0
    curvature, slope = model.variance(theta0) * np.ones(d), model.scale
    phi = 1 / case.phi if wrong == "1/phi for phi" else case.phi
    w = slope**2 * curvature / phi
    if wrong == "theta' dropped from the weight":
        w = curvature / phi
    if wrong == "trials dropped from the weight":
        w = w / model.trials
    derivative = slope * curvature
    if wrong == "F'' for mu'":
        derivative = curvature
    y = eta0 + (x - model.mean(theta0)) / derivative
    if wrong == "eta0 dropped from the response":
        y = y - eta0
    b = x.mean(axis=0) if wrong == "mean of x for mean of y" else y.mean(axis=0)
    s = (y - y.mean(axis=0)).T @ (y - y.mean(axis=0)) / (n - 1 if wrong == "N - 1 for N" else n)
    if wrong == "diagonal of Cov for Cov":
        s = np.diag(np.diag(s))
    root = np.sqrt(w)
    if wrong == "whitened by w for its root":
        root = w
    if wrong == "unwhitened":
        root = np.full(d, np.sqrt(w.mean()))
    values, vectors = np.linalg.eigh(root[:, None] * s * root)
    if wrong != "ascending eigenvalues":
        values, vectors = values[::-1], vectors[:, ::-1]
    top, u, tail = values[:UNITS], vectors[:, :UNITS], values[UNITS:]
    beta = 1.0 if wrong == "beta dropped from the cut-off" else BETA
    k = np.maximum(top, beta)
    if wrong == "cut-off for K":
        k = np.full(UNITS, beta)
    length = k - beta if wrong == "square root missing in L" else np.sqrt(k - beta)
    if wrong == "L without beta":
        length = np.sqrt(k)
    loadings = u * length / root[:, None]
    encoder = (length / k)[:, None] * (u * (root / derivative)[:, None]).T
    if wrong == "K missing from the encoder":
        encoder = length[:, None] * (u * (root / derivative)[:, None]).T
    bias = -encoder @ x.mean(axis=0)
    if wrong == "the printed sign of b_e":
        bias = -bias
    covariance = np.diag((1.0 if wrong == "beta dropped from Sigma" else beta) / k)
    if wrong == "K for its inverse in Sigma":
        covariance = np.diag(k / beta)
    constant = model.log_prob(x, eta0, case.phi).sum(axis=1).mean()
    squares = 0.5 * np.mean(np.sum(w * (y - eta0) ** 2, axis=1))
    if wrong == "log base measure dropped":
        constant -= np.sum(model.log_base_measure(x, case.phi), axis=1).mean()
    if wrong == "squares dropped from D":
        squares = 0.0
    log_term = np.sum(np.log(k / beta))
    tail_term = 0.0 if wrong == "tail of the spectrum dropped" else tail.sum()
    fitted = np.sum(top / k if wrong == "beta dropped from the fit" else beta * top / k)
    weight = 1.0 if wrong == "beta dropped from the log" else beta
    half = 1.0 if wrong == "1/2 missing" else 0.5
    elbo = constant + squares - half * (fitted + tail_term + weight * log_term)
    activity = 1 - beta / k if wrong != "K over lambda squared" else k / np.maximum(top, beta) ** 2
    return Result(loadings, b, float(elbo), encoder, bias, covariance, activity)


@functools.cache
def profile_of(case):
    """L-hat of a decoder under its best posterior, and its gradient; compiled once a case."""
    x, model = data_of(case)
    data = moments(x, family=model.family)

    def profile(decoder):
        return elbo_profile(AffineModel(decoder, objective_of(case)), data, expand_at=case.expand_at)

    return jax.jit(profile), jax.jit(jax.grad(profile))


def check_gradient(case, r):
    for gradient in jax.tree.leaves(profile_of(case)[1](Affine(r.loadings, r.intercept))):
        np.testing.assert_allclose(gradient, 0.0, atol=ATOL)


def check_perturbation(case, r):
    """A saddle has no gradient either."""
    profile, rng = profile_of(case)[0], np.random.default_rng(0)
    best = float(profile(Affine(r.loadings, r.intercept)))
    for step in (0.05, 0.5):
        for _ in range(25):
            moved = Affine(r.loadings + step * rng.normal(size=r.loadings.shape), r.intercept)
            assert profile(moved) < best + ATOL


def check_value(case, r):
    np.testing.assert_allclose(r.elbo, profile_of(case)[0](Affine(r.loadings, r.intercept)), atol=ATOL)


def check_rows(case, r):
    x, _ = data_of(case)
    q = Posterior(x @ r.encoder_weight.T + r.encoder_bias, r.covariance[None])
    model = model_of(case, r.loadings, r.intercept)
    rows = elbo_quadratic(model, x, q, expand_at=case.expand_at)
    np.testing.assert_allclose(r.elbo, np.mean(rows), atol=ATOL)
    if case.name == "gaussian":  # and nothing was expanded
        np.testing.assert_allclose(r.elbo, np.mean(elbo_exact(model, x, q)), atol=ATOL)


def check_posterior(case, r):
    x, _ = data_of(case)
    best = affine_posterior(model_of(case, r.loadings, r.intercept), x, expand_at=case.expand_at)
    np.testing.assert_allclose(x @ r.encoder_weight.T + r.encoder_bias, best.mean, atol=ATOL)
    np.testing.assert_allclose(r.covariance, best.covariance[0], atol=ATOL)


def check_activity(case, r):
    x, _ = data_of(case)
    np.testing.assert_allclose(r.activity, (x @ r.encoder_weight.T + r.encoder_bias).var(axis=0), atol=ATOL)


CLOSED_FORM = [
    ("beta dropped from the cut-off", "poisson", check_gradient),
    ("beta dropped from Sigma", "poisson", check_posterior),
    ("beta dropped from the log", "gaussian", check_value),
    ("beta dropped from the fit", "gaussian", check_value),
    ("1/phi for phi", "gaussian", check_gradient),
    ("1/phi for phi", "poisson", check_gradient),
    ("1/2 missing", "binomial", check_value),
    ("ascending eigenvalues", "binomial", check_perturbation),
    ("the printed sign of b_e", "tanh", check_posterior),
    ("the printed sign of b_e", "poisson", check_rows),
    ("N - 1 for N", "gaussian", check_gradient),
    ("N - 1 for N", "binomial", check_activity),
    ("unwhitened", "binomial", check_gradient),
    ("whitened by w for its root", "poisson", check_gradient),
    ("log base measure dropped", "binomial", check_value),
    ("log base measure dropped", "poisson", check_rows),
    ("squares dropped from D", "tanh", check_rows),
    ("diagonal of Cov for Cov", "gaussian", check_perturbation),
    ("square root missing in L", "binomial", check_gradient),
    ("L without beta", "poisson", check_gradient),
    ("cut-off for K", "binomial", check_perturbation),
    ("K missing from the encoder", "gaussian", check_posterior),
    ("K for its inverse in Sigma", "gaussian", check_posterior),
    ("mean of x for mean of y", "binomial", check_gradient),
    ("eta0 dropped from the response", "poisson", check_gradient),
    ("theta' dropped from the weight", "tanh", check_perturbation),
    ("trials dropped from the weight", "binomial", check_gradient),
    ("F'' for mu'", "tanh", check_gradient),
    ("tail of the spectrum dropped", "gaussian", check_value),
    ("K over lambda squared", "gaussian", check_activity),
]


@pytest.mark.parametrize(
    "check", [check_gradient, check_perturbation, check_value, check_rows, check_posterior, check_activity]
)
def test_a_mistake_in_the_closed_form_is_caught(check):
    mistakes = [(wrong, case) for wrong, case, by in CLOSED_FORM if by is check]
    missed = [(w, c) for w, c in mistakes if not caught(check, CASES[c], closed_form(CASES[c], w))]
    assert len(mistakes) >= 2
    assert not missed
    for case in CASES.values():  # without a mistake it passes
        check(case, closed_form(case))


# (5), (6) --------------------------------------------------------------------------------------------------


Z0 = np.array([0.4, -0.3])


@functools.cache
def expansion_in_z():
    """The gradient and Hessian of log p in z at Z0, and the slopes of L-hat in mean and covariance; compiled once."""
    x, model = data_of(CASES["tanh"])
    x, rng = x[:1], np.random.default_rng(0)
    decoder = Affine(rng.normal(size=(4, UNITS)), rng.normal(size=4))

    def f(z):
        return jnp.sum(model.family.log_prob(x[0], decoder(z)))

    def value(mean, covariance):
        q = Posterior(mean[None], covariance[None])
        return elbo_taylor(decoder, x, q, objective_of(CASES["tanh"]), z0=Z0)[0]

    j, h = jax.jit(lambda z: (jax.grad(f)(z), jax.hessian(f)(z)))(Z0)
    return np.asarray(j), np.asarray(h), jax.jit(jax.grad(value, argnums=(0, 1)))


@pytest.mark.parametrize("wrong", ["", "beta for 1/beta", "sign of H", "H z0 dropped", "beta dropped from the mean"])
def test_a_mistake_in_the_posterior_of_5_and_6_is_caught(wrong):
    j, h, slopes = expansion_in_z()
    scaled = {"beta for 1/beta": h * BETA, "sign of H": -h / BETA}.get(wrong, h / BETA)
    covariance = np.linalg.inv(np.eye(UNITS) - scaled)
    ahead = j - (0.0 if wrong == "H z0 dropped" else h @ Z0)
    mean = covariance @ ahead / (1.0 if wrong == "beta dropped from the mean" else BETA)
    stationary = all(np.abs(np.asarray(g)).max() < ATOL for g in slopes(mean, covariance))  # NaN is not
    assert stationary == (wrong == "")


# Moments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["", "N - 1 for N", "not centred", "weights dropped", "diagonal only"])
def test_a_mistake_in_the_moments_is_caught(wrong):
    """Rows said twice, and rows of weight two, change nothing: the covariance is that of the empirical law."""
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(10, 3)) @ rng.normal(size=(3, 3)) + 1, rng.integers(1, 4, size=10)

    def covariance(x, weights):
        w = np.ones(len(x)) if wrong == "weights dropped" else weights
        centre = 0.0 if wrong == "not centred" else w @ x / w.sum()
        s = (x - centre).T @ ((x - centre) * w[:, None]) / (w.sum() - (wrong == "N - 1 for N"))
        return np.diag(np.diag(s)) if wrong == "diagonal only" else s

    repeated = np.repeat(x, weights, axis=0)
    a, b = covariance(x, weights), covariance(np.concatenate([repeated, repeated]), np.ones(2 * len(repeated)))
    along = rng.normal(size=3)
    direct = np.var(repeated @ along)  # of a linear form
    right = np.allclose(a, b, atol=ATOL) and np.isclose(along @ a @ along, direct, atol=ATOL)
    assert right == (wrong == "")
    ours = moments(Rows(x, weight=weights.astype(float))).covariance
    np.testing.assert_allclose(along @ ours @ along, direct, atol=ATOL)
