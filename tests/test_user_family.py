"""A family of a user's own, in one file: the continuous Bernoulli of Loaiza-Ganem and Cunningham (2019).

    x in [0, 1],    log p = x theta - F(theta),    F = log((e^theta - 1) / theta)

with a removable singularity at 0. As a ``CustomFamily`` of functions, and as a class that brings a sampler too. The
first half asks the family alone, the second all that the library does with one.
"""

from functools import partial

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.stats
from family_cases import CASES, run

from glmvae import (
    Affine,
    AffineModel,
    Objective,
    Posterior,
    bracket,
    diagnose,
    elbo_exact,
    elbo_monte_carlo,
    elbo_profile,
    elbo_quadratic,
    expected_remainder_bounds,
    fit,
    kl_divergence,
    moments,
    monitor,
    nets,
    posterior,
    refine,
    remainder_bounds,
    training,
)
from glmvae.families import CustomFamily, Family, Gamma, Mixed, Poisson, Support

# log(sinh(h) / h) in powers of h^2, and where it takes over: |h| <= 1/2, where its terms fall by 0.025.
SERIES = (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250, 2 / 127702575, -3617 / 2605132530000)
RELATIVE = {"float64": 1e-12, "float32": 2e-6}
# Of derivatives: the last term left out, and single precision's cancellation beyond 1/2.
DERIVATIVE = {"float64": 1e-9, "float32": 2e-4}


def normalizer(theta):
    """theta / 2 + log(sinh(h) / h), h = theta / 2: even, so nothing is lost on either side."""
    h = 0.5 * jnp.abs(theta)
    near = h < 0.5
    square = jnp.where(near, h, 0.0) ** 2
    series = square * jnp.polyval(jnp.asarray(SERIES[::-1], theta.dtype), square)
    far = jnp.where(near, 1.0, h)
    return 0.5 * theta + jnp.where(near, series, far + jnp.log1p(-jnp.exp(-2 * far)) - jnp.log(2 * far))


def draw(key, theta):
    """The inverse distribution function of a uniform number, log(1 + u (e^theta - 1)) / theta, from the nearer end."""
    u = jax.random.uniform(key, theta.shape, theta.dtype)
    size = jnp.maximum(jnp.abs(theta), 1e-3)
    from_top = -jnp.log1p(u * jnp.expm1(-size)) / size
    return jnp.clip(jnp.where(jnp.abs(theta) < 1e-3, u, jnp.where(theta > 0, 1 - from_top, from_top)), 0.0, 1.0)


def bounds(step, start, x, dispersion):
    """Of the remainder: at 0 the curvature is largest and -1/120 <= F'''' <= 0 in the mean; |F'''| <= 1/12 anywhere."""
    rounding = 64 * jnp.finfo(step.dtype).eps * step**2
    centred, anywhere = step**4 / 2880, jnp.abs(step) ** 3 / 72
    lower, upper = jnp.where(start == 0, 0.0, -anywhere), jnp.where(start == 0, centred, anywhere)
    return (lower - rounding) / dispersion, (upper + rounding) / dispersion


def expected_bounds(mean, variance, start, x, dispersion):
    """Their expectations, E |step|^3 <= (E step^4)^(3/4)."""
    fourth = mean**4 + 6 * mean**2 * variance + 3 * variance**2
    rounding = 64 * jnp.finfo(mean.dtype).eps * (mean**2 + variance)
    centred, anywhere = fourth / 2880, fourth**0.75 / 72
    lower, upper = jnp.where(start == 0, 0.0, -anywhere), jnp.where(start == 0, centred, anywhere)
    return (lower - rounding) / dispersion, (upper + rounding) / dispersion


class ContinuousBernoulli(Family):
    has_remainder = True

    @property
    def support(self):
        return Support(0.0, 1.0)

    def log_normalizer(self, theta):
        return normalizer(theta)

    def remainder_of_step(self, step, start, x, dispersion):
        return bounds(step, start, x, dispersion)

    def expected_remainder_of_step(self, mean, variance, start, x, dispersion):
        return expected_bounds(mean, variance, start, x, dispersion)

    def sample(self, key, eta, dispersion=1.0):
        return draw(key, eta)


CUSTOM = CustomFamily(normalizer, limits=Support(0.0, 1.0), remainder=bounds, expected_remainder=expected_bounds)
FAMILIES = {"class": ContinuousBernoulli(), "functions": CUSTOM}
every_way = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
ETA = (-30.0, -3.0, -0.9, -1e-3, 0.0, 1e-6, 0.4, 1.1, 6.0, 25.0)


# The family -----------------------------------------------------------------------------------------------------


