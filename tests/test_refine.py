"""Refined optima: monotone, below the exact ELBO and at its optimum, with every argument."""

import functools
import subprocess
import sys

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from sklearn.datasets import load_digits

from glmvae import Moments, Posterior, collapse_onset, elbo_exact, fit, kl_divergence, moments, posterior
from glmvae._ascent import _add, _ahead, _careful, at_decoder
from glmvae._jaakkola import log_two_cosh, omega
from glmvae._logistic_mixture import expected_logistic
from glmvae._pass import best_rows, mean_elbo, no_change, pass_over_rows
from glmvae._problem import problem_of
from glmvae._rows import Decoder, starting_rows, symmetric_inverse
from glmvae._softplus import expected_excess, expected_sigmoid
from glmvae.families import Bernoulli, Binomial, Gamma, Gaussian, NegativeBinomial, Poisson
from glmvae.refine import RefinedOptimum, refine, refined_posterior

N, D, K = 60, 5, 2
# Nats per row: what the ascent is asked for in the tests that compare optima.
TIGHT = 1e-10
# An ELBO of a few nats in float32, summed in another order.
ROUNDING = {"float64": 1e-9, "float32": 2e-5}


@functools.cache
def _data(kind, dtype):
    rng = np.random.default_rng(7)
    eta = 0.8 * rng.normal(size=(N, K)) @ rng.normal(size=(K, D)) + 0.3 * rng.normal(size=D)
    family, x, phi = {
        "bernoulli": lambda: (Bernoulli(), rng.random(eta.shape) < 1 / (1 + np.exp(-2 * eta)), None),
        "binomial": lambda: (Binomial(6), rng.binomial(6, 1 / (1 + np.exp(-eta))), None),
        "poisson": lambda: (Poisson(), rng.poisson(np.exp(eta)), None),
        "gaussian": lambda: (Gaussian(), eta + rng.normal(size=eta.shape), None),
        "gamma": lambda: (Gamma(), rng.gamma(2.0, np.exp(eta) / 2), 0.5),
        "negative binomial": lambda: (NegativeBinomial(3.0), rng.poisson(rng.gamma(3.0, np.exp(eta))), None),
    }[kind]()
    x = np.asarray(x, dtype)
    return family, x, fit(x, family, K, dispersion=phi)


def _elbo(r, x, family, q=None):
    q = r.rows if q is None else q
    return float(jnp.mean(elbo_exact(r.loadings, r.intercept, x, q, family, beta=r.beta, dispersion=r.dispersion)))


def _null(x, family, phi=1.0):
    null = family.null_predictor(jnp.mean(jnp.asarray(x), axis=0))
    return float(jnp.mean(jnp.sum(family.log_prob(x, jnp.broadcast_to(null, x.shape), phi), axis=1)))


# What it is made of -----------------------------------------------------------------------------------------


def test_the_mixture_agrees_with_the_quadrature(dtype):
    mean, variance = (
        jnp.asarray(a.ravel(), dtype) for a in np.meshgrid([-20.0, -3.0, 0.0, 0.1, 5.0], [0.0, 0.3, 4.0, 100.0])
    )
    excess, tail, slope = expected_logistic(mean, variance)
    bound = 5e-12 if dtype == np.float64 else 3e-6
    np.testing.assert_allclose(excess, expected_excess(0, mean, variance), rtol=0, atol=bound * 2)
    sigmoid = jnp.where(mean > 0, 1 - tail, tail)
    np.testing.assert_allclose(sigmoid, expected_sigmoid(mean, variance), rtol=0, atol=bound * 4)
    np.testing.assert_allclose(slope, expected_excess(2, mean, variance), rtol=0, atol=bound * 10)


