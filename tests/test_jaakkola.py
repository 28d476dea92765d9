"""Jaakkola and Jordan's bound: it touches, it stays below, and one xi a column needs moments alone."""

import dense_reference as dense
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ascent_cases import ROUNDING, D, K, N, case, decoder
from tables import all_refused

from glmvae import Posterior, Rows, fit, moments, posterior, refine, tighten
from glmvae.families import Bernoulli, Binomial, Gaussian, Mixed, NegativeBinomial, Poisson
from glmvae.tangents import log_two_cosh, omega, require_tangent, tangent_terms

f64 = pytest.mark.float64

# The bound --------------------------------------------------------------------------------------------------


def test_it_touches_and_stays_below(dtype):
    xi, t = jnp.asarray([0.0, 1e-3, 0.5, 3.0, 40.0], dtype), jnp.linspace(-50, 50, 401).astype(dtype)[:, None]
    bound = -0.5 * t - log_two_cosh(xi) - 0.5 * omega(xi) * (t**2 - xi**2)
    gap = -jnp.logaddexp(t, 0.0) - bound
    assert gap.min() > -4 * jnp.finfo(dtype).eps * 50
    at = -jnp.logaddexp(xi, 0.0) - (-0.5 * xi - log_two_cosh(xi))
    np.testing.assert_allclose(at, 0.0, atol=4 * float(jnp.finfo(dtype).eps) * 40)
    wider = -0.5 * t - log_two_cosh(xi) - 0.45 * omega(xi) * (t**2 - xi**2)
    assert (-jnp.logaddexp(t, 0.0) - wider).min() < -0.1  # a smaller curvature is no bound


@f64
def test_the_terms_of_an_entry_are_the_references():
    rng = np.random.default_rng(0)
    m, v = 2 * rng.normal(size=(6, D)), rng.uniform(0, 4, size=(6, D))
    scaled = dense.Binomial(np.array([1.0, 2.0, 3.0, 5.0, 9.0]), scale=2.0)
    small = dense.NegativeBinomial(0.4, scale=-0.5)
    mixed = dense.Mixed([(dense.Binomial(5.0), [0, 3]), (dense.Gaussian(), [1, 2]), (small, [4])])
    phis = np.array([1.0, 0.3, 2.0, 1.0, 1.0])
    for reference, phi in ((scaled, 1.0), (dense.NegativeBinomial(2.5), 0.7), (mixed, phis)):
        x = np.minimum(rng.poisson(1.0, size=(6, D)), 1.0)
        p, family = dense.problem(x, reference, phi=phi), reference.family
        terms = jax.jit(lambda x, m, v, family=family, phi=phi: tangent_terms(family, x, m, v, phi))
        value, gradient, weight = terms(x, m, v)
        for got, expected in zip(
            (value + family.saturated_log_prob(x, phi), gradient, weight), dense.jaakkola_entry(p, m, v), strict=True
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)
        assert np.all(value + family.saturated_log_prob(x, phi) <= dense.exact(p, m, v)[0] + 1e-10)


@pytest.mark.any_precision
def test_it_is_for_logistic_and_gaussian_columns():
    both = Mixed([(Bernoulli(), [1]), (Gaussian(), [0])])
    for family in (Bernoulli(), Binomial(3), Binomial(None), NegativeBinomial(1.0), Gaussian(), both):
        require_tangent(family)
    table = Mixed([(Bernoulli(), [0, 2]), (Poisson(), [1])])
    all_refused(
        [
            (
                lambda: require_tangent(Poisson()),
                TypeError,
                r"family: .* logistic and Gaussian columns, got Poisson\(\)",
            ),
            (lambda: require_tangent(table), TypeError, r"family: .*column 1 is Poisson\(\)"),
        ]
    )


# One xi a column --------------------------------------------------------------------------------------------


def by_column(r, c, x=None):
    """The reference's bound with one xi a column, at the decoder and the affine encoder of a result."""
    x = np.asarray(c.x if x is None else x, float)
    mean = x @ np.asarray(r.encoder.weight, float).T + np.asarray(r.encoder.bias, float)
    q = Posterior(mean, np.asarray(r.encoder.covariance, float)[None])
    return c.elbo(r, q, dense.jaakkola_column, x=x), c.elbo(r, q, x=x)


@pytest.mark.parametrize(
    "kind", ["bernoulli", pytest.param("binomial", marks=f64), pytest.param("negative binomial", marks=f64)]
)
def test_it_rises_and_stays_below_the_exact_elbo(kind, dtype):
    c = case(kind, dtype)
    r = tighten(c.start, c.x, tolerance=1e-5)
    assert np.all(np.diff(r.history) >= 0)
    assert r.history.dtype == r.loadings.dtype == r.elbo.dtype == dtype
    q = posterior(r, c.x)
    np.testing.assert_allclose(r.elbo, c.elbo(r, q), rtol=ROUNDING[dtype.name])
    if kind == "negative binomial":  # x is among its trials, so the objective is no bound
        assert r.lower_bound is None
        return
    np.testing.assert_allclose(r.lower_bound, r.history[-1], rtol=ROUNDING[dtype.name])
    assert r.lower_bound < r.elbo
    assert r.history[-1] > r.history[0] + 1e-3  # nats: a start that nothing raised would not pass