def exact(theta):
    """F and its first three derivatives."""
    with mp.workdps(60):
        t = mp.mpf(float(theta))
        if t == 0:
            return [mp.mpf(0), mp.mpf(1) / 2, mp.mpf(1) / 12, mp.mpf(0)]
        grown = mp.expm1(t)
        mean = (1 + grown) / grown - 1 / t
        bend = 1 / t**2 - (1 + grown) / grown**2
        third = -2 / t**3 + (1 + grown) * (2 + grown) / grown**3
        return [mp.log(grown / t), mean, bend, third]


@every_way
def test_the_density_and_the_mean_through_the_singularity(family, dtype):
    eta = np.asarray(ETA, dtype)
    reference = np.array([[float(v) for v in exact(e)] for e in eta]).T
    x = dtype.type(0.75)
    log_prob = run("log_prob", family, x, eta)
    expected = 0.75 * np.asarray(eta, float) - reference[0]
    np.testing.assert_allclose(log_prob, expected, rtol=RELATIVE[dtype.name], atol=RELATIVE[dtype.name])
    np.testing.assert_allclose(run("mean", family, eta), reference[1], rtol=DERIVATIVE[dtype.name])
    np.testing.assert_allclose(run("variance_function", family, eta), reference[2], rtol=DERIVATIVE[dtype.name])
    np.testing.assert_allclose(run("mean_derivative", family, eta), reference[2], rtol=DERIVATIVE[dtype.name])
    assert np.all(np.asarray(run("natural_parameter_derivative", family, eta)) == 1.0)


def test_the_textbook_form_has_nothing_at_the_singularity(dtype):
    naive = CustomFamily(lambda theta: jnp.log(jnp.expm1(theta) / theta))
    assert np.isnan(run("log_prob", naive, dtype.type(0.75), dtype.type(0)))


@every_way
def test_the_density_has_mass_one(family, dtype):
    grid, weights = np.polynomial.legendre.leggauss(60)
    x = np.asarray((grid + 1) / 2, dtype)
    for eta in (-8.0, 0.0, 0.3, 5.0):
        mass = np.exp(np.asarray(run("log_prob", family, x, dtype.type(eta)), float)) @ weights / 2
        np.testing.assert_allclose(mass, 1.0, rtol=10 * RELATIVE[dtype.name])


@every_way
def test_the_link_inverts_the_mean(family, dtype):
    eta = np.asarray(ETA, dtype)[1:-2]
    back = run("link", family, run("mean", family, eta))
    tolerance = 100 * DERIVATIVE[dtype.name] if dtype == np.float32 else DERIVATIVE[dtype.name]
    np.testing.assert_allclose(back, eta, rtol=tolerance, atol=tolerance)
    ends = np.asarray(run("null_predictor", family, np.asarray([0.0, 0.5, 1.0], dtype)))
    assert np.all(np.isfinite(ends))
    assert ends[0] < -100 < 100 < ends[2]


@pytest.mark.any_precision
def test_samples_are_of_that_distribution():
    family = ContinuousBernoulli(activation_scale=-2.0)
    eta = np.float32([2.0, 0.0, 1e-5, -0.4, -4.0])
    draws = np.asarray(run("sample", family, jax.random.key(0), np.broadcast_to(eta, (20_000, 5))), float)
    family.validate(draws)
    for column, theta in zip(draws.T, -2.0 * eta.astype(float), strict=True):
        # a truncated exponential, from the end where it is largest
        distribution = scipy.stats.truncexpon(max(abs(theta), 1e-9), scale=1 / max(abs(theta), 1e-9))
        assert scipy.stats.kstest(column if theta < 0 else 1 - column, distribution.cdf).pvalue > 1e-4
    assert scipy.stats.kstest(draws[:, 0], "uniform").pvalue < 1e-9
    with pytest.raises(NotImplementedError, match="no sampler"):
        CUSTOM.sample(jax.random.key(0), jnp.zeros(2))


@every_way
@pytest.mark.parametrize("start", [0.0, 0.7, -3.0])
def test_its_remainder_is_inside_its_bounds(family, start, dtype):
    eta = np.asarray([start + by for by in (-12.0, -1.0, -1e-2, 0.0, 1e-3, 0.5, 4.0)], dtype)
    eta0 = dtype.type(start)
    lower, upper = map(np.asarray, remainder_bounds(family, eta, eta0))
    f0, f1, f2, _ = exact(eta0)
    with mp.workdps(60):
        for e, low, high in zip(eta, lower, upper, strict=True):
            step = mp.mpf(float(e)) - mp.mpf(float(eta0))
            value = f0 + f1 * step + f2 * step**2 / 2 - exact(e)[0]
            assert mp.mpf(float(low)) <= value <= mp.mpf(float(high))
    variance = dtype.type(0.5)
    low, high = map(np.asarray, expected_remainder_bounds(family, eta, variance, eta0))
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    for i, e in enumerate(eta):
        points = float(e) + np.sqrt(0.5) * nodes
        values = [float(f0 + f1 * (p - start) + f2 * (p - start) ** 2 / 2 - exact(p)[0]) for p in points]
        expected = weights @ values / np.sqrt(2 * np.pi)
        assert float(low[i]) <= expected <= float(high[i])