@pytest.mark.parametrize("size", [1, K + 1, 12])  # summed up entry by entry, and as a matrix product
def test_symmetric_inverse_is_that_of_linear_algebra(size, dtype):
    root = np.random.default_rng(0).normal(size=(9, size, size))
    matrix = (root @ np.swapaxes(root, 1, 2) + np.eye(size)).astype(dtype)
    inverse, log_det = symmetric_inverse(jnp.asarray(matrix))
    tolerance = 1e-12 if dtype == np.float64 else 1e-4
    np.testing.assert_allclose(inverse, np.linalg.inv(matrix), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(matrix)[1], rtol=tolerance)


@pytest.mark.float64
def test_symmetric_inverse_stays_positive_when_ill_conditioned(dtype):
    long = np.random.default_rng(1).normal(size=(9, K + 1, 2)) * 1e6
    inverse, log_det = symmetric_inverse(jnp.asarray(np.eye(K + 1) + long @ np.swapaxes(long, 1, 2)))
    assert np.linalg.eigvalsh(inverse).min() > 0
    assert np.all(np.isfinite(log_det))
    singular, _ = symmetric_inverse(jnp.asarray(np.diag([2.0, 0.0, 4.0]))[None])
    np.testing.assert_allclose(singular[0], np.diag([0.5, 0.0, 0.25]), rtol=1e-15)


def _sparse_counts():
    """Large counts, most of them 0, under a decoder that a log link can hardly bear."""
    rng = np.random.default_rng(0)
    decoder = Decoder(jnp.asarray(30.0 * rng.normal(size=(D, K))), jnp.full(D, -30.0))
    x = rng.poisson(rng.gamma(0.3, 30.0, size=(N, D)) * (rng.random((N, D)) < 0.3)).astype(float)
    return decoder, problem_of(jnp.asarray(x), Poisson(), jnp.ones(()), jnp.ones(()))


@pytest.mark.float64
def test_posteriors_under_a_steep_decoder_are_found_and_their_elbo_is_the_exact_one(dtype):
    decoder, problem = _sparse_counts()
    rows = best_rows(decoder, problem, 1e-9, 300)[0]
    claimed = mean_elbo(decoder, problem, rows)
    q = Posterior(rows.mean, rows.covariance)
    exact = elbo_exact(decoder.loadings, decoder.intercept, problem.x, q, Poisson())
    np.testing.assert_allclose(claimed, jnp.mean(exact), rtol=1e-9)
    # with the weights at eta = b alone, v = |W_j|^2 and exp(b + v / 2) is no number any more
    assert -30.0 + 0.5 * np.sum(np.asarray(decoder.loadings) ** 2, axis=1).max() > np.log(np.finfo(dtype).max)


@pytest.mark.float64
def test_posteriors_that_are_too_narrow_by_orders_of_magnitude_widen_in_a_few_steps(dtype):
    decoder, problem = _sparse_counts()
    best = best_rows(decoder, problem, 1e-9, 300)[0]
    narrow = best._replace(covariance=1e-40 * best.covariance, log_det=best.log_det + K * np.log(1e-40))
    value = float(mean_elbo(decoder, problem, best))
    assert float(mean_elbo(decoder, problem, narrow)) < value - 50
    _, summary = pass_over_rows(decoder, problem, narrow, no_change(K, dtype), 12, -np.inf, False)
    # twice as wide a step, as by averaging precisions, would still be 50 nats short
    assert float(summary.elbo) > value - 0.1


@pytest.mark.float64
def test_rows_begin_with_the_caution_that_they_needed(dtype):
    decoder, problem = _sparse_counts()
    start = starting_rows(decoder, problem)
    rows, _ = pass_over_rows(decoder, problem, start, no_change(K, dtype), 1, -np.inf, False)
    needed = np.asarray(rows.caution)
    assert needed.min() == 1  # no row could bear a full step,
    assert needed.max() == 3  # some not half of it
    # what succeeded at the first shorter step does so at once when it begins with it, at the same place
    careful = start._replace(caution=rows.caution)
    again, _ = pass_over_rows(decoder, problem, careful, no_change(K, dtype), 1, -np.inf, False)
    first = needed == 1
    np.testing.assert_array_equal(again.caution[first], 0.75)
    np.testing.assert_allclose(again.mean[first], rows.mean[first], rtol=1e-9, atol=1e-12)