def test_each_bound_is_tighter_than_the_one_before(dtype):
    c = case("bernoulli", dtype)
    column = tighten(c.start, c.x)
    entry = refine(c.start, c.x, method="entry", tolerance=1e-4)
    exact = refine(c.start, c.x, method="exact", tolerance=1e-4)
    assert c.start.elbo_taylor < column.lower_bound < entry.lower_bound < exact.elbo
    assert column.elbo < exact.elbo
    assert entry.elbo < exact.elbo


def in_turn(x, units, rounds):
    """Bernoulli at beta 1 in plain NumPy: the closed form given xi and the best xi for it, in turn, from xi = 0."""
    mean, covariance, bounds = x.mean(axis=0), np.cov(x.T, bias=True), []
    xi = np.full(x.shape[1], 1e-8)
    for _ in range(rounds):
        w = np.tanh(xi / 2) / (2 * xi)
        values, vectors = np.linalg.eigh(covariance / np.sqrt(w[:, None] * w))
        values, vectors = values[::-1][:units], vectors[:, ::-1][:, :units]
        kept = np.maximum(values, 1.0)
        loadings, intercept = vectors * np.sqrt(kept - 1) / np.sqrt(w)[:, None], (mean - 0.5) / w
        spread = 0.5 * np.sum(values * (1 - 1 / kept) - np.log(kept))
        bounds.append(np.sum(0.5 * w * (xi**2 + intercept**2) - np.log(2 * np.cosh(xi / 2))) + spread)
        xi = np.sqrt(intercept**2 + np.sum(loadings**2, axis=1))
    return np.array(bounds), loadings @ loadings.T


@f64
def test_it_ends_where_the_two_in_turn_do_after_far_fewer_rounds():
    rng = np.random.default_rng(0)
    noise, signal = rng.normal(size=(1000, 12)), 5 * rng.normal(size=(1000, 2)) @ rng.normal(size=(2, 12))
    x = (noise < signal - 12 * rng.uniform(size=12)).astype(float)  # some columns are rare
    r = tighten(fit(x, Bernoulli(), 2), x, tolerance=1e-9)
    rounds = len(r.history) - 1
    bounds, products = in_turn(x, 2, 3000)
    assert bool(r.converged)
    np.testing.assert_allclose(r.history[-1], bounds[-1], atol=1e-7)  # nats, of the tolerance
    np.testing.assert_allclose(r.loadings @ r.loadings.T, products, atol=1e-2 * np.max(products))
    needed = int(np.argmax(bounds > r.history[-1] - 1e-6))
    assert 8 * rounds < needed
    assert bounds[rounds] < bounds[-1] - 1e-3  # control: in turn it is not there yet


@f64
def test_it_needs_moments_alone():
    c = case("binomial")
    from_rows = tighten(c.start, c.x)
    from_moments = tighten(c.start, moments(c.x, family=c.family))
    np.testing.assert_allclose(from_moments.loadings, from_rows.loadings, rtol=1e-12)
    assert from_moments.elbo is None
    assert "unknown" in repr(from_moments)
    # The reference of the bound: its own quadratics at the returned decoder and encoder, row by row.
    bound, _ = by_column(from_rows, c)
    assert from_rows.lower_bound <= bound + 1e-12  # xi there is already that of the next round
    np.testing.assert_allclose(from_rows.lower_bound, bound, atol=2e-6)


@f64
def test_gaussian_columns_beside_logistic_ones_are_as_they_are():
    rng = np.random.default_rng(3)
    eta = rng.normal(size=(N, 1)) * [2.0, 1.0, -1.5, 0.7, -2.0]
    x = np.where(np.arange(D) < 3, rng.random((N, D)) < 1 / (1 + np.exp(-eta)), eta + 0.5 * rng.normal(size=(N, D)))
    reference = dense.Mixed([(dense.Binomial(), [0, 1, 2]), (dense.Gaussian(), [3, 4])])
    phi = np.array([1.0, 1.0, 1.0, 0.3, 0.4])
    start = fit(x, reference.family, K, dispersion=phi)
    r = tighten(start, x)
    p = dense.problem(x, reference, phi=phi)
    mean = x @ np.asarray(r.encoder.weight).T + np.asarray(r.encoder.bias)
    covariance = np.asarray(r.encoder.covariance)
    with np.errstate(invalid="ignore"):  # the reference looks for the xi of a Gaussian column too
        bound = p.mean(dense.elbo(p, decoder(r), mean, covariance, dense.jaakkola_column))
    np.testing.assert_allclose(r.lower_bound, bound, atol=1e-5)
    assert r.lower_bound <= bound + 1e-12
    assert start.elbo_taylor < r.lower_bound < r.elbo
    np.testing.assert_allclose(r.elbo, p.mean(dense.elbo(p, decoder(r), mean, covariance)), rtol=1e-9)
    # With Gaussian columns alone nothing is left to tighten
    plain = case("gaussian")
    same = tighten(plain.start, plain.x)
    np.testing.assert_allclose(same.elbo, plain.start.elbo_taylor, rtol=1e-9)
    np.testing.assert_allclose(same.lower_bound, same.elbo, rtol=1e-9)


