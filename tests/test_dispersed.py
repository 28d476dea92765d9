"""Gamma, Exponential and negative binomial against SciPy, mpmath and automatic differentiation."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.stats

from glmvae import (
    Affine,
    AffineModel,
    Objective,
    affine_posterior,
    collapse_onset,
    elbo_exact,
    elbo_monte_carlo,
    elbo_profile,
    elbo_quadratic,
    expand,
    fit,
    moments,
    posterior,
    refine,
    remainder_bounds,
)
from glmvae.expansion import working_weight
from glmvae.families import Exponential, Family, Gamma, NegativeBinomial, Poisson
from glmvae.families.special import stirling

# A few dozen rounding units of a value of order one, and of the same after a Gaussian expectation.
RELATIVE = {"float64": 1e-12, "float32": 2e-5}
EXPECTED = {"float64": 1e-9, "float32": 2e-5}

SIZES = (0.7, 3.0, 12.0, 40.0)
FAMILIES = [
    Gamma(),
    Exponential(activation_scale=0.5),
    NegativeBinomial(0.4, activation_scale=-1.5),
    NegativeBinomial(np.array(SIZES)),
]
# In float32 those two whose parameters are the least like another family's.
every_family = pytest.mark.parametrize(
    "family",
    [FAMILIES[0], FAMILIES[2], *(pytest.param(f, marks=pytest.mark.float64) for f in (FAMILIES[1], FAMILIES[3]))],
    ids=repr,
)


def counts_of(family):
    return isinstance(family, NegativeBinomial)


def data_of(family, dtype, rows=40, seed=0):
    rng = np.random.default_rng(seed)
    level = np.exp(rng.normal(size=(rows, 1)) * [0.6, -0.3, 0.4, 0.2])
    x = rng.poisson(3 * level) if counts_of(family) else level * rng.gamma(2.0, 0.5, size=(rows, 4))
    return jnp.asarray(x, dtype)


def points(family, dtype):
    eta, rows = np.linspace(-2.5, 2.0, 4), data_of(family, dtype, rows=6)
    return rows, jnp.asarray(eta, dtype)


# The density ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phi", [0.05, 0.5, 1.0, 3.0])
def test_gamma_is_scipys(phi, dtype):
    x, eta = points(Gamma(), dtype)
    mean = np.exp(np.asarray(eta, float))
    expected = scipy.stats.gamma(1 / phi, scale=mean * phi).logpdf(np.asarray(x, float))
    np.testing.assert_allclose(
        Gamma().log_prob(x, eta, phi), expected, rtol=RELATIVE[dtype.name], atol=5e-5 / phi * (dtype == np.float32)
    )
    if phi != 1.0:
        wrong = scipy.stats.gamma(phi, scale=mean / phi).logpdf(np.asarray(x, float))  # shape phi for 1 / phi
        assert np.max(np.abs(wrong - expected)) > 0.1


def test_exponential_is_scipys_and_gamma_at_one(dtype):
    x, eta = points(Exponential(), dtype)
    expected = scipy.stats.expon(scale=np.exp(np.asarray(eta, float))).logpdf(np.asarray(x, float))
    np.testing.assert_allclose(Exponential().log_prob(x, eta), expected, rtol=RELATIVE[dtype.name])
    np.testing.assert_array_equal(Exponential().log_prob(x, eta), Gamma().log_prob(x, eta, 1.0))
    assert not np.allclose(Exponential().log_prob(x, eta), Gamma().log_prob(x, eta, 0.9))


@pytest.mark.parametrize("size", [0.3, 3.0, np.array(SIZES)], ids=["0.3", "3", "a column each"])
def test_negative_binomial_is_scipys(size, dtype):
    x, eta = points(NegativeBinomial(size), dtype)
    p = 1 / (1 + np.exp(np.asarray(eta, float)))
    expected = scipy.stats.nbinom(size, p).logpmf(np.asarray(x, float))
    np.testing.assert_allclose(NegativeBinomial(size).log_prob(x, eta), expected, rtol=RELATIVE[dtype.name])
    assert np.max(np.abs(scipy.stats.nbinom(size, 1 - p).logpmf(np.asarray(x, float)) - expected)) > 0.1


@pytest.mark.parametrize("k", [1e-3, 0.5, 1.0, 29.9, 30.1, 1e4, 1e9])
def test_stirlings_remainder(k, dtype):
    k = float(jnp.asarray(k, dtype))
    with mpmath.workdps(50):
        expected = float(k * mpmath.log(k) - k - mpmath.loggamma(k))
    # below 30 the difference of terms up to 100 is taken
    allowed = 4 * jnp.finfo(dtype).eps * (100 if k < 30 else abs(expected))
    assert abs(float(stirling(jnp.asarray(k, dtype))) - expected) <= allowed


@pytest.mark.parametrize("phi", [1e-6, 1e-3, 1e3])
def test_gamma_keeps_its_digits_at_small_and_large_dispersion(phi, dtype):
    x, eta = 1.25, 0.22
    x, eta, phi = (float(jnp.asarray(v, dtype)) for v in (x, eta, phi))
    with mpmath.workdps(60):
        k = 1 / mpmath.mpf(phi)
        expected = float(k * (mpmath.log(k * x) - eta - x * mpmath.exp(-eta)) - mpmath.log(x) - mpmath.loggamma(k))
        naive = float(jnp.asarray(k * mpmath.log(k), dtype)) * float(jnp.finfo(dtype).eps)
    got = float(Gamma().log_prob(jnp.asarray(x, dtype), jnp.asarray(eta, dtype), phi))
    # log(x / mu) - x / mu + 1 is a difference of numbers of order 1, multiplied by 1 / phi
    assert abs(got - expected) <= 8 * jnp.finfo(dtype).eps * (1 / phi + abs(expected))
    if phi == 1e-6:
        assert naive > 5 * jnp.finfo(dtype).eps / phi  # log(phi) / phi and log Gamma(1 / phi) would cost more


@pytest.mark.parametrize("size", [1e6, 1e9])
def test_a_large_size_keeps_its_digits_and_is_nearly_poisson(size, dtype):
    x = jnp.asarray([0.0, 1.0, 7.0, 30.0], dtype)
    eta = jnp.asarray(jnp.log(5.0) - jnp.log(size), dtype)
    with mpmath.workdps(60):
        e = mpmath.mpf(float(eta))
        r, p = mpmath.mpf(size), 1 / (1 + mpmath.exp(-e))
        expected = [
            float(mpmath.log(mpmath.binomial(v + r - 1, v)) + v * mpmath.log(p) + r * mpmath.log(1 - p))
            for v in x.tolist()
        ]
    got = NegativeBinomial(size).log_prob(x, eta)
    # x eta and log C(x + r - 1, x) are of size x log r and cancel
    allowed = 8 * jnp.finfo(dtype).eps * (1 + np.asarray(x) * np.log(size) + 5)
    assert np.all(np.abs(np.asarray(got, float) - expected) <= allowed)
    poisson = scipy.stats.poisson(size * np.exp(float(eta))).logpmf(np.asarray(x))
    assert np.max(np.abs(poisson - expected)) < 1e3 / size + 1e-9
    assert np.max(np.abs(np.asarray(NegativeBinomial(5.0).log_prob(x, 0.0)) - poisson)) > 0.1


# The exponential dispersion form --------------------------------------------------------------------------


@every_family
def test_closed_forms_are_the_derivatives_of_the_log_normalizer(family, dtype):
    if np.ndim(getattr(family, "size", 0.0)):
        family = NegativeBinomial(3.0)  # the defaults differentiate entry by entry
    _, eta = points(family, dtype)
    for name in ("mean", "variance_function", "mean_derivative", "link"):
        argument = family.mean(eta) if name == "link" else eta
        closed, generic = getattr(family, name)(argument), getattr(Family, name)(family, argument)
        tolerance = 1e-9 if dtype == np.float64 else 1e-4  # autodiff of log(1 - e^theta), bisection
        np.testing.assert_allclose(closed, generic, rtol=tolerance, atol=tolerance, err_msg=name)
    slope = jax.vmap(jax.grad(lambda e: jnp.sum(family.natural_parameter(e))))(eta[:, None])[:, 0]
    np.testing.assert_allclose(family.natural_parameter_derivative(eta), slope, rtol=RELATIVE[dtype.name])


@every_family
def test_log_prob_is_the_exponential_dispersion_form(family, dtype):
    x, eta = points(family, dtype)
    phi = jnp.asarray(0.7, dtype)
    theta = family.natural_parameter(eta)
    assembled = (x * theta - family.log_normalizer(theta)) / phi + family.log_base_measure(x, phi)
    tolerance = 10 * RELATIVE[dtype.name]  # large parts cancel in this form
    np.testing.assert_allclose(family.log_prob(x, eta, phi), assembled, rtol=tolerance, atol=tolerance)


@every_family
def test_the_linear_predictor_of_a_mean(family, dtype):
    mean = jnp.asarray([0.01, 0.5, 4.0, 60.0], dtype)
    np.testing.assert_allclose(family.mean(family.link(mean)), mean, rtol=RELATIVE[dtype.name])


@every_family
def test_the_null_predictor_is_finite_and_has_the_mean(family, dtype):
    mean = jnp.asarray([0.0, 0.5, 4.0, 60.0], dtype)
    eta = family.null_predictor(mean)
    assert np.all(np.isfinite(eta))
    np.testing.assert_allclose(family.mean(eta)[1:], mean[1:], rtol=RELATIVE[dtype.name])


def test_gamma_data_of_any_scale_have_a_null_predictor(dtype):
    mean = jnp.asarray([1e-20, 1e-9, 1e20], dtype)
    eta = Gamma().null_predictor(mean)
    np.testing.assert_allclose(eta, np.log(np.asarray(mean, float)), rtol=RELATIVE[dtype.name])
    assert np.all(np.abs(working_weight(Gamma(), eta) - 1) < RELATIVE[dtype.name])
    # a mean of 0 has underflowed; the rule for counts would hold it at a rounding unit
    none = jnp.zeros(1, dtype)
    assert float(Gamma().null_predictor(none)[0]) < -80
    assert float(Family.null_predictor(Gamma(), none)[0]) > -40


# Expectations ---------------------------------------------------------------------------------------------


def scipys_log_prob(family, x, eta, phi):
    eta = np.asarray(family.activation_scale, float) * eta
    if counts_of(family):
        return scipy.stats.nbinom(np.asarray(family.size, float), 1 / (1 + np.exp(eta))).logpmf(x)
    return scipy.stats.gamma(1 / phi, scale=np.exp(eta) * phi).logpdf(x)


@every_family
@pytest.mark.parametrize("variance", [1e-4, 0.3, 2.0])
def test_the_expected_log_prob_is_the_integral(family, variance, dtype):
    x, eta = points(family, dtype)
    phi = 1.0 if counts_of(family) else 0.7
    got = family.expected_log_prob(x, eta, variance, phi)
    # the trapezoid rule in so many nodes leaves nothing of an integrand that is analytic near the real line
    z = np.linspace(-9, 9, 901)[:, None, None]
    sd = np.sqrt(float(jnp.asarray(variance, dtype)))
    values = scipys_log_prob(family, np.asarray(x, float), np.asarray(eta, float) + sd * z, phi)
    expected = np.trapezoid(values * scipy.stats.norm.pdf(z), z[:, 0, 0], axis=0)
    np.testing.assert_allclose(got, expected, rtol=EXPECTED[dtype.name], atol=EXPECTED[dtype.name])
    if variance > 1e-3:
        assert np.max(np.abs(family.log_prob(x, eta, phi) - got)) > 1e-2


@every_family
def test_without_variance_the_expectation_is_the_log_prob(family, dtype):
    x, eta = points(family, dtype)
    got = family.expected_log_prob(x, eta, 0.0, 0.7)
    np.testing.assert_allclose(got, family.log_prob(x, eta, 0.7), rtol=EXPECTED[dtype.name], atol=1e-5)


@every_family
def test_expected_gradient_and_weight_are_derivatives(family, dtype):
    x, eta = points(family, dtype)
    variance, phi = jnp.asarray([0.01, 0.3, 1.0, 2.0], dtype), jnp.asarray(0.7, dtype)

    @jax.jit
    def derivatives(mean):
        """The gradient, and the Hessian, which is diagonal."""
        slope = jax.grad(lambda m: jnp.sum(family.expected_log_prob(x, m, variance, phi)))
        return jax.jvp(slope, (mean,), (jnp.ones_like(mean),))

    mean = jnp.broadcast_to(eta, x.shape)
    gradient, curvature = derivatives(mean)
    _, got, weight = family.expected_terms(x, mean, variance, phi)
    np.testing.assert_allclose(got, gradient, rtol=1e-7 if dtype == np.float64 else 1e-3, atol=1e-4)
    np.testing.assert_allclose(weight, -curvature, rtol=1e-7 if dtype == np.float64 else 2e-3, atol=1e-4)
    if not counts_of(family):
        doubled = weight * phi  # a dropped dispersion
        assert np.max(np.abs(doubled + curvature)) > 0.01


@every_family
def test_the_value_is_the_expectation_less_what_depends_on_x_alone(family, dtype):
    x, eta = points(family, dtype)
    mean, variance = jnp.broadcast_to(eta, x.shape), jnp.asarray([0.0, 0.3, 1.0, 9.0], dtype)
    value, _, _ = family.expected_terms(x, mean, variance, 0.7)
    whole = family.expected_log_prob(x, mean, variance, 0.7)
    np.testing.assert_array_equal(value + family.saturated_log_prob(x, jnp.asarray(0.7, dtype)), whole)


@pytest.mark.float64
def test_the_exact_elbo_can_be_climbed(dtype):
    """With a size a column; tests/test_ascent.py has one size, and Gamma."""
    family = NegativeBinomial(np.array(SIZES))
    x = data_of(family, dtype)
    start = fit(x, family, 2, beta=0.3, dispersion=0.7, expand_at="null")
    best = refine(start, x, tolerance=1e-4)
    assert np.all(np.diff(best.history) >= 0)
    before = jnp.mean(elbo_exact(start, x, posterior(start, x)))
    assert float(best.elbo) > float(before) + 1e-3
    again = elbo_exact(best, x, best.posterior)
    np.testing.assert_allclose(best.elbo, jnp.mean(again), rtol=1e-4)


# The expansion is Fisher scoring --------------------------------------------------------------------------


@every_family
def test_the_expansion_has_the_gradient_and_the_expected_curvature(family, dtype):
    x, eta = points(family, dtype)
    phi = 0.7
    quadratic = expand(x, family, expand_at=eta, dispersion=phi)

    @jax.jit
    def derivatives(rows):
        slope = jax.grad(lambda e: jnp.sum(family.log_prob(rows, e, phi)))
        return jax.jvp(slope, (jnp.broadcast_to(eta, rows.shape),), (jnp.ones_like(rows),))

    gradient, at_data = derivatives(x)
    np.testing.assert_allclose(
        quadratic.weight * (quadratic.response - eta), gradient, rtol=20 * RELATIVE[dtype.name], atol=1e-5
    )
    rounding = 4 * float(jnp.finfo(dtype).eps)  # of parts of size 1 whose sum, log p, may be near 0
    np.testing.assert_allclose(
        quadratic(eta),
        family.log_prob(x, eta, phi),
        rtol=1e-6 if dtype == np.float64 else 1e-4,
        atol=rounding,
    )

    # the curvature is affine in x, so at x = mu it is its own expectation
    at_mean = derivatives(jnp.broadcast_to(family.mean(eta), x.shape))[1]
    np.testing.assert_allclose(-at_mean[:1], quadratic.weight, rtol=20 * RELATIVE[dtype.name])
    assert np.max(np.abs(at_data - at_mean)) > 0.01  # at the data it is not: no Newton step
    assert not family.curvature_is_constant


@every_family
@pytest.mark.parametrize("expand_at", ["zero", "null"])
def test_the_closed_form_agrees_with_the_rows(family, expand_at, dtype):
    x = data_of(family, dtype)
    options = {"beta": 1.3, "dispersion": 0.7, "expand_at": expand_at}
    optimum = fit(x, family, 2, **options)
    q = posterior(optimum, x)
    rows = elbo_quadratic(optimum, x, q, expand_at=expand_at)
    tolerance = 1e-10 if dtype == np.float64 else 2e-4
    np.testing.assert_allclose(optimum.elbo_taylor, jnp.mean(rows), rtol=tolerance, atol=tolerance)
    profile = elbo_profile(optimum, moments(x, family=family), expand_at=expand_at)
    np.testing.assert_allclose(optimum.elbo_taylor, profile, rtol=tolerance, atol=tolerance)
    without = fit(moments(x), family, 2, **options)  # the base statistic is known only where the family was given
    assert abs(float(without.elbo_taylor - optimum.elbo_taylor)) > 0.1 or isinstance(family, Exponential)


@every_family
def test_the_exact_elbo_agrees_with_monte_carlo(family, dtype):
    x = data_of(family, dtype)
    optimum = fit(x, family, 2, beta=0.2, dispersion=0.7, expand_at="null")
    q = posterior(optimum, x)
    model = optimum.model.with_beta(1.0)
    exact = elbo_exact(model, x, q)
    value, error = elbo_monte_carlo(jax.random.key(0), model.decoder, x, q, model.objective, num_samples=2000)
    standard_error = float(jnp.sqrt(jnp.sum(error**2)) / x.shape[0])
    assert abs(float(jnp.mean(value) - jnp.mean(exact))) < 5 * standard_error
    assert abs(float(jnp.mean(value) - jnp.mean(exact)) + 0.5) > 5 * standard_error


@pytest.mark.float64
@pytest.mark.parametrize("family", [Gamma(), NegativeBinomial(2.0)], ids=repr)
def test_the_onset_of_collapse(family, dtype):
    """Just below it some small W beats W = 0 in the exact ELBO, just above it none does."""
    x, phi = data_of(family, dtype, rows=60), 0.4
    data = moments(x, family=family)
    onset = float(collapse_onset(data, family, dispersion=phi))
    null = family.null_predictor(data.mean)
    top = fit(data, family, 1, beta=onset / 2, dispersion=phi, expand_at="null").loadings
    rng = np.random.default_rng(1)
    directions = [top] + [jnp.asarray(rng.normal(size=(4, 1))) for _ in range(5)]

    def gain(direction, beta):
        values = []
        for step in (0.02, 0.0):
            loadings = step * direction / jnp.linalg.norm(direction)
            model = AffineModel(Affine(loadings, null), Objective(family, beta, phi))
            q = affine_posterior(model, x, expand_at="null")
            values.append(jnp.mean(elbo_exact(model, x, q)))
        return float(values[0] - values[1])

    assert gain(top, 0.98 * onset) > 0
    assert all(gain(direction, 1.02 * onset) < 0 for direction in directions)
    assert all(gain(direction, 0.98 * onset) < gain(top, 0.98 * onset) for direction in directions[1:])
    at_zero = float(fit(data, family, 1, dispersion=phi).eigenvalues[0])
    assert abs(at_zero / onset - 1) > 0.05  # the paper's expansion point does not know it


# Sampling, pytrees, errors --------------------------------------------------------------------------------


@every_family
def test_samples_have_the_mean_and_the_variance(family, dtype):
    eta = jnp.asarray([-1.0, 0.0, 0.5, 1.0], dtype)
    phi = 1.0 if counts_of(family) else jnp.asarray([0.3, 0.5, 1.0, 2.0], dtype)
    draws = 20000
    x = np.asarray(family.sample(jax.random.key(3), jnp.broadcast_to(eta, (draws, 4)), phi), float)
    assert x.dtype == float
    family.validate(x)
    mean, variance = family.mean(eta), phi * family.variance_function(eta)
    assert np.all(np.abs(x.mean(0) - mean) < 5 * np.sqrt(variance / draws))
    fourth = np.mean((x - x.mean(0)) ** 4, axis=0)
    assert np.all(np.abs(x.var(0) - variance) < 6 * np.sqrt(fourth / draws))
    wrong = variance / phi if not counts_of(family) else mean  # F'' without phi; Poisson's variance
    assert np.any(np.abs(x.var(0) - wrong) > 6 * np.sqrt(fourth / draws))
    if counts_of(family):
        assert np.all(x == np.round(x))


@every_family
def test_it_passes_through_transformations_in_its_precision(family, dtype):
    x, eta = points(family, dtype)
    phi = jnp.asarray(0.7, dtype)
    plain = family.log_prob(x, eta, phi)
    jitted = jax.jit(lambda f, *a: f.log_prob(*a))(family, x, eta, phi)
    np.testing.assert_allclose(jitted, plain, rtol=100 * jnp.finfo(dtype).eps, atol=100 * float(jnp.finfo(dtype).eps))
    results = [
        plain,
        family.mean(eta),
        family.expected_log_prob(x, eta, 0.5, phi),
        family.expected_terms(x, eta, jnp.asarray(0.5, dtype), phi)[2],
        family.sample(jax.random.key(0), eta, phi),
        family.null_predictor(jnp.mean(x, axis=0)),
        fit(x, family, 1, dispersion=0.7).loadings,
    ]
    assert all(result.dtype == dtype for result in results)


@pytest.mark.any_precision
def test_a_size_can_be_differentiated():
    def value(size):
        family = jax.tree.unflatten(jax.tree.structure(NegativeBinomial(1.0)), [1.0, size])
        return family.log_prob(3.0, 0.2)

    step = 1e-2
    numeric = (scipy.stats.nbinom([2 + step, 2 - step], 1 / (1 + np.exp(0.2))).logpmf(3) @ [1, -1]) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.grad(value))(2.0), numeric, rtol=1e-3)


@pytest.mark.any_precision
def test_the_names():
    assert repr(Gamma()) == "Gamma()"
    assert repr(Gamma(activation_scale=2.0)) == "Gamma(activation_scale=2.0)"
    assert repr(Exponential()) == "Exponential()"
    assert repr(NegativeBinomial(3.0)) == "NegativeBinomial(size=3.0)"


@pytest.mark.any_precision
def test_the_canonical_gamma_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"activation.*eta < 0.*-inf"):
        Gamma(activation="canonical")
    with pytest.raises(ValueError, match=r'activation: expected "log", got "canonical"'):
        Exponential(activation="canonical")
    with pytest.raises(ValueError, match=r"activation: expected \"log\", got 'identity'"):
        Gamma(activation="identity")


@pytest.mark.any_precision
@pytest.mark.parametrize("size", [0.0, -1.0, np.nan, np.inf])
def test_a_size_that_is_not_positive(size):
    with pytest.raises(ValueError, match="size: expected a positive finite number"):
        NegativeBinomial(size)
    with pytest.raises(ValueError, match=r"size: .* at \[1\]"):
        NegativeBinomial([1.0, size])


@pytest.mark.any_precision
def test_a_size_of_another_kind():
    with pytest.raises(ValueError, match=r"size: expected a scalar or a vector, one a column, got shape \(1, 2\)"):
        NegativeBinomial([[1.0, 2.0]])
    with pytest.raises(TypeError, match="size: expected a number"):
        NegativeBinomial("many")
    with pytest.raises(ValueError, match=r"x: expected 2 columns"):
        fit([[1.0, 2.0, 3.0]], NegativeBinomial([1.0, 2.0]), 1)


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("family", "value"),
    [(Gamma(), 0.0), (Gamma(), -1.0), (Exponential(), 0.0), (NegativeBinomial(2.0), -1.0), (Gamma(), np.nan)],
    ids=str,
)
def test_data_out_of_the_support(family, value):
    x = np.array([[1.0, 2.0], [1.0, value]])
    for call in (lambda: family.validate(x), lambda: moments(x, family=family), lambda: expand(x, family)):
        with pytest.raises(ValueError, match=r"x: .* at \[1, 1\]"):
            call()
    family.validate(np.abs(x[:1]))


@pytest.mark.any_precision
def test_gamma_needs_a_dispersion():
    x = np.array([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ValueError, match=r"dispersion: Gamma\(\) needs one, got None"):
        fit(x, Gamma(), 1)
    assert fit(x, Exponential(), 1).dispersion == 1.0
    assert fit(x, NegativeBinomial(2.0), 1).dispersion == 1.0


@pytest.mark.any_precision
def test_the_remainder_depends_on_x_so_x_is_needed():
    with pytest.raises(ValueError, match=r"^x: "):
        remainder_bounds(NegativeBinomial(2.0), 0.5)
    assert remainder_bounds(NegativeBinomial(2.0), 0.5, x=3.0)[0] < 0
    assert remainder_bounds(Poisson(), 0.5)[0] < 0