@pytest.mark.float64
def test_only_columns_that_overshoot_take_shorter_steps(dtype):
    _, x, start = _data("poisson", dtype)
    problem = problem_of(jnp.asarray(x), Poisson(), jnp.ones(()), jnp.ones(()))
    # Far left of the optimum a Newton step of a log link is far too long
    decoder = Decoder(start.loadings, start.intercept.at[2].add(-4.0))
    state = at_decoder(decoder, problem, 1e-9)
    none = jnp.zeros(D)
    new, caution = _careful(state, problem, none)
    assert new.elbo > state.elbo
    assert float(caution[2]) >= 1
    np.testing.assert_array_equal(np.delete(caution, 2), 0)
    change = state.summary.change
    whole = _add(decoder, _ahead(decoder, state.summary.step, change, none))
    _, summary = pass_over_rows(whole, problem, state.rows, change, 1, -np.inf, False)
    assert not float(summary.elbo) > state.elbo  # with the whole step of every column the ELBO falls
    others = np.arange(D) != 2
    moved = new.decoder.intercept - decoder.intercept
    np.testing.assert_allclose(moved[others], state.summary.step.intercept[others], rtol=1e-9, atol=1e-12)


def test_the_logistic_bound_touches_and_stays_below(dtype):
    xi, t = jnp.asarray([0.0, 1e-3, 0.5, 3.0, 40.0], dtype), jnp.linspace(-50, 50, 401).astype(dtype)[:, None]
    bound = -0.5 * t - log_two_cosh(xi) - 0.5 * omega(xi) * (t**2 - xi**2)
    gap = -jnp.logaddexp(t, 0.0) - bound
    assert gap.min() > -4 * jnp.finfo(dtype).eps * 50
    at = -jnp.logaddexp(xi, 0.0) - (-0.5 * xi - log_two_cosh(xi))
    np.testing.assert_allclose(at, 0.0, atol=4 * float(jnp.finfo(dtype).eps) * 40)
    wider = -0.5 * t - log_two_cosh(xi) - 0.45 * omega(xi) * (t**2 - xi**2)
    assert (-jnp.logaddexp(t, 0.0) - wider).min() < -0.1  # a smaller curvature is no bound


# Monotone, and between the bounds ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("bernoulli", "column"),
        ("bernoulli", "entry"),
        pytest.param("binomial", "column", marks=pytest.mark.float64),
        pytest.param("negative binomial", "column", marks=pytest.mark.float64),
        pytest.param("negative binomial", "entry", marks=pytest.mark.float64),
    ],
)
def test_bounds_rise_and_stay_below_the_exact_elbo(kind, method, dtype):
    family, x, start = _data(kind, dtype)
    r = refine(start, x, family, method=method, tolerance=1e-5)
    assert np.all(np.diff(r.history) >= 0)
    assert r.history.dtype == r.loadings.dtype == r.elbo.dtype == dtype
    if method == "column" and kind == "negative binomial":
        assert r.lower_bound is None
        return
    assert r.lower_bound == r.history[-1]
    assert r.lower_bound < r.elbo
    q = r.rows if method == "entry" else posterior(r, x)
    np.testing.assert_allclose(r.elbo, _elbo(r, x, family, q), rtol=ROUNDING[dtype.name])


