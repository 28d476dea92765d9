"""Deliberate mistakes: each is put into a small second implementation, and the check named beside it must notice.

The same check passes on the implementation without the mistake, so that it is the mistake that it notices. The checks
judge by other means than the formula at fault: automatic differentiation, cubature over z, a perturbation, the rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import MODELS, draw, expansion_point
from numpy.polynomial.hermite_e import hermegauss

from glmvae import Posterior, affine_posterior, elbo_exact, elbo_profile, elbo_quadratic, elbo_taylor, moments

pytestmark = pytest.mark.float64

# A correct implementation leaves rounding only.
ATOL = 1e-7
BETA, UNITS = 0.7, 2


class Case(NamedTuple):
    name: str
    phi: float
    expand_at: str


CASES = {
    "gaussian": Case("gaussian", 0.5, "zero"),
    "binomial": Case("binomial_columns", 1.0, "zero"),
    "tanh": Case("bernoulli_tanh", 1.0, "null"),
    "poisson": Case("poisson", 0.8, "null"),
}


class Result(NamedTuple):
    loadings: np.ndarray
    intercept: np.ndarray
    elbo: float
    encoder_weight: np.ndarray
    encoder_bias: np.ndarray
    covariance: np.ndarray
    activity: np.ndarray


def data_of(case):
    return draw(case.name, seed=1), MODELS[case.name]


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
        w = w / getattr(model.family, "trials", 1.0)
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


def options_of(case):
    return {"expand_at": case.expand_at, "beta": BETA, "dispersion": case.phi}


def profile_of(case):
    x, model = data_of(case)
    data = moments(x, family=model.family)
    return lambda w, b: elbo_profile(w, b, data, model.family, **options_of(case))


def check_gradient(case, r):
    for gradient in jax.grad(profile_of(case), argnums=(0, 1))(r.loadings, r.intercept):
        np.testing.assert_allclose(gradient, 0.0, atol=ATOL)


def check_perturbation(case, r):
    """A saddle has no gradient either."""
    profile, rng = jax.jit(profile_of(case)), np.random.default_rng(0)
    best = float(profile(r.loadings, r.intercept))
    for step in (0.05, 0.5):
        for _ in range(25):
            assert profile(r.loadings + step * rng.normal(size=r.loadings.shape), r.intercept) < best + ATOL


def check_value(case, r):
    np.testing.assert_allclose(r.elbo, profile_of(case)(r.loadings, r.intercept), atol=ATOL)


def check_rows(case, r):
    x, model = data_of(case)
    q = Posterior(x @ r.encoder_weight.T + r.encoder_bias, r.covariance)
    rows = elbo_quadratic(r.loadings, r.intercept, x, q, model.family, **options_of(case))
    np.testing.assert_allclose(r.elbo, rows.mean(), atol=ATOL)
    if case.name == "gaussian":  # and nothing was expanded
        exact = elbo_exact(r.loadings, r.intercept, x, q, model.family, beta=BETA, dispersion=case.phi)
        np.testing.assert_allclose(r.elbo, exact.mean(), atol=ATOL)


def check_posterior(case, r):
    x, model = data_of(case)
    best = affine_posterior(r.loadings, r.intercept, x, model.family, **options_of(case))
    np.testing.assert_allclose(x @ r.encoder_weight.T + r.encoder_bias, best.mean, atol=ATOL)
    np.testing.assert_allclose(r.covariance, best.covariance, atol=ATOL)


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


def caught(check, *args):
    try:
        check(*args)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize(("wrong", "case", "check"), CLOSED_FORM, ids=lambda v: getattr(v, "__name__", str(v)))
def test_a_mistake_in_the_closed_form_is_caught(wrong, case, check):
    assert caught(check, CASES[case], closed_form(CASES[case], wrong))


@pytest.mark.parametrize("check", [check_gradient, check_perturbation, check_value, check_rows, check_posterior])
@pytest.mark.parametrize("case", CASES)
def test_without_a_mistake_every_check_passes(case, check):
    check(CASES[case], closed_form(CASES[case]))
    check_activity(CASES[case], closed_form(CASES[case]))


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

    def integrand(x, mean, t):
        z = mean + jnp.linalg.cholesky(s.covariance) @ t
        eta = s.loadings @ z + s.intercept
        value = log_p(x, eta)
        if kind == "quadratic":
            step = eta - eta0
            gradient, hessian = jax.grad(log_p, 1)(x, eta0), jax.hessian(log_p, 1)(x, eta0)
            value = log_p(x, eta0) + gradient @ step + 0.5 * step @ hessian @ step
        q = jax.scipy.stats.multivariate_normal.logpdf(z, mean, s.covariance)
        prior = jax.scipy.stats.multivariate_normal.logpdf(z, jnp.zeros(UNITS), jnp.eye(UNITS))
        return value - BETA * (q - prior)

    over_t = jax.vmap(integrand, in_axes=(None, None, 0))
    return np.asarray(jax.jit(jax.vmap(lambda x, m: jnp.asarray(p) @ over_t(x, m, jnp.asarray(t))))(s.x, s.mean))


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


@pytest.fixture(scope="module")
def cubature():
    kinds = [(case, "quadratic") for case in CASES] + [("gaussian", "exact"), ("poisson", "exact")]
    return {(case, kind): by_cubature(CASES[case], kind) for case, kind in kinds}


@pytest.mark.parametrize(("wrong", "case", "kind"), ROW_MISTAKES)
def test_a_mistake_in_a_row_is_caught(wrong, case, kind, cubature):
    assert np.abs(row_values(CASES[case], kind, wrong) - cubature[case, kind]).max() > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_without_a_mistake_rows_are_the_cubature(case, cubature):
    s, model = setting(CASES[case]), MODELS[CASES[case].name]
    q = Posterior(jnp.asarray(s.mean), jnp.asarray(s.covariance))
    args = (s.loadings, s.intercept, s.x, q, model.family)
    options = options_of(CASES[case])
    np.testing.assert_allclose(row_values(CASES[case], "quadratic"), cubature[case, "quadratic"], atol=ATOL)
    np.testing.assert_allclose(elbo_quadratic(*args, **options), cubature[case, "quadratic"], atol=ATOL)
    if (case, "exact") in cubature:
        options.pop("expand_at")
        np.testing.assert_allclose(row_values(CASES[case], "exact"), cubature[case, "exact"], atol=ATOL)
        np.testing.assert_allclose(elbo_exact(*args, **options), cubature[case, "exact"], atol=ATOL)


# (5), (6) --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["", "beta for 1/beta", "sign of H", "H z0 dropped", "beta dropped from the mean"])
def test_a_mistake_in_the_posterior_of_5_and_6_is_caught(wrong):
    x, model = data_of(CASES["tanh"])
    x, z0, rng = x[:1], np.array([0.4, -0.3]), np.random.default_rng(0)
    w, b = rng.normal(size=(4, UNITS)), rng.normal(size=4)

    def f(z):
        return jnp.sum(model.family.log_prob(x[0], w @ z + b))

    j, h = jax.grad(f)(z0), jax.hessian(f)(z0)
    scaled = {"beta for 1/beta": h * BETA, "sign of H": -h / BETA}.get(wrong, h / BETA)
    covariance = jnp.linalg.inv(jnp.eye(UNITS) - scaled)
    ahead = j - (0.0 if wrong == "H z0 dropped" else h @ z0)
    mean = covariance @ ahead / (1.0 if wrong == "beta dropped from the mean" else BETA)

    def value(mean, covariance):
        return elbo_taylor(lambda z: w @ z + b, x, Posterior(mean[None], covariance), model.family, z0=z0, beta=BETA)[0]

    slopes = jax.grad(value, argnums=(0, 1))(mean, covariance)
    stationary = all(np.abs(np.asarray(g)).max() < ATOL for g in slopes)  # NaN is not
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
    ours = moments(x, weights=weights.astype(float)).covariance
    np.testing.assert_allclose(along @ ours @ along, direct, atol=ATOL)
