"""The expansion against autodiff, its remainder against mpmath."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from family_cases import BUILT_IN, CASES, COLUMNS
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import gammaln

from glmvae import expand, expected_remainder_bounds, moments, remainder_bounds
from glmvae.expansion import expansion_point, working_response, working_weight
from glmvae.families import Bernoulli, Binomial, CustomFamily, Gaussian, Poisson

# Two routes through a dozen operations each; log p itself is a sum of terms up to 50.
AGREES = {"float64": 1e-11, "float32": 2e-5}
# The enclosure at |delta| <= 2 is 32 rounding units of a sum of one sign wide on each side.
TIGHT_NEAR = 100
# "At least as tight as the paper's" leaves the rounding of the paper's bound itself.
PAPER_SLACK = 4

# The code is the same for all: in float32 these are enough.
IN_FLOAT32 = ("Bernoulli", "Poisson rho=2", "Custom gamma")
every_family = pytest.mark.parametrize(
    "case", [c if n in IN_FLOAT32 else pytest.param(c, marks=pytest.mark.float64) for n, c in CASES.items()], ids=CASES
)
every_point = pytest.mark.parametrize("expand_at", ["zero", "null", np.array([0.3, -0.7, 1.1])], ids=str)


# The quadratic ------------------------------------------------------------------------------------------------


@every_family
@every_point
def test_response_and_weight_are_gradient_and_hessian(case, expand_at, dtype):
    x, phi = jnp.asarray(case.x, dtype), jnp.asarray(case.dispersion, dtype)
    family = case.family
    quadratic = expand(x, family, expand_at=expand_at, dispersion=phi)
    assert {leaf.dtype for leaf in quadratic} == {jnp.dtype(dtype)}
    eta0 = expansion_point(expand_at, family, jnp.mean(x, axis=0))

    def f(eta):
        return jnp.sum(family.log_prob(x, eta, phi))

    at = jnp.broadcast_to(eta0, x.shape)
    tolerance = AGREES[str(dtype)]
    gradient = quadratic.weight * (quadratic.response - eta0)
    np.testing.assert_allclose(gradient, jax.grad(f)(at), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(quadratic(eta0), family.log_prob(x, eta0, phi), rtol=tolerance, atol=tolerance)
    one_row = jax.hessian(lambda e: jnp.sum(family.log_prob(x[0], e, phi)))(eta0)
    if family.linearly_canonical:
        np.testing.assert_allclose(-jnp.diag(one_row), quadratic.weight, rtol=tolerance)
    else:
        # Fisher scoring: minus the second derivative at x = mu, its mean over x since log p is linear in x
        mu = family.mean(eta0)
        at_mean = jax.hessian(lambda e: jnp.sum(family.log_prob(mu, e, phi)))(eta0)
        np.testing.assert_allclose(-jnp.diag(at_mean), quadratic.weight, rtol=10 * tolerance)
        if eta0.any():  # at 0 the probit bends neither way
            assert float(jnp.max(jnp.abs(-jnp.diag(one_row) - quadratic.weight))) > 1e-3


@pytest.mark.any_precision
def test_points_of_expansion(dtype):
    x = jnp.asarray([[0.0, 1.0], [1.0, 3.0]], dtype)
    mean = jnp.mean(x, axis=0)
    np.testing.assert_array_equal(expansion_point("zero", Poisson(), mean), jnp.zeros(2))
    np.testing.assert_allclose(expansion_point("null", Poisson(), mean), jnp.log(mean), rtol=1e-6)
    np.testing.assert_array_equal(expansion_point(0.5, Poisson(), mean), jnp.full(2, 0.5))
    # at the null model the whitened responses are the Pearson residuals
    quadratic = expand(x, Poisson(), expand_at="null")
    pearson = (x - mean) / jnp.sqrt(mean)
    eta0 = jnp.log(mean)
    np.testing.assert_allclose(
        jnp.sqrt(quadratic.weight) * (quadratic.response - eta0), pearson, rtol=AGREES[str(dtype)], atol=1e-6
    )


def test_the_quadratic_at_other_shapes(dtype):
    x = jnp.asarray(CASES["Poisson"].x, dtype)
    quadratic = expand(x, Poisson())
    eta = jnp.asarray([0.1, -0.2, 0.3], dtype)
    np.testing.assert_array_equal(quadratic(eta), quadratic(jnp.broadcast_to(eta, x.shape)))
    assert working_response(Poisson(), x[0], eta).shape == (COLUMNS,)
    np.testing.assert_allclose(working_weight(Poisson(), eta, 2.0), jnp.exp(eta) / 2, rtol=AGREES[str(dtype)])


@pytest.mark.any_precision
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_table_2(beta, dtype):
    # beta d log(F''(0) / phi) + D(phi), with log prod x_j! where the paper prints log prod x_j
    rng = np.random.default_rng(0)
    tolerance = 10 * AGREES[str(dtype)]
    d, sigma2 = COLUMNS, 0.7
    samples = {
        "Bernoulli": rng.integers(0, 2, (6, d)).astype(float),
        "Gaussian": rng.normal(size=(6, d)),
        "Poisson": rng.poisson(3.0, (6, d)).astype(float),
    }
    for name, x in samples.items():
        family = {"Bernoulli": Bernoulli(), "Gaussian": Gaussian(), "Poisson": Poisson()}[name]
        phi = sigma2 if name == "Gaussian" else 1.0
        quadratic = expand(jnp.asarray(x, dtype), family, dispersion=phi)
        constant = -2 * float(jnp.mean(jnp.sum(quadratic.constant, axis=1)))
        ours = beta * float(jnp.sum(jnp.log(quadratic.weight))) + constant
        table = {
            "Bernoulli": (1 - beta) * d * np.log(4) - 4 * np.mean(np.sum((x - 0.5) ** 2, axis=1)),
            "Gaussian": d * np.log(2 * np.pi * sigma2 ** (1 - beta)),
            "Poisson": 2 * d + np.mean(-np.sum((x - 1) ** 2, axis=1) + 2 * gammaln(x + 1).sum(axis=1)),
        }[name]
        np.testing.assert_allclose(ours, table, rtol=tolerance)
        if name == "Poisson":
            x = np.maximum(x, 1)
            printed = 2 * d + np.mean(-np.sum((x - 1) ** 2, axis=1) + 2 * np.log(x).sum(axis=1))
            assert abs(ours - printed) > 1.0


@every_family
@every_point
def test_the_constant_from_the_moments_is_the_mean_of_the_rows(case, expand_at, dtype):
    x, phi = jnp.asarray(case.x, dtype), jnp.asarray(case.dispersion, dtype)
    family = case.family
    if isinstance(family, CustomFamily):
        phi = jnp.ones((), dtype)  # moments carry a custom family's K at phi = 1
    data = moments(x, family=family)
    eta0 = expansion_point(expand_at, family, data.mean)
    whole = family.expansion_constant(data.mean, jnp.diag(data.covariance), data.base_statistic, eta0, phi)
    rows = expand(x, family, expand_at=eta0, dispersion=phi).constant
    tolerance = AGREES[str(dtype)]
    np.testing.assert_allclose(whole, jnp.mean(rows, axis=0), rtol=tolerance, atol=tolerance)


# Remainder ------------------------------------------------------------------------------------------------------

REMAINDERS = {
    "Bernoulli": (Bernoulli(), 1.0),
    "Bernoulli tanh": (Bernoulli(activation_scale=2.0), 1.0),
    "Binomial(16), phi": (Binomial(16, activation_scale=-0.5), 0.75),
    "Poisson": (Poisson(), 1.0),
    "Poisson rho, phi": (Poisson(activation_scale=-0.5), 2.0),
}
every_remainder = pytest.mark.parametrize(("family", "phi"), REMAINDERS.values(), ids=REMAINDERS)
SIZES = (1e-6, 1e-3, 0.1, 1.0, 1.99, 2.01, 4.5, 12.0, 30.0, 50.0)


def exact_remainder(family, phi, eta, eta0=0.0):
    """R2 by its definition, with digits to spare, at the numbers given."""
    with mp.workdps(80):
        rho = mp.mpf(float(family.activation_scale))
        theta, theta0 = rho * mp.mpf(float(eta)), rho * mp.mpf(float(eta0))
        n = mp.mpf(1) if isinstance(family, Poisson) else mp.mpf(float(family.trials))
        if isinstance(family, Poisson):
            F = F1 = F2 = mp.exp
        else:
            p = lambda t: 1 / (1 + mp.exp(-t))  # noqa: E731
            F = lambda t: n * mp.log1p(mp.exp(t))  # noqa: E731
            F1 = lambda t: n * p(t)  # noqa: E731
            F2 = lambda t: n * p(t) * (1 - p(t))  # noqa: E731
        delta = theta - theta0
        return (F(theta0) + F1(theta0) * delta + F2(theta0) * delta**2 / 2 - F(theta)) / mp.mpf(float(phi))


def inside(lower, upper, value):
    return mp.mpf(float(lower)) <= value <= mp.mpf(float(upper))


@every_remainder
@pytest.mark.parametrize("eta0", [0.0, -1.25, 3.0])
def test_the_remainder_is_inside(family, phi, eta0, dtype):
    eta = jnp.asarray([eta0 + s * size for size in SIZES for s in (-1, 1)] + [eta0], dtype)
    lower, upper = remainder_bounds(family, eta, eta0, dispersion=phi)
    assert lower.dtype == upper.dtype == dtype
    for e, lo, up in zip(eta, lower, upper, strict=True):
        assert inside(lo, up, exact_remainder(family, phi, e, eta0)), float(e)


@every_remainder
def test_the_bounds_are_tight(family, phi, dtype):
    eps = float(jnp.finfo(dtype).eps)
    near = jnp.asarray([s * size for size in (1e-6, 1e-3, 0.1, 0.9) for s in (-1, 1)], dtype)
    # far out it is the difference of terms of the size of F, so absolutely tight in their units
    far = jnp.asarray([-12.0, 12.0], dtype)
    for eta in (near, far):
        lower, upper = remainder_bounds(family, eta, dispersion=phi)
        exact = np.array([float(exact_remainder(family, phi, e)) for e in eta])
        size = np.abs(exact)
        tiny = 200 * float(jnp.finfo(dtype).tiny)  # underflow is allowed for
        width = np.asarray(upper, float) - np.asarray(lower, float)
        terms = np.array([float(abs(exact_remainder(family, phi, e))) + 50 * abs(float(e)) ** 2 for e in eta])
        allowed = TIGHT_NEAR * eps * (size if eta is near else terms) + tiny
        assert np.all(width <= allowed), width / allowed


@every_remainder
def test_at_least_as_tight_as_the_papers(family, phi, dtype):
    eta = jnp.asarray([s * size for size in SIZES for s in (-1, 1)], dtype)
    lower, upper = remainder_bounds(family, eta, dispersion=phi)
    slack = PAPER_SLACK * float(jnp.finfo(dtype).eps)
    for e, lo, up in zip(eta, lower, upper, strict=True):
        theta = mp.mpf(float(family.activation_scale)) * mp.mpf(float(e))
        if isinstance(family, Poisson):
            paper = (-(theta**3) * mp.exp(theta) / 6, -(theta**3) / 6)
        else:
            paper = (mp.mpf(0), int(family.trials) * theta**4 / 192)
        paper = [p / phi for p in paper]
        # two more units: theta itself, cubed, is rounded, and e^theta by |theta| units
        rounding = 2 * slack * (1 + float(abs(theta)))
        assert mp.mpf(float(lo)) >= paper[0] - rounding * abs(paper[0])
        assert mp.mpf(float(up)) <= paper[1] + rounding * abs(paper[1])


def test_a_cancelled_difference_would_leave_the_bounds(dtype):
    for family in (Bernoulli(), Poisson()):
        eta = jnp.asarray(1e-6, dtype)
        lower, upper = remainder_bounds(family, eta)
        zero = jnp.zeros((), dtype)
        quadratic = family.mean(zero) * eta + family.variance_function(zero) * eta**2 / 2
        naive = family.log_normalizer(zero) + quadratic - family.log_normalizer(eta)
        assert not float(lower) <= float(naive) <= float(upper)


def test_the_remainder_of_a_gaussian_is_zero(dtype):
    eta = jnp.asarray([-2.0, 5.0], dtype)
    for lower, upper in (remainder_bounds(Gaussian(), eta), expected_remainder_bounds(Gaussian(), eta, 1.0)):
        assert lower.dtype == upper.dtype == dtype
        assert not lower.any()
        assert not upper.any()


@pytest.mark.parametrize("name", ["Bernoulli", "Binomial(columns)", "Poisson rho=-0.5"])
@given(seed=st.integers(0, 2**31 - 1), log_scale=st.floats(-6, 1.5), shifted=st.booleans())
def test_log_prob_less_the_quadratic_is_inside(name, seed, log_scale, shifted, dtype):
    # the library's own log p and quadratic: inside up to their rounding
    case = CASES[name]
    rng = np.random.default_rng(seed)
    eta0 = jnp.asarray(rng.normal(size=COLUMNS) * shifted, dtype)
    eta = eta0 + jnp.asarray(10.0**log_scale * rng.normal(size=(4, COLUMNS)), dtype)
    x = jnp.asarray(case.x, dtype)
    quadratic = expand(x, case.family, expand_at=eta0)
    log_prob = case.family.log_prob(x, eta)
    lower, upper = remainder_bounds(case.family, eta, eta0)
    size = jnp.abs(log_prob) + jnp.abs(quadratic.constant) + quadratic.weight * (quadratic.response - eta) ** 2 + 1
    allowance = 64 * jnp.finfo(dtype).eps * size
    gap = log_prob - quadratic(eta)
    assert bool(jnp.all(gap >= lower - allowance))
    assert bool(jnp.all(gap <= upper + allowance))


# Expected remainder ---------------------------------------------------------------------------------------------


@every_remainder
@pytest.mark.parametrize("eta0", [0.0, -1.25])
def test_the_expected_remainder_is_inside(family, phi, eta0, dtype):
    means, variances = (-2.0, 1e-3, 1.5), (0.0, 1e-6, 0.5, 4.0)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    with mp.workdps(40):
        nodes, weights = [mp.mpf(t) for t in nodes], [mp.mpf(w) for w in weights]
        total = mp.fsum(weights)
        for m in means:
            for v in variances:
                at, var = jnp.asarray(m, dtype), jnp.asarray(v, dtype)
                lower, upper = expected_remainder_bounds(family, at, var, eta0, dispersion=phi)
                assert lower.dtype == upper.dtype == dtype
                centre, root = mp.mpf(float(at)), mp.sqrt(mp.mpf(float(var)))
                terms = [
                    w * exact_remainder(family, phi, centre + root * t, eta0)
                    for t, w in zip(nodes, weights, strict=True)
                ]
                expected = mp.fsum(terms) / total
                assert inside(lower, upper, expected), (m, v)


def test_expected_bounds_are_the_moments(dtype):
    # n / 192 E eta^4 = n / 192 (m^4 + 6 m^2 v + 3 v^2); with 3 v^2 left out it is no bound
    m, v = 0.5, 2.0
    lower, upper = expected_remainder_bounds(Binomial(16), jnp.asarray(m, dtype), jnp.asarray(v, dtype))
    rtol = 1e3 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(upper, 16 / 192 * (m**4 + 6 * m**2 * v + 3 * v**2), rtol=rtol)
    assert float(lower) == 0.0
    rate = np.exp(m + v / 2)  # E delta^3 e^delta = e^(m + v/2) E_N(m+v, v) delta^3
    lower, upper = expected_remainder_bounds(Poisson(), jnp.asarray(m, dtype), jnp.asarray(v, dtype))
    np.testing.assert_allclose(lower, -rate * ((m + v) ** 3 + 3 * (m + v) * v) / 6, rtol=rtol)
    np.testing.assert_allclose(upper, -(m**3 + 3 * m * v) / 6, rtol=rtol)


@pytest.mark.any_precision
@pytest.mark.parametrize("name", [n for n in BUILT_IN if "Binomial" in n or "Poisson" in n])
def test_bounds_broadcast_and_trace(name, dtype):
    family = CASES[name].family
    eta = jnp.asarray(CASES[name].x[:2] - 1.0, dtype)
    eager = remainder_bounds(family, eta, 0.25)
    compiled = jax.jit(remainder_bounds)(family, eta, 0.25)
    np.testing.assert_allclose(compiled, eager, rtol=AGREES[str(dtype)], atol=AGREES[str(dtype)])
    eager = expected_remainder_bounds(family, eta, 0.5)
    compiled = jax.jit(expected_remainder_bounds)(family, eta, 0.5)
    np.testing.assert_allclose(compiled, eager, rtol=AGREES[str(dtype)], atol=AGREES[str(dtype)])


@pytest.mark.any_precision
def test_a_family_whose_remainder_is_unknown():
    family = CASES["Custom Poisson"].family
    for bounds in (lambda: remainder_bounds(family, 0.5), lambda: expected_remainder_bounds(family, 0.5, 1.0)):
        with pytest.raises(TypeError, match="family: remainder bounds are known for"):
            bounds()