@pytest.mark.parametrize(
    "kind",
    [
        "bernoulli",
        *(pytest.param(k, marks=pytest.mark.float64) for k in ("poisson", "gaussian", "gamma", "negative binomial")),
    ],
)
def test_the_exact_ascent_rises_from_the_start_and_reports_the_exact_elbo(kind, dtype):
    family, x, start = _data(kind, dtype)
    r = refine(start, x, family, tolerance=1e-4)
    assert isinstance(r, RefinedOptimum)
    assert r.converged
    assert np.all(np.diff(r.history) >= 0)
    np.testing.assert_allclose(r.elbo, r.history[-1])
    np.testing.assert_allclose(r.elbo, _elbo(r, x, family), rtol=ROUNDING[dtype.name])
    assert r.elbo >= _null(x, family, start.dispersion) - ROUNDING[dtype.name]
    assert r.lower_bound is None
    q = refined_posterior(r, x, family)
    assert q.mean.dtype == q.covariance.dtype == r.loadings.dtype == dtype
    assert _elbo(r, x, family, q) >= r.elbo - ROUNDING[dtype.name] * abs(r.elbo)
    if kind == "gaussian":
        assert len(r.history) == 1  # zero rounds
        np.testing.assert_allclose(r.elbo, start.elbo_taylor, rtol=ROUNDING[dtype.name])
    else:
        assert r.elbo > r.history[0] + 1e-3  # nats: a start that nothing raised would not pass


def test_each_bound_is_tighter_than_the_one_before(dtype):
    family, x, start = _data("bernoulli", dtype)
    column = refine(start, x, family, method="column")
    entry = refine(start, x, family, method="entry", tolerance=1e-4)
    exact = refine(start, x, family, method="exact", tolerance=1e-4)
    assert start.elbo_taylor < column.lower_bound < entry.lower_bound < exact.elbo
    assert column.elbo < exact.elbo
    assert entry.elbo < exact.elbo


@pytest.mark.float64
def test_column_needs_moments_alone(dtype):
    family, x, start = _data("binomial", dtype)
    from_rows = refine(start, x, family, method="column")
    from_moments = refine(start, moments(x, family=family), family, method="column")
    np.testing.assert_allclose(from_moments.loadings, from_rows.loadings, rtol=1e-12)
    assert from_moments.elbo is None
    assert "unknown" in repr(from_moments)
    # The reference of the bound: its own quadratics at the returned decoder and encoder, row by row.
    q = posterior(from_rows, x)
    m = q.mean @ from_rows.loadings.T + from_rows.intercept
    v = jnp.sum((from_rows.loadings @ q.covariance) * from_rows.loadings, axis=1)
    xi = jnp.sqrt(jnp.mean(m**2, axis=0) + v)
    value = (x - 3) * m - 6 * (log_two_cosh(xi) + 0.5 * omega(xi) * (m**2 + v - xi**2)) + family.log_base_measure(x)
    bound = jnp.mean(jnp.sum(value, axis=1) - kl_divergence(q))
    assert from_rows.lower_bound <= bound + 1e-12  # xi here is already that of the next round
    np.testing.assert_allclose(from_rows.lower_bound, bound, atol=2e-6)


# Against an independent optimiser ---------------------------------------------------------------------------


def _by_lbfgs(family, x, start):
    """The exact ELBO maximised over everything at once: decoder, means, Cholesky factors."""
    eye = jnp.eye(K)

    def loss(p):
        root = jnp.tril(p["root"], -1) + jnp.exp(p["root"]) * eye
        covariance = root @ jnp.swapaxes(root, 1, 2)
        m = p["mean"] @ p["loadings"].T + p["intercept"]
        v = jnp.einsum("dk,nkl,dl->nd", p["loadings"], covariance, p["loadings"])
        value = jnp.sum(family.expected_log_prob(x, m, v, start.dispersion), axis=1)
        log_det = 2 * jnp.sum(jnp.diagonal(p["root"], axis1=1, axis2=2), axis=1)
        trace = jnp.sum(root**2, axis=(1, 2))
        kl = 0.5 * (trace - log_det + jnp.sum(p["mean"] ** 2, axis=1) - K)
        return -jnp.mean(value - start.beta * kl)

    p = {
        "loadings": start.loadings,
        "intercept": start.intercept,
        "mean": np.zeros((N, K)),
        "root": np.zeros((N, K, K)) - 0.5 * np.eye(K),
    }
    flat, rebuild = jax.flatten_util.ravel_pytree(p)
    both = jax.jit(jax.value_and_grad(lambda flat: loss(rebuild(flat))))
    options = {"maxiter": 5000, "maxfun": 10000, "maxcor": 30, "ftol": 0.0, "gtol": 1e-9}
    found = scipy.optimize.minimize(
        lambda flat: tuple(map(np.asarray, both(flat))), np.asarray(flat), jac=True, method="L-BFGS-B", options=options
    )
    return -found.fun, np.linalg.norm(found.jac)