@every_way
def test_expected_terms_are_the_integrals(family, dtype):
    x = np.asarray([0.0, 0.25, 0.9, 1.0], dtype)
    mean, variance = np.asarray([-2.0, 0.0, 0.8, 5.0], dtype), np.asarray([1.0, 0.5, 0.01, 2.0], dtype)
    value, gradient, weight = map(np.asarray, run("expected_terms", family, x, mean, variance, dtype.type(0.5)))
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / np.sqrt(2 * np.pi)
    for i in range(4):
        points = float(mean[i]) + np.sqrt(float(variance[i])) * nodes
        f, f1, f2, _ = np.array([[float(v) for v in exact(p)] for p in points]).T
        expected = [weights @ (float(x[i]) * points - f), weights @ (float(x[i]) - f1), weights @ f2]
        got = [float(value[i]), float(gradient[i]), float(weight[i])]
        tolerance = DERIVATIVE[dtype.name]
        np.testing.assert_allclose(got, 2 * np.array(expected), rtol=tolerance, atol=tolerance)
    at_mean = run("expected_terms", family, x, mean, 0 * variance, dtype.type(0.5))
    assert np.max(np.abs(value - np.asarray(at_mean[0]))) > 0.01


# What the library does with it ----------------------------------------------------------------------------------

ROWS, COLUMNS, UNITS = 60, 5, 2


def data(dtype):
    rng = np.random.default_rng(0)
    eta = 3 * rng.normal(size=(ROWS, UNITS)) @ rng.normal(size=(UNITS, COLUMNS)) + rng.normal(size=COLUMNS)
    return np.asarray(jax.jit(draw)(jax.random.key(1), eta.astype(np.float32)), dtype)


@every_way
def test_the_closed_form_and_its_bounds(family, dtype):
    x = data(dtype)
    optimum = fit(x, family, UNITS, dispersion=1.0)
    q = posterior(optimum, x)
    exactly, quadratic = (
        np.asarray(values) for values in (elbo_exact(optimum, x, q), elbo_quadratic(optimum, x, q, expand_at="zero"))
    )
    slack = 100 * RELATIVE[dtype.name] * (1 + np.abs(exactly))
    np.testing.assert_allclose(optimum.elbo_taylor, np.mean(quadratic), rtol=1e-4 if dtype == np.float32 else 1e-9)
    # 1/12 is the largest curvature there is: a lower bound
    assert np.all(quadratic <= exactly + slack)
    w = np.asarray(optimum.loadings)
    mean = np.asarray(q.mean) @ w.T + np.asarray(optimum.intercept)
    variance = np.einsum("jk,nkl,jl->nj", w, q.covariance, w)
    lower, upper = map(np.asarray, expected_remainder_bounds(family, mean, variance))
    assert np.all(quadratic + lower.sum(1) <= exactly + slack)
    assert np.all(exactly <= quadratic + upper.sum(1) + slack)
    assert np.max(exactly - quadratic) > 1e-3
    low, high = map(np.asarray, bracket(optimum, x, q))
    assert np.all((low <= exactly + slack) & (exactly <= high + slack))


@every_way
def test_the_exact_elbo_is_that_of_samples(family, dtype):
    x = data(dtype)
    model = AffineModel(
        Affine(0.5 * np.ones((COLUMNS, 1), dtype), np.zeros(COLUMNS, dtype)),
        Objective(family, beta=0.5, dispersion=1.0),
    )
    q = Posterior(np.zeros((ROWS, 1), dtype), 0.3 * np.ones((1, 1, 1), dtype))
    exactly = elbo_exact(model, x, q)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    f = np.array([float(exact(p)[0]) for p in 0.5 * np.sqrt(0.3) * nodes])
    by_hand = -COLUMNS * (weights @ f) / np.sqrt(2 * np.pi) - 0.5 * float(kl_divergence(q)[0])  # E eta = 0
    np.testing.assert_allclose(exactly, by_hand, rtol=DERIVATIVE[dtype.name])
    value, error = elbo_monte_carlo(jax.random.key(0), model.decoder, x, q, model.objective, num_samples=500)
    assert abs(float(np.mean(value) - np.mean(exactly))) < 5 * float(np.linalg.norm(error)) / ROWS


