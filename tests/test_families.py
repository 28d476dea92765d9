"""One matrix of claims over every family; SciPy, autodiff, mpmath and samples are the references."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.integrate
from family_cases import BINARY, BUILT_IN, CASES, COLUMNS, TRIALS, run

from glmvae.families import Bernoulli, Binomial, CustomFamily, Gamma, Gaussian, Poisson, Support

# log p adds a handful of terms of size up to 50 that partly cancel; gammaln is good to 100 rounding units or so.
LOG_PROB = {"float64": 1e-12, "float32": 2e-5}
# Derivatives by autodiff, a few operations each; the probit goes through logcdf, 1e-6 in float32.
DERIVATIVE = {"float64": 1e-12, "float32": 1e-5}
# Bisection to the last digit of mean(eta), whose slope is above 0.1 where it is tried.
INVERSE = {"float64": 1e-13, "float32": 5e-6}
# SciPy's adaptive quadrature, asked for 1e-12.
QUADRATURE = 1e-10
# log k! at single precision: gammaln(2) is 5e-7 and not 0; three of them in a binomial coefficient.
FLOAT32_GAMMALN = {Gaussian: 0.0, Bernoulli: 0.0, Binomial: 1.5e-6, Poisson: 5e-7}
# 5 standard errors at a fixed seed.
SIGMAS = 5.0
SAMPLES = 20_000

# Where the code is the same for all, these are enough in float32.
IN_FLOAT32 = ("Gaussian", "Bernoulli", "Binomial(columns) rho=2", "Poisson", "Custom probit")
every_family = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
some_families = pytest.mark.parametrize(
    "case", [c if n in IN_FLOAT32 else pytest.param(c, marks=pytest.mark.float64) for n, c in CASES.items()], ids=CASES
)
sampled = {n: c for n, c in CASES.items() if not isinstance(c.family, CustomFamily) or c.family.sampler}
every_sampler = pytest.mark.parametrize(
    "case",
    [c if n in IN_FLOAT32 else pytest.param(c, marks=pytest.mark.float64) for n, c in sampled.items()],
    ids=sampled,
)


def arrays(case, dtype):
    return np.asarray(case.x, dtype), np.asarray(case.eta, dtype), np.asarray(case.dispersion, dtype)


# Density ------------------------------------------------------------------------------------------------------


@every_family
def test_log_prob_is_scipys(case, dtype):
    x, eta, phi = arrays(case, dtype)
    value = run("log_prob", case.family, x, eta, phi)
    assert value.dtype == dtype
    frozen = case.scipy(case.eta, case.dispersion)
    expected = frozen.logpmf(case.x) if case.discrete else frozen.logpdf(case.x)
    np.testing.assert_allclose(value, expected, rtol=LOG_PROB[str(dtype)], atol=LOG_PROB[str(dtype)])


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.dispersion != 1], ids=lambda c: repr(c.family)[:20])
def test_a_dispersion_inverted_would_be_seen(case, dtype):
    x, eta, phi = arrays(case, dtype)
    frozen = case.scipy(case.eta, case.dispersion)
    assert np.max(np.abs(run("log_prob", case.family, x, eta, 1 / phi) - frozen.logpdf(case.x))) > 0.1


@every_family
@pytest.mark.float64
def test_the_density_has_mass_one(case):
    eta, phi = case.eta, case.dispersion
    if case.discrete:
        grid = np.broadcast_to(np.arange(0.0, 200.0)[:, None], (200, COLUMNS))
        inside = np.asarray(case.family.support.contains(grid))
        x = np.where(inside, grid, 0.0)
        mass = np.sum(np.where(inside, np.exp(run("log_prob", case.family, x, eta, phi)), 0.0), axis=0)
        np.testing.assert_allclose(mass, 1.0, rtol=1e-12)
    else:
        for e in eta:
            density = lambda x, e=e: float(np.exp(run("log_prob", case.family, x, e, phi)))  # noqa: E731
            limits = (max(case.family.support.lower, -20.0), 20.0 + 60 * (case.family.support.lower == 0))
            mass, _ = scipy.integrate.quad(density, *limits, points=[0.5, 2.0], epsabs=1e-11, limit=200)
            np.testing.assert_allclose(mass, 1.0, rtol=1e-9)


@some_families
def test_log_prob_broadcasts(case, dtype):
    _, eta, phi = arrays(case, dtype)
    x = np.asarray(case.x, dtype)
    rows = run("log_prob", case.family, x, np.broadcast_to(eta, x.shape), phi)
    np.testing.assert_array_equal(run("log_prob", case.family, x, eta, phi), rows)
    each = run("log_prob", case.family, x, eta, np.full(COLUMNS, phi))
    np.testing.assert_allclose(each, rows, rtol=LOG_PROB[str(dtype)])


# Mean, variance, link -------------------------------------------------------------------------------------------


@jax.jit
def derivatives_of(family, eta):
    """What the methods of these names should give."""
    theta, F = family.natural_parameter, family.log_normalizer
    return {
        "mean": jax.grad(F)(theta(eta)),
        "variance_function": jax.grad(jax.grad(F))(theta(eta)),
        "mean_derivative": jax.grad(family.mean)(eta),
        "natural_parameter_derivative": jax.grad(theta)(eta),
    }


@some_families
def test_mean_and_variance_are_derivatives_of_the_normalizer(case, dtype):
    family = case.family
    rtol = DERIVATIVE[str(dtype)]
    for j in range(COLUMNS):
        # one column at a time, since autodiff wants a scalar
        column = family.of_column(j)
        eta = dtype.type(case.eta[j])
        point = np.full(COLUMNS, eta)
        for method, expected in derivatives_of(column, eta).items():
            np.testing.assert_allclose(np.asarray(run(method, family, point))[j], expected, rtol=rtol, err_msg=method)


@every_family
def test_mean_and_variance_are_scipys(case, dtype):
    # Lemma 1 prints Var = F'' / phi; it is phi F''.
    _, eta, phi = arrays(case, dtype)
    frozen = case.scipy(case.eta, case.dispersion)
    rtol = DERIVATIVE[str(dtype)]
    np.testing.assert_allclose(run("mean", case.family, eta), frozen.mean(), rtol=rtol)
    np.testing.assert_allclose(phi * np.asarray(run("variance_function", case.family, eta)), frozen.var(), rtol=rtol)
    if case.dispersion != 1:
        printed = np.asarray(run("variance_function", case.family, eta)) / phi
        assert np.all(np.abs(printed / frozen.var() - 1) > 0.5)


@every_sampler
def test_samples_have_that_mean_and_variance(case, dtype):
    _, eta, phi = arrays(case, dtype)
    draws = run("sample", case.family, jax.random.key(0), np.broadcast_to(eta, (SAMPLES, COLUMNS)), phi)
    assert draws.shape == (SAMPLES, COLUMNS)
    assert draws.dtype == dtype
    case.family.validate(draws)
    draws = np.asarray(draws, np.float64)
    mean, f2 = (np.asarray(run(method, case.family, eta)) for method in ("mean", "variance_function"))
    variance = phi * f2
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean), SIGMAS * np.sqrt(variance / SAMPLES))
    squares = (draws - mean) ** 2
    bound = SIGMAS * squares.std(0) / np.sqrt(SAMPLES)
    np.testing.assert_array_less(np.abs(squares.mean(0) - variance), bound)
    if case.dispersion != 1:  # the printed Lemma 1 is refuted by the same samples
        assert np.all(np.abs(squares.mean(0) - f2 / phi) > bound)


@every_family
def test_the_link_inverts_the_mean(case, dtype):
    _, eta, _ = arrays(case, dtype)
    back = run("link", case.family, run("mean", case.family, eta))
    assert back.dtype == dtype
    np.testing.assert_allclose(back, eta, rtol=INVERSE[str(dtype)], atol=INVERSE[str(dtype)])


def test_the_papers_tanh_example(dtype):
    # (10): theta = 2 eta makes the sigmoid a tanh
    eta = jnp.linspace(-5.0, 5.0, 21, dtype=dtype)
    mean = Bernoulli(activation_scale=2.0).mean(eta)
    np.testing.assert_allclose(mean, (np.tanh(np.asarray(eta, np.float64)) + 1) / 2, rtol=DERIVATIVE[str(dtype)])
    assert float(jnp.max(jnp.abs(Bernoulli().mean(eta) - mean))) > 0.1


@some_families
def test_the_null_predictor_of_columns_that_never_vary(case, dtype):
    support = case.family.support
    upper = np.broadcast_to(np.asarray(support.upper, dtype), (COLUMNS,))
    lower = np.full(COLUMNS, support.lower, dtype)
    for end in (lower, upper):
        if not np.all(np.isfinite(end)):
            continue
        eta0 = run("null_predictor", case.family, end)
        assert np.all(np.isfinite(eta0))
        assert np.all(np.asarray(run("variance_function", case.family, eta0)) > 0)
    inside = run("mean", case.family, np.asarray(case.eta, dtype))
    tolerance = INVERSE[str(dtype)]
    np.testing.assert_allclose(run("null_predictor", case.family, inside), case.eta, rtol=tolerance, atol=tolerance)


# Expectations ---------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.float64
@pytest.mark.parametrize("variance", [0.0, 0.3, 1.5])
def test_expected_log_prob_is_the_integral(case, variance):
    x, eta = case.x[0], case.eta
    value = run("expected_log_prob", case.family, x, eta, variance, case.dispersion)
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    points = eta + np.sqrt(variance) * nodes[:, None]
    exact = weights @ np.asarray(run("log_prob", case.family, x, points, case.dispersion)) / np.sqrt(2 * np.pi)
    # Gauss-Hermite with 120 nodes is itself good to 1e-12 at these spreads; the probit's tails are not entire
    np.testing.assert_allclose(value, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", BUILT_IN)
def test_expected_log_prob_far_out(name, dtype):
    # mpmath, at a mean and a spread where 64 Gauss-Hermite nodes would have lost six digits
    case = CASES[name]
    rho = case.family.activation_scale
    m, v, x = 2.5, 9.0 if "Poisson" not in name else 1.0, case.x[1, 0]
    if isinstance(case.family, Poisson):
        F = lambda t: mp.exp(t)  # noqa: E731
        K = -mp.loggamma(x + 1)
    elif isinstance(case.family, Gaussian):
        F = lambda t: t**2 / 2  # noqa: E731
        K = -(mp.mpf(x) ** 2 / case.dispersion + mp.log(2 * mp.pi * case.dispersion)) / 2
    else:
        n = float(np.ravel(case.family.trials)[0])
        F = lambda t: n * mp.log1p(mp.exp(t))  # noqa: E731
        K = mp.log(mp.binomial(n, x))
    with mp.workdps(20):
        f = lambda z: ((rho * (m + mp.sqrt(v) * z)) * x - F(rho * (m + mp.sqrt(v) * z))) * mp.npdf(z)  # noqa: E731
        exact = float(mp.quad(f, [-12, -4, -1, 0, 1, 4, 12]) / case.dispersion + K)
    family = Binomial(1, activation_scale=rho) if np.ndim(getattr(case.family, "trials", 0.0)) else case.family
    value = run("expected_log_prob", family, *(jnp.asarray(a, dtype) for a in (x, m, v, case.dispersion)))
    assert value.dtype == dtype
    np.testing.assert_allclose(value, exact, rtol=LOG_PROB[str(dtype)] * 10)


@pytest.mark.any_precision
def test_jensen_is_not_the_expectation():
    # were E log p the log p of the mean, the two tests above would show nothing
    assert float(Bernoulli().log_prob(1.0, 0.25) - Bernoulli().expected_log_prob(1.0, 0.25, 0.3)) > 0.01


def log_link_value(family, x, m, v):
    """60 digits: what expected_terms gives, E log p less the saturated log p."""
    with mp.workdps(60):
        x, m, v = (mp.mpf(float(a)) for a in (x, m, v))
        if isinstance(family, Poisson):
            return float(x * m - mp.exp(m + v / 2) - (x * mp.log(x) - x if x else 0))
        return float(-m - x * mp.exp(v / 2 - m) + mp.log(x) + 1)


def log_link_cases(family, dtype):
    """(x, m, v), the value, and a rounding unit of it: of itself, and of log E e^eta, to second order."""
    eps = float(jnp.finfo(dtype).eps)
    for x in (0.0, 1.0, 37.0, 1e6) if isinstance(family, Poisson) else (1e-3, 1.0, 1e6):
        level = np.log(max(x, 0.1))
        for m in (level, level + 0.01, -3.0, 5.0):
            for v in (0.0, 1e-8, 0.3, 9.0, 60.0):
                at = [jnp.asarray(a, dtype) for a in (x, m, v)]
                exact, (_, gradient, weight) = log_link_value(family, *at), family.expected_terms(*at)
                off = eps * (1 + abs(m) + abs(level) + v)
                yield at, exact, eps * abs(exact) + abs(float(gradient)) * off + float(weight) * off**2


@pytest.mark.parametrize("family", [Poisson(), Gamma()], ids=repr)
def test_expected_terms_of_a_log_link_keep_their_digits(family, dtype):
    eps = float(jnp.finfo(dtype).eps)
    for at, exact, unit in log_link_cases(family, dtype):
        off = abs(float(family.expected_terms(*at)[0]) - exact)
        assert off <= 4 * unit
        assert off <= 16 * eps * float(family.rounding_size(*at))  # what bounds allow for


def test_the_textbook_form_of_expected_counts_loses_digits(dtype):
    worst = 0.0
    for (x, m, v), exact, unit in log_link_cases(Poisson(), dtype):
        textbook = x * m - jnp.exp(m + v / 2) - (x * jnp.log(jnp.maximum(x, 1.0)) - x)
        worst = max(worst, abs(float(textbook) - exact) / unit)
    assert worst > 1000


@pytest.mark.parametrize("family", [Poisson(), Gamma()], ids=repr)
def test_expected_terms_without_bounds_are_minus_infinity(family, dtype):
    zero, one, infinite = (jnp.asarray(a, dtype) for a in (0.0, 1.0, np.inf))
    counts = (zero, one, jnp.asarray(3.0, dtype)) if isinstance(family, Poisson) else (one, jnp.asarray(3.0, dtype))
    for x in counts:
        for m, v in ((zero, infinite), (zero, jnp.asarray(1e30, dtype)), (jnp.asarray(-5.0, dtype), infinite)):
            assert float(family.expected_terms(x, m, v)[0]) == -np.inf
        assert np.isfinite(float(family.expected_terms(x, zero, one)[0]))


# Support ----------------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
@every_family
def test_the_support(case, dtype):
    x = np.asarray(case.x, dtype)
    assert np.all(case.family.support.contains(x))
    case.family.validate(case.x)
    for value in case.outside:
        bad = x.copy()
        bad[2, 0] = value
        inside = np.asarray(case.family.support.contains(bad))
        assert not inside[2, 0]
        assert np.sum(~inside) == 1
        with pytest.raises(ValueError, match=r"^x: .*\[2, 0\]$"):
            case.family.validate(bad)


@pytest.mark.any_precision
def test_one_number_for_every_column():
    family = Binomial([3, 5])
    family.validate(3.0)
    with pytest.raises(ValueError, match=r"^x: expected values in the support \[0, 3\] of Binomial.*got 4 at \[0\]$"):
        family.validate(4.0)


@pytest.mark.any_precision
def test_the_ends_of_the_supports():
    assert str(Poisson().support) == "[0, inf)"
    assert str(Bernoulli().support) == "[0, 1]"
    assert str(Gaussian().support) == "(-inf, inf)"
    assert str(Binomial(TRIALS).support) == "[0, trials]"
    assert str(Support(0.0, open_lower=True)) == "(0, inf)"


def test_grey_values_are_proportions(dtype):
    # E over x ~ Bernoulli(g) of log p(x) is log p(g): linear in x
    grey = jnp.asarray([0.0, 0.25, 1.0], dtype)
    Bernoulli().validate(grey)
    ends = [Bernoulli().log_prob(jnp.full(3, e, dtype), 0.75) for e in (0.0, 1.0)]
    mixed = (1 - grey) * ends[0] + grey * ends[1]
    np.testing.assert_allclose(Bernoulli().log_prob(grey, 0.75), mixed, rtol=DERIVATIVE[str(dtype)])


# Precision --------------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
@pytest.mark.parametrize("name", [n for n in BUILT_IN if "rho" not in n])
def test_float32_far_out(name):
    family = CASES[name].family
    x = BINARY.astype(np.float32)
    eta = np.array([-30.0, 30.0, 15.5], np.float32)
    with jax.enable_x64(True):
        exact = [
            np.asarray(v)
            for v in (
                run("log_prob", family, x.astype(np.float64), eta.astype(np.float64)),
                run("mean", family, jnp.asarray(eta, jnp.float64)),
                run("variance_function", family, jnp.asarray(eta, jnp.float64)),
            )
        ]
    eta32 = jnp.asarray(eta)
    values = (
        run("log_prob", family, jnp.asarray(x), eta32),
        run("mean", family, eta32),
        run("variance_function", family, eta32),
    )
    for value, reference in zip(values, exact, strict=True):
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, reference, rtol=2e-6, atol=FLOAT32_GAMMALN[type(family)])


def test_the_textbook_form_fails_far_out():
    x, eta = jnp.float32(1.0), jnp.float32(30.0)
    assert float(x * eta - jnp.logaddexp(eta, 0.0)) == 0.0
    np.testing.assert_allclose(Bernoulli().log_prob(x, eta), -np.exp(-30.0), rtol=2e-6)


# Pytrees and transformations ----------------------------------------------------------------------------------------


@pytest.mark.any_precision
@every_family
def test_a_family_is_a_pytree(case, dtype):
    leaves, structure = jax.tree.flatten(case.family)
    back = jax.tree.unflatten(structure, leaves)
    assert type(back) is type(case.family)
    assert repr(back) == repr(case.family)
    mapped = jax.tree.map(jnp.asarray, case.family)
    x, eta, phi = arrays(case, dtype)
    np.testing.assert_array_equal(mapped.log_prob(x, eta, phi), case.family.log_prob(x, eta, phi))


def everything(family, x, eta, phi):
    return (
        family.log_prob(x, eta, phi),
        family.expected_log_prob(x, eta, 0.5 * eta**2, phi),
        family.mean(eta),
        family.variance_function(eta),
        family.mean_derivative(eta),
        family.link(family.mean(eta)),
    )


compiled_everything = jax.jit(everything)


@some_families
def test_jit_and_vmap_agree_with_eager(case, dtype):
    x, eta, phi = arrays(case, dtype)
    rtol = LOG_PROB[str(dtype)]

    eager = everything(case.family, x, eta, phi)
    compiled = compiled_everything(case.family, x, eta, phi)
    rows = jax.vmap(everything, in_axes=(None, 0, None, None))(case.family, x, eta, phi)
    for i, (a, b, c) in enumerate(zip(eager, compiled, rows, strict=True)):
        assert a.dtype == b.dtype == c.dtype == dtype
        np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol, err_msg=str(i))
        np.testing.assert_allclose(c if i < 2 else c[0], a, rtol=rtol, atol=rtol, err_msg=str(i))


@jax.jit
def score_of(family, x, eta, phi):
    return jax.grad(lambda e: jnp.sum(family.log_prob(x, e, phi)))(eta)


@some_families
def test_gradients_are_the_score(case, dtype):
    # d log p / d eta = theta' (x - mu) / phi
    x, eta, phi = arrays(case, dtype)
    score = score_of(case.family, x[0], eta, phi)
    slope, mean = (np.asarray(run(method, case.family, eta)) for method in ("natural_parameter_derivative", "mean"))
    expected = slope * (x[0] - mean) / phi
    rtol = DERIVATIVE[str(dtype)]
    np.testing.assert_allclose(score, expected, rtol=rtol, atol=rtol)


def test_a_family_can_be_differentiated_in_its_parameters(dtype):
    def value(scale):
        return Bernoulli(activation_scale=scale).log_prob(1.0, jnp.asarray(0.5, dtype))

    # d/d rho log sigmoid(rho eta) = eta (1 - sigmoid(rho eta))
    expected = 0.5 * (1 - 1 / (1 + np.exp(-1.0)))
    np.testing.assert_allclose(jax.grad(value)(jnp.asarray(2.0, dtype)), expected, rtol=DERIVATIVE[str(dtype)])


def test_a_decreasing_mean_and_a_steep_one_are_inverted(dtype):
    target = jnp.asarray([0.01, 0.5, 0.9], dtype)
    for rho in (-3.0, 0.01, 40.0):
        family = CustomFamily(lambda t: jnp.logaddexp(t, 0.0), activation_scale=rho)
        # the mean is resolved to a rounding unit, which is 1 / (rho mean') of eta
        np.testing.assert_allclose(family.mean(family.link(target)), target, rtol=8 * float(jnp.finfo(dtype).eps) * 10)


@pytest.mark.any_precision
def test_names():
    assert repr(Bernoulli()) == "Bernoulli()"
    assert repr(Bernoulli(activation_scale=2.0)) == "Bernoulli(activation_scale=2.0)"
    assert repr(Binomial(16)) == "Binomial(trials=16)"
    assert repr(Gaussian()) == "Gaussian()"
    assert repr(Poisson(activation_scale=-1.0)) == "Poisson(activation_scale=-1.0)"
    assert "CustomFamily" in repr(CASES["Custom probit"].family)


@pytest.mark.any_precision
def test_a_family_without_a_sampler_says_so():
    with pytest.raises(NotImplementedError, match="no sampler"):
        CASES["Custom probit"].family.sample(jax.random.key(0), jnp.zeros(2))


def test_a_support_can_be_asked_under_vmap():
    x = np.asarray([-1.0, 0.0, 0.5, 2.0, np.nan])
    for family in (Bernoulli(), Poisson(), Gaussian()):
        np.testing.assert_array_equal(jax.vmap(family.support.contains)(x), family.support.contains(x))