@pytest.mark.float64
@pytest.mark.parametrize("kind", ["bernoulli", "poisson"])
def test_it_agrees_with_lbfgs_on_the_exact_elbo(kind, dtype):
    family, x, start = _data(kind, dtype)
    start = fit(x, family, K, expand_at="null")
    r = refine(start, x, family, tolerance=TIGHT)
    reference, gradient = _by_lbfgs(family, x, start)
    assert gradient < 1e-5  # it did get there
    np.testing.assert_allclose(r.elbo, reference, rtol=0, atol=1e-6)
    assert float(r.elbo) - float(r.history[0]) > 1e-3  # the start would not have passed


# Starts -----------------------------------------------------------------------------------------------------


@pytest.mark.float64
def test_a_start_below_the_null_model_is_replaced(dtype):
    family, x, start = _data("poisson", dtype)
    lost = start._replace(loadings=start.loadings + 3.0, intercept=start.intercept + 5.0)
    assert _elbo(lost, x, family, posterior(lost, x)) < _null(x, family)
    r = refine(lost, x, family, tolerance=1e-6)
    assert r.history[0] >= _null(x, family)
    good = refine(fit(x, family, K, expand_at="null"), x, family, tolerance=1e-6)
    np.testing.assert_allclose(r.elbo, good.elbo, atol=1e-4)


@pytest.mark.float64
@pytest.mark.parametrize("method", ["column", "exact"])
def test_above_the_onset_the_null_model_is_returned(method, dtype):
    family, x, _ = _data("bernoulli", dtype)
    r = refine(fit(x, family, K, beta=50.0), x, family, method=method)
    np.testing.assert_allclose(r.elbo, _null(x, family), atol=1e-6)
    assert not np.any(r.eigenvalues[:K] > r.beta)
    assert "0 active" in repr(r)


@pytest.mark.float64
@pytest.mark.parametrize("kind", ["bernoulli", "poisson", "gamma"])
def test_units_that_the_start_pruned_come_back_below_the_onset_and_only_there(kind, dtype):
    family, x, start = _data(kind, dtype)
    phi = start.dispersion
    onset = float(collapse_onset(moments(x), family, dispersion=phi))
    off = fit(x, family, K, beta=1e6, dispersion=phi)._replace(beta=jnp.asarray(0.98 * onset, dtype))
    assert not np.any(off.loadings)
    off = off._replace(intercept=family.null_predictor(jnp.mean(x, axis=0)))
    below = refine(off, x, family, tolerance=1e-9)
    assert np.sum(below.eigenvalues > below.beta) == 1
    assert np.all(np.diff(below.history) >= 0)
    assert below.elbo > _null(x, family, phi) + 1e-6
    above = refine(off._replace(beta=jnp.asarray(1.02 * onset, dtype)), x, family, tolerance=1e-9)
    assert not np.any(above.eigenvalues > above.beta)


@pytest.mark.float64
def test_digits_keep_a_unit_at_4_7_and_none_at_5(dtype):
    x = (load_digits().data > 7).astype(dtype)
    assert 4.7 < collapse_onset(moments(x), Bernoulli()) < 5.0
    for beta, active in ((4.7, 1), (5.0, 0)):
        r = refine(fit(x, Bernoulli(), 1, beta=beta), x, Bernoulli(), tolerance=1e-4)
        assert np.sum(r.eigenvalues > r.beta) == active