@f64
def test_covariates_are_part_of_the_bound():
    c, z = case("bernoulli"), np.random.default_rng(0).normal(size=(N, 2)) + 0.5
    rows = Rows(c.x, covariates=z)
    r = tighten(fit(rows, c.family, K), rows)
    q = posterior(r, rows)
    np.testing.assert_allclose(r.elbo, c.elbo(r, q, covariates=z), rtol=1e-9)
    bound = c.elbo(r, q, dense.jaakkola_column, covariates=z)
    assert r.lower_bound <= bound + 1e-12
    np.testing.assert_allclose(r.lower_bound, bound, atol=2e-6)
    assert r.lower_bound > tighten(c.start, c.x).lower_bound + 1e-3


# Never worse than the null model, and a bound in floating point too -----------------------------------------


def small_counts(size, mean, seed):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(size, mean / size, size=(N, D))).astype(float)


@f64
def test_nothing_is_returned_that_is_worse_than_the_null_model():
    """For the negative binomial "column" was up to 0.2 nats below it, "entry" 1e-6."""
    tables = [
        ("column", 0.3, 2.0, 5), ("column", 1.0, 0.5, 11), ("column", 1.0, 2.0, 7), ("column", 3.0, 2.0, 24),
        ("entry", 0.3, 10.0, 2), ("entry", 0.3, 10.0, 8), ("entry", 3.0, 10.0, 6),
    ]  # fmt: skip
    for method, size, mean, seed in tables:
        x, reference = small_counts(size, mean, seed), dense.NegativeBinomial(size)
        start = fit(x, reference.family, K)
        r = tighten(start, x) if method == "column" else refine(start, x, method=method)
        null = reference.log_prob(x, reference.null(x.mean(axis=0)) + 0 * x).sum(axis=1).mean()
        assert r.elbo >= null - 1e-9, (method, size, mean, seed)


def many_trials(seed, trials=1000):
    rng = np.random.default_rng(seed)
    rng.normal(size=(N + D) * K)
    share = 1 / (1 + np.exp(-0.3 * rng.normal(size=D)))
    return rng.binomial(trials, share + np.zeros((N, D))).astype("float32")


@f64
def test_the_certified_bound_is_one_in_float32_too():
    """float32 rows: it used to be 7e-4 nats above the exact ELBO of the same decoder in float64."""
    for seed, trials in [*((seed, 1000) for seed in range(4)), (0, 1_000_000), (1, 1_000_000)]:
        reference = dense.Binomial(float(trials))
        x = many_trials(seed, trials)
        r = tighten(fit(x, Binomial(trials), K), x)
        assert r.lower_bound.dtype == np.float32
        p = dense.problem(x, reference)
        mean = x.astype(float) @ np.asarray(r.encoder.weight, float).T + np.asarray(r.encoder.bias, float)
        exact = p.mean(dense.elbo(p, decoder(r), mean, np.asarray(r.encoder.covariance, float)))
        assert float(r.lower_bound) <= exact, seed
        rounding = 16 * np.finfo(np.float32).eps * trials * D  # of log C(n, x) and what it is taken from
        assert float(r.lower_bound) > exact - max(0.5, rounding)  # and is no empty word
    c = case("bernoulli", "float32")
    entry = refine(c.start, c.x, method="entry", tolerance=1e-4)
    assert float(entry.lower_bound) <= c.elbo(entry)


# Arguments --------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_bad_arguments_are_named():
    c, p = case("bernoulli"), case("poisson")
    offset, missing = Rows(c.x, offset=np.ones(N)), Rows(c.x, missing=np.zeros((N, D), bool))
    foreign = moments(p.x, family=Poisson())
    all_refused(
        [
            (lambda: tighten(None, c.x), TypeError, "optimum: expected an AffineModel or a result"),
            (lambda: tighten(c.start, c.x[:, :3]), ValueError, "x: expected 5 columns"),
            (lambda: tighten(c.start, moments(c.x[:, :3])), ValueError, "x.*5"),
            (lambda: tighten(c.start, 2 + c.x), ValueError, r"x: expected values in the support \[0, 1\]"),
            (lambda: tighten(p.start, p.x), TypeError, r"family: .*Poisson\(\)"),
            (lambda: tighten(c.start, c.x, tolerance=0.0), ValueError, "tolerance: expected a positive"),
            (lambda: tighten(c.start, c.x, max_rounds=0), ValueError, "max_rounds: expected an integer of at least 1"),
            (lambda: tighten(c.start, offset), ValueError, "x: one xi a column has no place for an offset"),
            (lambda: tighten(c.start, missing), ValueError, "missing: "),
            (
                lambda: tighten(c.start, foreign),
                ValueError,
                r"x: expected moments of Bernoulli\(\), got those of Poisson",
            ),
        ]
    )
