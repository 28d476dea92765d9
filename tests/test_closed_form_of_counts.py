"""The closed form of large counts: moments keep the mean of log p at the null model, so no digit cancels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from glmvae import Rows, diagnose, elbo_profile, elbo_quadratic, expand, fit, jaakkola, merge, moments, posterior
from glmvae.families import Bernoulli, Binomial, Gaussian, Mixed, NegativeBinomial, Poisson

N, D, SIZE, COUNT = 120, 4, 50.0, 1e5
TRIALS = 2 * COUNT
EPS = float(np.finfo(np.float32).eps)
# Of SciPy's log Gammas at 20, by which its log p of counts about 10 is off.
SCIPY = 8 * 42 * float(np.finfo(np.float64).eps)
# Rounding units of the null model's log-likelihood: eigenvalues and means are rounded too.
UNITS = 8


@functools.cache
def counts(level=COUNT):
    """Counts about a level, and successes of twice as many trials; numbers that float32 holds."""
    rng = np.random.default_rng(0)
    eta = 0.05 * rng.normal(size=(N, 2)) @ rng.normal(size=(2, D))
    return rng.poisson(level * np.exp(eta)).astype(float), rng.binomial(int(2 * level), scipy.special.expit(eta)) + 0.0


def mixed(trials=TRIALS):
    return Mixed([(Poisson(), range(D)), (Binomial(trials), range(D, 2 * D))])


def both(level=COUNT):
    return np.concatenate(counts(level), axis=1)


CASES = {
    "Poisson": (lambda: counts()[0], Poisson(), "null"),
    "negative binomial": (lambda: counts()[0], NegativeBinomial(SIZE), "null"),
    "binomial": (lambda: counts()[1], Binomial(TRIALS), "zero"),
    "mixed": (both, mixed(), "null"),
}


# What moments keep ---------------------------------------------------------------------------------------------


def log_pmf(name, x, mean):
    if name == "Poisson":
        return scipy.stats.poisson.logpmf(x, mean)
    if name == "binomial":
        return scipy.stats.binom.logpmf(x, 20, mean / 20)
    return scipy.stats.nbinom.logpmf(x, SIZE, SIZE / (SIZE + mean))


@pytest.mark.parametrize("weighted", [False, True])
def test_the_mean_log_prob_at_the_null_model(weighted, dtype):
    x, y = (part.astype(dtype) for part in counts(10.0))
    weight = np.random.default_rng(1).gamma(2.0, size=N).astype(dtype) if weighted else None
    for name, data, family in (
        ("Poisson", x, Poisson()),
        ("binomial", y, Binomial(20.0)),
        ("negative binomial", x, NegativeBinomial(SIZE)),
    ):
        mean = np.average(data.astype(float), axis=0, weights=weight)
        expected = np.average(log_pmf(name, data.astype(float), mean), axis=0, weights=weight)
        rows = Rows(data, weight=weight)
        first, last = (Rows(data[i], weight=None if weight is None else weight[i]) for i in (slice(50), slice(50, N)))
        for found in (
            moments(rows, family=family),
            merge(moments(first, family=family), moments(last, family=family)),
            moments(lambda parts=(first, last): iter(parts), family=family),
        ):
            np.testing.assert_allclose(found.null_log_prob, expected, rtol=20 * np.finfo(dtype).eps, atol=SCIPY)


def test_columns_without_large_counts_keep_none():
    x = (counts(10.0)[0] > 10).astype(float)
    assert moments(x, family=Bernoulli()).null_log_prob is None
    assert moments(x, family=Gaussian()).null_log_prob is None
    assert moments(x, family=Binomial(2.0)).null_log_prob is None
    assert moments(x).null_log_prob is None
    family = Mixed([(Poisson(), [0, 1]), (Bernoulli(), [2, 3])])
    kept = moments(x, family=family)
    np.testing.assert_array_equal(kept.null_log_prob == 0, [False, False, True, True])
    assert merge(kept, moments(x)).null_log_prob is None


def test_of_residuals_it_is_that_at_the_offset(dtype):
    y, rng = counts(10.0)[1].astype(dtype), np.random.default_rng(2)
    offset, trials = rng.normal(size=(N, D)).astype(dtype), np.full((N, D), 20.0, dtype)
    expected = scipy.stats.binom.logpmf(y, 20, scipy.special.expit(offset.astype(float))).mean(axis=0)
    for family, rows in (
        (Binomial(20.0), Rows(y, offset=offset)),
        (Binomial(None), Rows(y, offset=offset, trials=trials)),
    ):
        cuts = [rows.map(lambda leaf, i=i: leaf[i]) for i in (slice(30), slice(30, N))]
        halves = [moments(cut, family=family) for cut in cuts]
        for found in (moments(rows, family=family), merge(*halves)):
            np.testing.assert_allclose(found.null_log_prob, expected, rtol=20 * np.finfo(dtype).eps, atol=SCIPY)


@pytest.mark.parametrize("phi", [1.0, 1.7])
def test_l_hat_is_the_same_without_it(phi, dtype):
    x, y = (part.astype(dtype) for part in counts(10.0))
    offset, trials = np.linspace(-1, 1, D, dtype=dtype)[None], np.full((N, D), 20.0, dtype)
    for data, family, at in (
        (x, Poisson(), "null"),
        (y, Binomial(20.0), "null"),
        (both(10.0).astype(dtype), mixed(20.0), "null"),
        (Rows(y, offset=offset), Binomial(20.0), "zero"),
        (Rows(y, offset=offset, trials=trials), Binomial(None), "zero"),
    ):
        known = moments(data, family=family)
        assert known.null_log_prob is not None
        values = [
            fit(m, family, 2, dispersion=phi, expand_at=at).elbo_taylor
            for m in (known, known._replace(null_log_prob=None))
        ]
        np.testing.assert_allclose(*values, rtol=200 * np.finfo(dtype).eps)


# In single precision -------------------------------------------------------------------------------------------


def values(x, family, at, strip=False):
    """All that is computed from moments, and by rows."""
    m = moments(x, family=family)
    halves = [moments(part, family=family) for part in (x[: N // 3], x[N // 3 :])]
    batches = moments(lambda: iter([x[:7], x[7:8], x[8:]]), family=family)
    found = {"fit": m, "merged": merge(*halves), "batches": batches}
    if strip:
        found = {name: each._replace(null_log_prob=None) for name, each in found.items()}
    optima = {name: fit(each, family, 2, expand_at=at) for name, each in found.items()}
    result = {name: optimum.elbo_taylor for name, optimum in optima.items()}
    best = optima["fit"]
    result["profile"] = elbo_profile(best.model, found["fit"], expand_at=at)
    result["jit"] = jax.jit(lambda x: fit(moments(x, family=family), family, 2, expand_at=at).elbo_taylor)(x)
    result["rows"] = elbo_quadratic(best.model, x, posterior(best, x), expand_at=at).mean()
    result["collapsed"] = diagnose(x, family, 2).collapse_elbo
    return {name: float(value) for name, value in result.items()}


@pytest.mark.float64
@pytest.mark.parametrize("name", ["Poisson", "binomial"])
def test_every_value_in_single_precision(name):
    x, family, at = CASES[name][0](), *CASES[name][1:]
    exact = values(jnp.asarray(x), family, at)
    single = values(jnp.asarray(x, jnp.float32), family, at)
    allowed = UNITS * EPS * abs(exact["collapsed"])
    off = {key: abs(single[key] - exact[key]) for key in exact}
    assert max(off.values()) <= allowed, off
    lost = values(jnp.asarray(x, jnp.float32), family, at, strip=True)  # K and the rest apart
    assert max(abs(lost[key] - exact[key]) for key in ("fit", "merged", "batches", "profile")) > 10 * allowed


@pytest.mark.float64
def test_trials_an_entry_in_single_precision():
    def value(dtype, strip=False):
        rows = Rows(counts()[1].astype(dtype), trials=np.full((N, D), TRIALS, dtype))
        m = moments(rows, family=Binomial(None))
        return float(fit(m._replace(null_log_prob=None) if strip else m, Binomial(None), 2).elbo_taylor)

    exact = value(np.float64)
    allowed = UNITS * EPS * 500
    assert abs(value(np.float32) - exact) <= allowed
    assert abs(value(np.float32, strip=True) - exact) > 10 * allowed


@pytest.mark.float64
def test_the_null_model_beside_a_tightened_optimum_in_single_precision():
    def value(dtype, strip=False):
        data, family = moments(both().astype(dtype), family=mixed()), mixed()
        data = data._replace(family=None, null_log_prob=None if strip else data.null_log_prob)
        return float(jaakkola._null(data, family, jnp.ones((), dtype)).value)

    exact = value(np.float64)
    assert abs(value(np.float32) - exact) <= UNITS * EPS * abs(exact)
    assert abs(value(np.float32, strip=True) - exact) > 10 * UNITS * EPS * abs(exact)


def test_the_expansion_of_a_row_is_log_prob_at_its_point(dtype):
    for name in CASES:
        x, family, _ = CASES[name][0]().astype(dtype), *CASES[name][1:]
        eta0 = jnp.asarray(family.null_predictor(x.mean(axis=0)))
        q = expand(x, family, expand_at=eta0)
        at_eta0 = q.constant - 0.5 * q.weight * (q.response - eta0) ** 2
        expected = family.log_prob(x, eta0)
        # what rounding of eta0 does to the mean, as in tests/test_large_counts.py
        size = np.abs(expected) + q.weight * (q.response - eta0) ** 2 + np.abs(x - family.mean(eta0)) * (1 + abs(eta0))
        allowed = 8 * float(jnp.finfo(dtype).eps) * size
        assert np.all(np.abs(at_eta0 - expected) <= allowed), name


# Derivatives in the weights ------------------------------------------------------------------------------------


@pytest.mark.float64
def test_derivatives_in_weights_that_are_0_too():
    x = counts(10.0)[0][:6]
    weight = jnp.asarray([1.0, 2.0, 0.0, 1.0, 3.0, 0.5])

    def parts(weight):
        return moments(Rows(x, weight=weight), family=Poisson())

    known, slopes = parts(weight), jax.jacobian(parts)(weight)
    total, centred = float(jnp.sum(weight)), x - np.asarray(known.mean)
    expected = {
        "mean": centred.T,
        "covariance": np.einsum("ni,nj->ijn", centred, centred) - np.asarray(known.covariance)[..., None],
        "base_statistic": -scipy.special.gammaln(x + 1).T - np.asarray(known.base_statistic)[:, None],
        "null_log_prob": log_pmf("Poisson", x, known.mean).T - np.asarray(known.null_log_prob)[:, None],
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(slopes, name), value / total, rtol=1e-11, atol=1e-11, err_msg=name)

    def bound(weight):
        return fit(parts(weight), Poisson(), 1, expand_at="null").elbo_taylor

    slope, step = jax.grad(bound)(weight), 1e-6
    found = (-3 * bound(weight) + 4 * bound(weight.at[2].add(step)) - bound(weight.at[2].add(2 * step))) / (2 * step)
    np.testing.assert_allclose(slope[2], found, rtol=1e-6)


@pytest.mark.float64
def test_a_weight_of_0_off_the_plane_of_the_others_has_its_derivative():
    """The others fill two of four dimensions: of the eigenvalues that are 0 one rises with the weight."""
    rng = np.random.default_rng(0)
    x = np.vstack([rng.normal(size=(30, 2)) @ rng.normal(size=(2, 4)), 2 * rng.normal(size=(1, 4))])
    weight = jnp.asarray(np.r_[np.ones(30), 0.0])

    def value(weight):
        optimum = fit(Rows(x, weight=weight), Gaussian(), 1)
        return jnp.stack([optimum.elbo_taylor, optimum.dispersion])

    step = 1e-6
    slope = (value(weight.at[-1].set(step)) - value(weight)) / step
    found = jax.jacrev(value)(weight)[:, -1]
    np.testing.assert_allclose(found, slope, rtol=1e-3)
    assert slope[1] > 0.1  # without that eigenvalue it falls