@pytest.mark.float64
def test_constant_columns_do_no_harm(dtype):
    family, x, _ = _data("bernoulli", dtype)
    x = x.copy()
    x[:, 0], x[:, 1] = 0.0, 1.0
    for method in ("column", "entry", "exact"):
        r = refine(fit(x, family, K), x, family, method=method, tolerance=1e-6)
        assert np.all(np.isfinite(r.loadings))
        assert np.all(np.diff(r.history) >= 0)
    rest = refine(fit(x[:, 2:], family, K), x[:, 2:], family, tolerance=1e-6)
    np.testing.assert_allclose(r.elbo, rest.elbo, atol=1e-4)


# Offsets, trials per entry, missing entries -----------------------------------------------------------------


@pytest.mark.float64
def test_an_offset_of_zero_changes_nothing_and_a_constant_one_moves_the_intercept(dtype):
    family, x, start = _data("poisson", dtype)
    plain = refine(start, x, family, tolerance=TIGHT)
    zero = refine(start, x, family, offset=np.zeros((N, D)), tolerance=TIGHT)
    np.testing.assert_allclose(zero.elbo, plain.elbo, atol=1e-9)
    np.testing.assert_allclose(zero.intercept, plain.intercept, atol=1e-4)
    shift = np.linspace(-1, 1, D)
    moved = refine(start, x, family, offset=shift, tolerance=TIGHT)
    np.testing.assert_allclose(moved.elbo, plain.elbo, atol=1e-8)
    np.testing.assert_allclose(moved.intercept + shift, plain.intercept, atol=1e-3)
    # Control: an offset that differs between the rows is something else.
    other = refine(start, x, family, offset=np.linspace(-1, 1, N)[:, None] * np.ones(D), tolerance=TIGHT)
    assert abs(other.elbo - plain.elbo) > 1e-2


@pytest.mark.float64
def test_trials_per_entry(dtype):
    family, x, start = _data("binomial", dtype)
    each = refine(start, x, Binomial(np.full((N, D), 6.0)), tolerance=TIGHT)
    one = refine(start, x, family, tolerance=TIGHT)
    np.testing.assert_allclose(each.elbo, one.elbo, atol=1e-9)
    trials = 6.0 + np.arange(N)[:, None] % 3 + np.zeros(D)
    varied = Binomial(trials)
    r = refine(fit(x / trials, Bernoulli(), K), x, varied, tolerance=1e-6)
    np.testing.assert_allclose(r.elbo, _elbo(r, x, varied), rtol=1e-9)
    assert abs(r.elbo - one.elbo) > 1e-2
    with pytest.raises(ValueError, match="family: moments need trials that are a scalar or one a column"):
        fit(x, varied, K)
    with pytest.raises(ValueError, match=r"x: expected shape \(60, 5\)"):
        refined_posterior(r, x[:10], varied)


@pytest.mark.float64
def test_gaussian_with_missing_entries_is_the_dense_marginal_likelihood(dtype):
    family, x, start = _data("gaussian", dtype)
    hidden = np.random.default_rng(1).random(x.shape) < 0.3
    r = refine(start, np.where(hidden, np.nan, x), family, missing=hidden, tolerance=1e-13, max_rounds=400)
    phi = float(r.dispersion)

    def log_marginal(loadings, intercept):
        def of_row(x, seen):
            # what is hidden is made independent of the rest, with variance 1 and residual 0
            covariance = jnp.where(jnp.outer(seen, seen), loadings @ loadings.T + phi * jnp.eye(D), jnp.eye(D))
            residual = jnp.where(seen, x - intercept, 0.0)
            quadratic = residual @ jnp.linalg.inv(covariance) @ residual
            return -0.5 * (quadratic + jnp.linalg.slogdet(covariance)[1] + jnp.sum(seen) * np.log(2 * np.pi))

        return jnp.mean(jax.vmap(of_row)(jnp.asarray(x), jnp.asarray(~hidden)))

    both = jax.jit(jax.value_and_grad(log_marginal, (0, 1)))
    value, gradient = both(r.loadings, r.intercept)
    np.testing.assert_allclose(r.elbo, value, rtol=1e-10)
    assert max(float(jnp.max(jnp.abs(g))) for g in gradient) < 1e-5
    at_start = both(start.loadings, start.intercept)[1][0]
    assert float(jnp.max(jnp.abs(at_start))) > 1e-3
    i = int(np.argmax(hidden.sum(1)))
    seen = np.flatnonzero(~hidden[i])
    w = r.loadings[seen]
    covariance = np.linalg.inv(np.eye(K) + w.T @ w / phi)
    np.testing.assert_allclose(r.rows.covariance[i], covariance, atol=1e-9)
    np.testing.assert_allclose(r.rows.mean[i], covariance @ w.T @ (x[i, seen] - r.intercept[seen]) / phi, atol=1e-5)


