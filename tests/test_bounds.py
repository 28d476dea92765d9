"""What the quadratic leaves out, and its expectation, against mpmath."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from exact_remainders import count_bounds, exact_remainder, expected_count_bounds, expected_remainder
from family_cases import CASES, COLUMNS, run
from hypothesis import given
from hypothesis import strategies as st
from tables import all_refused

from glmvae import expand, expected_remainder_bounds, remainder_bounds
from glmvae.families import (
    Bernoulli,
    Binomial,
    CustomFamily,
    Exponential,
    Gamma,
    Gaussian,
    Mixed,
    NegativeBinomial,
    Poisson,
    Support,
)

# The enclosure at |delta| <= 2 is 32 rounding units of a sum of one sign wide on each side.
TIGHT_NEAR = 100
# "At least as tight as the paper's" leaves the rounding of the paper's bound itself.
PAPER_SLACK = 4
AGREES = {"float64": 1e-11, "float32": 2e-5}

REMAINDERS = {
    "Bernoulli": (Bernoulli(), 1.0),
    "Bernoulli tanh": (Bernoulli(activation_scale=2.0), 1.0),
    "Binomial(16), phi": (Binomial(16, activation_scale=-0.5), 0.75),
    "Poisson": (Poisson(), 1.0),
    "Poisson rho, phi": (Poisson(activation_scale=-0.5), 2.0),
}
# Here the curvature depends on x, and the weight is Fisher's.
OF_X = {
    "Gamma": (Gamma(), 0.5),
    "Exponential rho": (Exponential(activation_scale=2.0), 1.0),
    "negative binomial": (NegativeBinomial(2.5), 1.0),
    "negative binomial rho": (NegativeBinomial(7.0, activation_scale=-0.5), 1.0),
}
every_remainder = pytest.mark.parametrize(("family", "phi"), REMAINDERS.values(), ids=REMAINDERS)
every_family = pytest.mark.parametrize(("family", "phi"), (REMAINDERS | OF_X).values(), ids=REMAINDERS | OF_X)
SIZES = (1e-6, 1e-3, 0.1, 1.0, 1.99, 2.01, 4.5, 12.0, 30.0, 50.0)
ETA0 = (0.0, -1.25, 3.0)


def inside(lower, upper, value):
    return mp.mpf(float(lower)) <= value <= mp.mpf(float(upper))


# Data of a negative binomial or Gamma column; of no matter to the others.
DATA = 0.75


@every_family
def test_the_remainder_is_inside(family, phi, dtype):
    away = np.asarray([s * size for size in SIZES for s in (-1, 1)] + [0.0])
    eta0 = np.asarray(ETA0, dtype)[:, None]
    eta = (eta0 + away).astype(dtype)
    x = np.asarray(DATA, dtype) if family.remainder_depends_on_x else None
    lower, upper = remainder_bounds(family, eta, eta0, x=x, dispersion=phi)
    assert lower.dtype == upper.dtype == dtype
    for i, j in np.ndindex(eta.shape):
        exact = exact_remainder(family, phi, float(eta[i, j]), float(eta0[i, 0]), DATA)
        assert inside(lower[i, j], upper[i, j], exact), (eta[i, j], eta0[i, 0])


@every_family
def test_the_bounds_are_tight(family, phi, dtype):
    eps = float(jnp.finfo(dtype).eps)
    near = np.asarray([s * size for size in (1e-6, 1e-3, 0.1, 0.9) for s in (-1, 1)], dtype)
    # far out it is the difference of terms of the size of F, so absolutely tight in their units
    far = np.asarray([-12.0, 12.0], dtype)
    x = np.asarray(DATA, dtype) if family.remainder_depends_on_x else None
    lower, upper = remainder_bounds(family, np.concatenate([near, far]), x=x, dispersion=phi)
    exact = np.array([float(exact_remainder(family, phi, float(e), 0.0, DATA)) for e in [*near, *far]])
    width = np.asarray(upper, float) - np.asarray(lower, float)
    tiny = 200 * float(jnp.finfo(dtype).tiny)  # underflow is allowed for
    allowed = np.abs(exact) + 50 * np.concatenate([near, far]).astype(float) ** 2
    if family.remainder_depends_on_x:  # two orders, each with its own rounding
        allowed *= 2
    else:
        allowed[: len(near)] = np.abs(exact[: len(near)])
    assert np.all(width <= TIGHT_NEAR * eps * allowed + tiny), width / allowed / eps


@every_remainder
def test_at_least_as_tight_as_the_papers(family, phi, dtype):
    eta = np.asarray([s * size for size in SIZES for s in (-1, 1)], dtype)
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
        eta, zero = dtype.type(1e-6), dtype.type(0)
        lower, upper = remainder_bounds(family, eta)
        mean, variance = (np.asarray(run(method, family, zero)) for method in ("mean", "variance_function"))
        ends = [np.asarray(run("log_normalizer", family, t)) for t in (zero, eta)]
        naive = ends[0] + (mean * eta + variance * eta**2 / 2) - ends[1]
        assert naive.dtype == dtype
        assert not float(lower) <= float(naive) <= float(upper)


@pytest.mark.any_precision
@pytest.mark.parametrize(("family", "phi"), OF_X.values(), ids=OF_X)
def test_it_begins_at_second_order_where_the_curvature_depends_on_x(family, phi, dtype):
    """(1 - observed / Fisher) w delta^2 / 2: nothing at x = mu, of either sign around."""
    step, rho = 1e-5, float(family.activation_scale)
    mean = float(run("mean", family, dtype.type(0)))
    middle = [np.mean(remainder_bounds(family, step, x=x, dispersion=phi)) for x in (0.5 * mean, mean, 2 * mean)]
    fisher = rho**2 * {True: 1.0, False: 0.5 * float(getattr(family, "size", 0.0))}[isinstance(family, Gamma)]
    # observed / Fisher - 1 is x / mu - 1 for Gamma, (x - mu) / (2 mu) for a negative binomial at p = 1/2
    excess = np.array([-0.5, 0.0, 1.0]) * (1.0 if isinstance(family, Gamma) else 0.5)
    np.testing.assert_allclose(middle, -excess * 0.5 * fisher * step**2 / phi, rtol=1e-3, atol=1e-14)


def test_the_remainder_of_a_gaussian_is_zero(dtype):
    eta = np.asarray([-2.0, 5.0], dtype)
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
    eta0 = (rng.normal(size=COLUMNS) * shifted).astype(dtype)
    eta = eta0 + (10.0**log_scale * rng.normal(size=(4, COLUMNS))).astype(dtype)
    x = case.x.astype(dtype)
    quadratic = expand(x, case.family, expand_at=eta0)
    response, weight, constant = (np.asarray(part) for part in quadratic)
    log_prob = np.asarray(log_prob_of(case.family, x, eta))
    lower, upper = remainder_bounds(case.family, eta, eta0)
    size = np.abs(log_prob) + np.abs(constant) + weight * (response - eta) ** 2 + 1
    allowance = 64 * np.finfo(dtype).eps * size
    gap = log_prob - (constant - 0.5 * weight * (response - eta) ** 2)
    assert np.all(gap >= lower - allowance)
    assert np.all(gap <= upper + allowance)


@jax.jit
def log_prob_of(family, x, eta):
    return family.log_prob(x, eta)


# Its expectation ------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("eta0", [0.0, -1.25])
def test_the_expected_remainder_is_inside(family, phi, eta0, dtype):
    means, variances = np.meshgrid(np.asarray([-2.0, 1e-3, 1.5], dtype), np.asarray([0.0, 1e-6, 0.5, 4.0], dtype))
    x = np.asarray(DATA, dtype) if family.remainder_depends_on_x else None
    lower, upper = expected_remainder_bounds(family, means, variances, eta0, x=x, dispersion=phi)
    assert lower.dtype == upper.dtype == dtype
    with mp.workdps(40):
        for i in np.ndindex(means.shape):
            exact = expected_remainder(family, phi, means[i], variances[i], eta0, DATA)
            assert inside(lower[i], upper[i], exact), (means[i], variances[i])


def test_expected_bounds_are_the_moments(dtype):
    # no more than n / 192 E eta^4 = n / 192 (m^4 + 6 m^2 v + 3 v^2); with 3 v^2 left out that is no bound
    m, v = np.asarray(0.5, dtype), np.asarray(2.0, dtype)
    lower, upper = expected_remainder_bounds(Binomial(16), m, v)
    rtol = 1e3 * float(jnp.finfo(dtype).eps)
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    eta = 0.5 + np.sqrt(2.0) * nodes
    remainder = np.log(2) + eta / 2 + eta**2 / 8 - np.logaddexp(eta, 0)
    exact = 16 * weights @ remainder / np.sqrt(2 * np.pi)
    assert 0 <= lower <= exact <= upper <= 16 / 192 * (m**4 + 6 * m**2 * v + 3 * v**2) * (1 + rtol)
    assert 16 / 192 * (m**4 + 6 * m**2 * v) < exact
    # Poisson: -(E e^eta - 1 - m - (m^2 + v) / 2), inside the moments of Corollary 1's bounds
    lower, upper = expected_remainder_bounds(Poisson(), m, v)
    exact = -(np.exp(1.5) - 1 - 0.5 - 0.5 * (0.25 + 2.0))
    np.testing.assert_allclose([lower, upper], exact, rtol=rtol)
    assert -np.exp(1.5) * (2.5**3 + 3 * 2.5 * 2) / 6 < lower <= upper < -(0.5**3 + 3 * 0.5 * 2) / 6


# Families of several kinds, and of one's own ----------------------------------------------------------------------


@pytest.mark.any_precision
def test_mixed_columns_are_those_of_their_members(dtype):
    members = [(Bernoulli(), [0, 3]), (NegativeBinomial(2.0), [1]), (Gaussian(), [2])]
    family, rng = Mixed(members), np.random.default_rng(0)
    eta, x, phi = rng.normal(size=(5, 4)), rng.integers(0, 2, size=(5, 4)).astype(float), np.array([1.0, 1.0, 0.5, 2.0])
    together = remainder_bounds(family, eta, 0.25, x=x, dispersion=phi)
    expected = expected_remainder_bounds(family, eta, eta**2, 0.25, x=x, dispersion=phi)
    for member, columns in members:
        alone = remainder_bounds(member, eta[:, columns], 0.25, x=x[:, columns], dispersion=phi[columns])
        np.testing.assert_array_equal([b[:, columns] for b in together], alone)
        square = eta[:, columns] ** 2
        alone = expected_remainder_bounds(
            member, eta[:, columns], square, 0.25, x=x[:, columns], dispersion=phi[columns]
        )
        np.testing.assert_array_equal([b[:, columns] for b in expected], alone)


@pytest.mark.any_precision
def test_a_family_gives_its_own(dtype):
    own = CustomFamily(
        jnp.exp,
        limits=Support(0.0),
        remainder=count_bounds,
        expected_remainder=expected_count_bounds,
        activation_scale=0.5,
    )
    like = Poisson(activation_scale=0.5)
    eta = np.asarray([-1.0, 0.0, 2.5], dtype)
    np.testing.assert_allclose(remainder_bounds(own, eta, 0.5), remainder_bounds(like, eta, 0.5), atol=2e-6)
    mine, theirs = (expected_remainder_bounds(f, eta, 1.5, 0.5) for f in (own, like))
    np.testing.assert_allclose(mine, theirs, atol=2e-6)


# Overflow, shapes, errors -----------------------------------------------------------------------------------------


def test_ends_that_overflow_are_infinite(dtype):
    largest = float(jnp.finfo(dtype).max)
    eta = np.asarray([-largest, -1e30, -800.0, 800.0, 1e30, largest], dtype)
    zero = np.zeros_like(eta)
    # the predictor far out, then the point; the mean, then the variance
    ends, points = np.stack([eta, zero]), np.stack([zero, eta])
    means, variances = np.stack([eta, zero + 0.5]), np.stack([zero + 1, np.abs(eta)])
    for family, phi in (REMAINDERS | OF_X).values():
        x = np.asarray(DATA, dtype) if family.remainder_depends_on_x else None
        bounds = [
            remainder_bounds(family, ends, points, x=x, dispersion=phi),
            expected_remainder_bounds(family, means, variances, x=x, dispersion=phi),
        ]
        for lower, upper in bounds:
            assert np.all(np.asarray(lower) <= np.asarray(upper)), family  # and none is NaN
    lower, upper = remainder_bounds(Poisson(), np.asarray(largest, dtype))
    assert lower == -np.inf
    # still a bound: softplus grows linearly, so R2 is near eta^2 / 8
    lower, upper = remainder_bounds(Bernoulli(), np.asarray(1e15, dtype))
    assert lower <= 1e30 / 8 <= upper < 2e30 / 8


@pytest.mark.any_precision
def test_bounds_have_the_shape_of_all_arguments():
    phi, x = [1.0, 2.0], [[1.0], [2.0], [3.0]]
    for family in (Gaussian(), Poisson()):
        for found in (remainder_bounds, lambda *a, **o: expected_remainder_bounds(*a, 0.5, **o)):
            for end in found(family, 1.0, dispersion=phi, x=x):
                assert end.shape == (3, 2)
            assert found(family, 1.0, dispersion=phi)[0].shape == (2,)


@pytest.mark.any_precision
@pytest.mark.parametrize("name", ["Binomial(columns)", "Poisson rho=2"])
def test_bounds_broadcast_and_trace(name, dtype):
    family = CASES[name].family
    eta, at = CASES[name].x[:2] - 1.0, np.asarray([0.25, 0.5, -1.0])
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        eager = remainder_bounds(family, eta, at)
        compiled = jax.jit(remainder_bounds)(family, eta, at)
        np.testing.assert_allclose(compiled, eager, rtol=1e-11, atol=1e-11)
        eager = expected_remainder_bounds(family, eta, at**2, at[None])
        compiled = jax.jit(expected_remainder_bounds)(family, eta, at**2, at[None])
        np.testing.assert_allclose(compiled, eager, rtol=1e-11, atol=1e-11)
    alone = [remainder_bounds(family.of_column(j), eta[:, j], at[j]) for j in range(COLUMNS)]
    np.testing.assert_allclose(np.stack(alone, axis=-1), remainder_bounds(family, eta, at), rtol=1e-11, atol=1e-15)


@pytest.mark.any_precision
def test_bad_arguments_are_named():
    custom, both = (
        CASES["Custom Poisson"].family,
        (remainder_bounds, lambda f, eta, **o: expected_remainder_bounds(f, eta, 1.0, **o)),
    )
    cases = []
    for bounds in both:
        cases += [
            (lambda f=bounds: f(custom, 0.5), TypeError, "family: .*knows no .*remainder"),
            (lambda f=bounds: f(Mixed([(custom, [0])]), [0.5]), TypeError, "family: .*knows no .*remainder"),
            (lambda f=bounds: f(Gamma(), 0.5), ValueError, r"x: .*Gamma\(\) depends on it"),
            (lambda f=bounds: f(NegativeBinomial(2.0), 0.5, x=-1.0), ValueError, "x: .*-1"),
            (lambda f=bounds: f(Bernoulli, 0.5), TypeError, "family: .*class Bernoulli"),
            (lambda f=bounds: f(Bernoulli(), np.nan), ValueError, "nan"),
            (lambda f=bounds: f(Bernoulli(), 0.5, expand_at="zero"), TypeError, "expand_at: "),
            (lambda f=bounds: f(Bernoulli(), 0.5, dispersion=0.0), ValueError, "dispersion: "),
            (lambda f=bounds: f(Binomial([1, 2]), np.zeros(3)), ValueError, "expected 2 columns"),
            (lambda f=bounds: f(Bernoulli(), np.zeros(3), expand_at=np.zeros(2)), ValueError, r"\(3,\).*\(2,\)"),
        ]
    cases.append((lambda: expected_remainder_bounds(Bernoulli(), 0.0, -1.0), ValueError, "variance: "))
    all_refused(cases)