@pytest.mark.float64
def test_the_ascent_climbs_from_the_closed_form(dtype):
    x = data(dtype)
    optimum = fit(x, ContinuousBernoulli(), UNITS, beta=0.5)
    best = refine(optimum, x, tolerance=1e-3)
    before = np.mean(elbo_exact(optimum, x, posterior(optimum, x)))
    assert float(best.elbo) > float(before) + 1e-3
    np.testing.assert_allclose(best.elbo, np.mean(elbo_exact(best, x, best.posterior)), rtol=1e-8)
    # the other way of writing it gives the same number
    other = AffineModel(best.decoder, Objective(CUSTOM, beta=0.5, dispersion=1.0))
    np.testing.assert_allclose(np.mean(elbo_exact(other, x, best.posterior)), best.elbo, rtol=1e-10)


@pytest.mark.any_precision
def test_a_net_trains_on_it():
    x = data(np.float32)
    vae = nets.deep(jax.random.key(0), COLUMNS, UNITS, ContinuousBernoulli(), encoder_widths=(8,), decoder_widths=(8,))
    before = monitor.evaluate(jax.random.key(1), vae, x, num_samples=64)
    run_ = training.train(jax.random.key(2), vae, x, steps=300, batch_size=20, chunk_size=100)
    after = monitor.evaluate(jax.random.key(1), run_.vae, x, num_samples=64)
    assert float(after.train_elbo) > float(before.train_elbo) + 0.05


@pytest.mark.any_precision
def test_it_stands_beside_other_families():
    rng = np.random.default_rng(2)
    x = np.concatenate([data(np.float32), rng.poisson(2.0, size=(ROWS, 2)).astype(np.float32)], axis=1)
    family = Mixed([(ContinuousBernoulli(), range(COLUMNS)), (Poisson(), [5, 6])])
    optimum = fit(x, family, UNITS, expand_at="null")
    alone = fit(x[:, :COLUMNS], ContinuousBernoulli(), UNITS, expand_at="null")
    np.testing.assert_allclose(optimum.intercept[:COLUMNS], alone.intercept, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"support \[0, 1\] of ContinuousBernoulli\(\), got 1.5 at \[0, 0\]"):
        fit(np.where(np.arange(7) == 0, 1.5, x), family, UNITS)


@pytest.mark.float64
def test_a_base_measure_that_depends_on_phi_is_not_known_from_moments():
    """Their statistic is K at phi = 1: L-hat used to be nats off at another, above the ELBO that it bounds."""
    own = CASES["Custom gamma"].family
    x = np.random.default_rng(0).gamma(2.0, 1.0, (40, 4))
    for phi in (1.0, 0.5, np.array([1.0, 0.5, 1.0, 1.0])):
        ours, theirs = (fit(x, family, 2, dispersion=phi, expand_at="null") for family in (own, Gamma()))
        profile = elbo_profile(ours, moments(x, family=own), expand_at="null")
        for value in (ours.elbo_taylor, profile):
            known = np.all(phi == 1)
            np.testing.assert_allclose(value, theirs.elbo_taylor if known else np.nan, rtol=1e-10)
        np.testing.assert_allclose(ours.loadings, theirs.loadings, atol=1e-10)
        q = posterior(theirs, x)
        for f in (elbo_exact, partial(elbo_quadratic, expand_at="null")):
            np.testing.assert_allclose(f(ours, x, q), f(theirs, x, q), rtol=1e-6)
    assert np.isnan(diagnose(x, own, 2, dispersion=0.5).collapse_elbo)
    np.testing.assert_allclose(refine(ours, x).elbo, refine(theirs, x).elbo, atol=1e-6)
    both, beside = (Mixed([(family, [0, 1]), (Poisson(), [2, 3])]) for family in (own, Gamma()))
    counts = np.round(x)
    for family, known in ((both, False), (beside, True)):
        value = fit(np.c_[x[:, :2], counts[:, 2:]], family, 2, dispersion=[0.5, 1.0, 1.0, 1.0]).elbo_taylor
        assert np.isfinite(value) == known
    plain = CustomFamily(jnp.exp, limits=Support(0.0))
    assert np.isfinite(fit(np.ones((3, 2)), plain, 1, dispersion=0.5).elbo_taylor)


def _x_itself(x, phi):
    return x


def _half_square(theta):
    return 0.5 * theta**2


def test_a_base_measure_that_is_x_itself_is_no_constant(dtype):
    """It used to be 0 in moments: no operation reads x where it is handed on as it is."""
    x = np.asarray(np.random.default_rng(0).normal(size=(30, 3)), dtype)
    data = moments(x, family=CustomFamily(_half_square, _x_itself))
    np.testing.assert_allclose(data.base_statistic, data.mean, atol=4 * np.finfo(dtype).eps)
    assert np.all(np.abs(data.mean) > 0.01)