@pytest.mark.float64
def test_posteriors_of_rows_with_missing_entries(dtype):
    family, x, start = _data("bernoulli", dtype)
    hidden = np.zeros((N, D), bool)
    hidden[:, 3:] = True
    garbage = np.where(hidden, np.nan, x)
    q = refined_posterior(start, garbage, family, missing=hidden, tolerance=1e-12)
    fewer = start._replace(loadings=start.loadings[:3], intercept=start.intercept[:3])
    reference = refined_posterior(fewer, x[:, :3], family, tolerance=1e-12)
    np.testing.assert_allclose(q.mean, reference.mean, atol=1e-10)
    np.testing.assert_allclose(q.covariance, reference.covariance, atol=1e-10)
    assert np.abs(q.mean - refined_posterior(start, x, family).mean).max() > 1e-2
    empty = refined_posterior(start, garbage, family, missing=np.ones((N, D), bool))
    np.testing.assert_allclose(empty.mean, 0.0, atol=1e-12)
    np.testing.assert_allclose(empty.covariance, np.broadcast_to(np.eye(K), (N, K, K)), atol=1e-12)


@pytest.mark.float64
def test_posteriors_of_the_training_rows_are_those_of_the_ascent(dtype):
    family, x, start = _data("poisson", dtype)
    r = refine(start, x, family, tolerance=TIGHT)
    q = refined_posterior(r, x, family, tolerance=1e-13)
    np.testing.assert_allclose(q.mean, r.rows.mean, atol=2e-3)
    # Stationary: no perturbation of a mean or a covariance does better.
    best = elbo_exact(r.loadings, r.intercept, x, q, family)
    for shift, factor in ((0.05, 1.0), (-0.05, 1.0), (0.0, 1.1), (0.0, 0.9)):
        other = elbo_exact(r.loadings, r.intercept, x, Posterior(q.mean + shift, q.covariance * factor), family)
        assert np.all(other < best)


@pytest.mark.float64
def test_missing_columns_are_no_information(dtype):
    family, x, start = _data("bernoulli", dtype)
    nothing = refine(start, x, family, missing=np.zeros((N, D), bool), tolerance=TIGHT)
    plain = refine(start, x, family, tolerance=TIGHT)
    np.testing.assert_allclose(nothing.elbo, plain.elbo, atol=1e-10)


# Cost -------------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_memory_does_not_grow_with_the_rows(dtype):
    family, columns, units = Bernoulli(), 300, 3

    def temporaries(rows):
        problem = problem_of(jnp.zeros((rows, columns), dtype), family, jnp.ones((), dtype), jnp.ones((), dtype))
        decoder = Decoder(jnp.ones((columns, units), dtype), jnp.zeros(columns, dtype))
        small = problem._replace(x=problem.x[:1], constant=problem.constant[:1])
        q = jax.tree.map(lambda a: jnp.zeros((rows, *a.shape[1:]), dtype), starting_rows(decoder, small))
        compiled = pass_over_rows.lower(decoder, problem, q, no_change(units, dtype), 1, -np.inf, False).compile()
        state = sum(a.nbytes for a in q)
        return compiled.memory_analysis().temp_size_in_bytes, state, problem.x.nbytes

    few, state_few, _ = temporaries(4_000)
    many, state_many, data = temporaries(16_000)
    # Beside the posteriors, which are returned (a loop may hold them twice), nothing grows.
    assert many - few <= 2.1 * (state_many - state_few)
    assert many - few < 0.2 * data


_NO_HANG = """
import numpy as np
from glmvae import fit, refine
from glmvae.families import Bernoulli
x = (np.random.default_rng(0).random((3000, 30)) < 0.4).astype("float32")
for method in ("column", "entry", "exact"):
    refine(fit(x, Bernoulli(), 6), x, Bernoulli(), method=method, max_rounds=3)
print("done")
"""


@pytest.mark.any_precision
def test_nothing_hangs():
    run = subprocess.run([sys.executable, "-c", _NO_HANG], capture_output=True, text=True, timeout=240, check=False)
    assert run.stdout.strip() == "done", run.stderr


@pytest.mark.any_precision
def test_the_progress_bar_counts_the_rounds(capfd, dtype):
    family, x, start = _data("bernoulli", dtype)
    refine(start, x, family, method="column", max_rounds=2, progress=True)
    assert "refine column" in capfd.readouterr().err


# Bad arguments ----------------------------------------------------------------------------------------------


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "rows"}, ValueError, 'method: expected "column", "entry" or "exact"'),
        ({"tolerance": 0.0}, ValueError, "tolerance: expected a positive"),
        ({"tolerance": "small"}, TypeError, "tolerance: expected a number"),
        ({"max_rounds": 0}, ValueError, "max_rounds: expected an integer of at least 1"),
        ({"max_rounds": 1.5}, TypeError, "max_rounds: expected an integer"),
        ({"max_rounds": True}, TypeError, "max_rounds: expected an integer"),
        ({"method": "column", "offset": np.zeros(D)}, ValueError, "offset: expected None"),
        ({"method": "column", "missing": np.zeros((N, D), bool)}, ValueError, "missing: expected None"),
        ({"offset": np.zeros(D + 1)}, ValueError, r"offset: expected shape \(5,\) or \(60, 5\)"),
        ({"offset": np.full(D, np.inf)}, ValueError, r"offset: expected finite numbers, got inf at \[0\]"),
        ({"offset": "much"}, TypeError, "offset: expected an array of numbers"),
        ({"missing": np.zeros((N, D))}, TypeError, "missing: expected booleans"),
        ({"missing": np.zeros((N, D - 1), bool)}, ValueError, r"missing: expected shape \(60, 5\)"),
        ({"missing": np.arange(D) == np.full((N, 1), 2)}, ValueError, r"got none at \[2\]"),
        ({"x": np.ones((N, D + 1))}, ValueError, "x: expected 5 columns"),
        ({"x": np.full((N, D), np.nan)}, ValueError, r"x: expected finite numbers, got nan at \[0, 0\]"),
        ({"x": np.full((N, D), 2.0)}, ValueError, r"x: expected values in the support \[0, 1\]"),
        ({"method": "entry", "family": Poisson()}, TypeError, "family: 'entry' needs a Bernoulli"),
        ({"method": "column", "family": Gaussian()}, TypeError, "family: 'column' needs a Bernoulli"),
        ({"x": Moments(jnp.ones(()), jnp.full(D, 0.5), jnp.eye(D))}, TypeError, "x: expected rows, got Moments"),
    ],
)
def test_bad_arguments_are_named(change, error, message, dtype):
    family, x, start = _data("bernoulli", dtype)
    arguments = {"optimum": start, "x": x, "family": family} | change
    with pytest.raises(error, match=message):
        refine(**arguments)


@pytest.mark.any_precision
def test_bad_arguments_of_refined_posterior_are_named(dtype):
    family, x, start = _data("bernoulli", dtype)
    with pytest.raises(ValueError, match="max_steps: expected an integer of at least 1"):
        refined_posterior(start, x, family, max_steps=0)
    with pytest.raises(ValueError, match="tolerance: expected a positive"):
        refined_posterior(start, x, family, tolerance=-1.0)
    with pytest.raises(ValueError, match="x: expected 5 columns"):
        refined_posterior(start, x[:, :3], family)
