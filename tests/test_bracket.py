"""The bracket encloses the exact ELBO, whatever the decoder, the posterior and beta, and is not too wide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmvae import Affine, AffineModel, Objective, Posterior, Rows, bracket, elbo_exact, kl_divergence
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

N, D, K = 7, 6, 2
LOGISTIC = {
    "bernoulli": (Bernoulli(), lambda rng: rng.random((N, D))),
    "scaled": (Bernoulli(activation_scale=2.0), lambda rng: (rng.random((N, D)) < 0.5).astype(float)),
    "binomial": (Binomial(30), lambda rng: rng.integers(0, 31, (N, D)).astype(float)),
    "negative binomial": (NegativeBinomial(2.5), lambda rng: rng.poisson(3.0, (N, D)).astype(float)),
}
CLOSED = {
    "gaussian": (Gaussian(), lambda rng: rng.normal(size=(N, D))),
    "poisson": (Poisson(), lambda rng: rng.poisson(2.0, (N, D)).astype(float)),
    "gamma": (Gamma(), lambda rng: rng.gamma(2.0, size=(N, D))),
    "exponential": (Exponential(), lambda rng: rng.gamma(1.0, size=(N, D))),
}
CASES = LOGISTIC | CLOSED
# The reference is a quadrature with this relative error (its module says so); float32 data are judged in float64.
QUADRATURE = 1e-9


def _draw(name, seed, size):
    rng = np.random.default_rng(seed)
    family, data = CASES[name]
    root = rng.normal(size=(N, K, K)) * 0.5
    covariance = root @ np.swapaxes(root, 1, 2) + 0.05 * np.eye(K)
    loadings, intercept = size * rng.normal(size=(D, K)), size * rng.normal(size=D)
    return family, loadings, intercept, data(rng), rng.normal(size=(N, K)), covariance


def _model(family, loadings, intercept, beta=1.0, phi=1.0):
    return AffineModel(Affine(loadings, intercept), Objective(family, beta, phi))


def _both(name, seed, size, beta, phi, dtype):
    """Bracket in the precision of the run; exact ELBO of the very same numbers in float64."""
    family, *arrays = _draw(name, seed, size)
    loadings, intercept, x, mean, covariance = arrays = [np.asarray(a, dtype) for a in arrays]
    beta, phi = float(np.asarray(beta, dtype)), float(np.asarray(phi, dtype))
    lower, upper = bracket(_model(family, loadings, intercept, beta, phi), x, Posterior(mean, covariance))
    assert lower.dtype == upper.dtype == dtype
    with jax.enable_x64(True):
        loadings, intercept, x, mean, covariance = (np.asarray(a, np.float64) for a in arrays)
        exact = elbo_exact(_model(family, loadings, intercept, beta, phi), x, Posterior(mean, covariance))
        return np.asarray(lower, float), np.asarray(upper, float), np.asarray(exact)


@pytest.mark.parametrize("name", sorted(CASES))
@given(
    seed=st.integers(0, 2**31),
    size=st.sampled_from([1e-6, 1e-2, 0.5, 2.0, 6.0]),
    beta=st.sampled_from([1e-3, 1.0, 20.0]),
    phi=st.sampled_from([1.0, 0.3]),
)
def test_it_encloses_the_exact_elbo(name, seed, size, beta, phi, dtype):
    if name not in LOGISTIC and size > 2:
        size = 2.0  # exp of a hundred says nothing about rounding
    lower, upper, exact = _both(name, seed, size, beta, phi, dtype)
    slack = QUADRATURE * np.abs(exact)
    assert np.all(lower <= exact + slack)
    assert np.all(exact <= upper + slack)


@pytest.mark.parametrize("name", sorted(LOGISTIC))
@pytest.mark.float64
def test_its_width_is_at_most_an_eighth_of_the_variance(name, dtype):
    family, loadings, _, x, _, covariance = _draw(name, 3, 1.0)
    lower, upper, exact = _both(name, 3, 1.0, 1.0, 1.0, dtype)
    trials = np.asarray(x + family.size if isinstance(family, NegativeBinomial) else family.trials)
    scale = float(family.activation_scale)
    variance = scale**2 * np.einsum("dk,nkl,dl->nd", loadings, covariance, loadings)
    widest = np.sum(trials * variance / 8, axis=1)
    assert np.all(upper - lower <= widest * (1 + 1e-9))
    # Both ends are strict bounds here, so the middle would fail as either of them.
    middle = 0.5 * (lower + upper)
    assert np.any(middle > exact) or np.any(middle < exact)
    assert np.all(lower < exact)
    assert np.all(exact < upper)


@pytest.mark.parametrize("name", sorted(CLOSED))
@pytest.mark.float64
def test_closed_forms_are_enclosed_tightly(name, dtype):
    lower, upper, exact = _both(name, 5, 0.5, 1.0, 1.0, dtype)
    assert np.all(upper - lower <= 1e-10 * (1 + np.abs(exact)))
    assert np.all(upper > lower)


@pytest.mark.float64
def test_it_is_tight_where_the_predictor_does_not_vary(dtype):
    q = Posterior(jnp.zeros((1, 1)), jnp.eye(1)[None])
    lower, upper = bracket(_model(Bernoulli(), [[0.0], [0.0]], [0.4, -3.0]), [[1.0, 0.0]], q)
    np.testing.assert_allclose(lower, upper, rtol=1e-13)


def test_corollary_1_beats_jensen_near_zero_and_loses_far_out(dtype):
    # one unit of loading w at eta = 0: Jensen's gap is w^2 / 8, Corollary 1's w^4 / 64
    q = Posterior(np.zeros((1, 1), dtype), np.ones((1, 1, 1), dtype))
    x, zero = np.ones((1, 1), dtype), np.zeros(1, dtype)
    _, near = bracket(_model(Bernoulli(), np.full((1, 1), 0.4, dtype), zero), x, q)
    assert near[0] < -np.log(2) - 0.4**2 / 8 + 0.4**4 / 32
    _, far = bracket(_model(Bernoulli(), np.full((1, 1), 10.0, dtype), zero), x, q)
    np.testing.assert_allclose(far[0], -np.log(2), rtol=1e-4)


@pytest.mark.float64
def test_mixed_columns_are_the_sum_of_their_members(dtype):
    members = [(Bernoulli(), [0, 3, 4]), (Poisson(), [1, 2, 5])]
    family = Mixed(members)
    rng = np.random.default_rng(0)
    x = np.stack([rng.random(N) if j in (0, 3, 4) else rng.poisson(2.0, N) for j in range(D)], axis=1)
    loadings, intercept = rng.normal(size=(D, K)), rng.normal(size=D)
    q = Posterior(jnp.asarray(rng.normal(size=(N, K))), jnp.eye(K)[None])
    model = _model(family, loadings, intercept)
    lower, upper = bracket(model, x, q)
    exact = elbo_exact(model, x, q)
    assert np.all(lower <= exact)
    assert np.all(exact <= upper)
    everything = sum(np.asarray(bracket(_model(f, loadings[c], intercept[c]), x[:, c], q)[0]) for f, c in members)
    np.testing.assert_allclose(lower, everything + kl_divergence(q), rtol=1e-10)


@pytest.mark.parametrize("name", ["bernoulli", "poisson"])
def test_ends_that_overflow_are_infinite(name, dtype):
    """And enclose: a predictor of 1e30, a rate of exp(1000), a variance beyond the largest number."""
    family, loadings, intercept, x, mean, covariance = _draw(name, 1, 1.0)
    x, mean, covariance = (np.asarray(a, dtype) for a in (x, mean, covariance))
    huge = float(np.finfo(dtype).max)
    for size, shift in ((1e30, 0.0), (1.0, 1000.0), (1.0, -1e30), (huge / 100, huge / 100)):
        model = _model(family, np.asarray(size * loadings, dtype), np.asarray(intercept + shift, dtype))
        lower, upper = bracket(model, x, Posterior(mean, covariance))
        assert not np.isnan(lower).any()
        assert not np.isnan(upper).any()
        assert np.all(lower <= upper)
    if name == "poisson":
        model = _model(family, np.asarray(loadings, dtype), np.asarray(intercept + 1000.0, dtype))
        lower, _ = bracket(model, x, Posterior(mean, covariance))
        assert np.all(lower == -np.inf)


@pytest.mark.any_precision
def test_large_counts_in_float32_are_enclosed_closely():
    """Log p is a small difference of terms of the size of n log n."""
    rng = np.random.default_rng(0)
    x = rng.poisson(1e5, size=(N, D)).astype(np.float32)
    loadings, intercept = np.full((D, 1), 1e-3, np.float32), np.full(D, np.log(1e5), np.float32)
    q = Posterior(np.zeros((N, 1), np.float32), np.ones((1, 1, 1), np.float32))
    for family, shift in ((Poisson(), 0.0), (Binomial(200_000), -np.log(1e5))):
        model = _model(family, loadings, (intercept + shift).astype(np.float32))
        lower, upper = bracket(model, x, q)
        with jax.enable_x64(True):
            wide = [np.asarray(a, np.float64) for a in (model.loadings, model.intercept, x, *q)]
            exact = np.asarray(elbo_exact(_model(family, *wide[:2]), wide[2], Posterior(*wide[3:])))
        assert np.all(lower <= exact)
        assert np.all(exact <= upper)
        # an eta of 11.5 in float32 is known to 1e-6, and with it log p to |x - mu| 1e-6 and rounding of some 1e-2
        assert np.max(upper - lower) < 0.2


@pytest.mark.any_precision
def test_bad_values_under_jit_are_nan_and_not_infinite(dtype):
    family, loadings, intercept, x, mean, covariance = _draw("bernoulli", 1, 1.0)
    x[2, 3] = 7.0
    for end in jax.jit(bracket)(_model(family, loadings, intercept), x, Posterior(mean, covariance)):
        assert np.isnan(end[2])
        assert np.isfinite(np.delete(np.asarray(end), 2)).all()


@pytest.mark.any_precision
def test_what_rows_bring(dtype):
    """A missing entry is none, and an offset part of the predictor."""
    family, loadings, intercept, x, mean, covariance = _draw("binomial", 2, 1.0)
    rng = np.random.default_rng(1)
    missing, offset = rng.random(x.shape) < 0.3, rng.normal(size=(N, 1))
    model, q = _model(family, loadings, intercept), Posterior(mean, covariance)
    rows = Rows(np.where(missing, np.nan, x), missing=missing, offset=offset)
    lower, upper = bracket(model, rows, q)
    exact = np.asarray(elbo_exact(model, rows, q))
    assert np.all(lower <= exact)
    assert np.all(exact <= upper)
    assert not np.any((lower <= elbo_exact(model, x, q)) & (upper >= elbo_exact(model, x, q)))


def _softplus(theta):
    return jnp.logaddexp(theta, 0.0)


def _remainder(step, start, x, dispersion):
    """Of exp, a Poisson family of one's own; the third derivative lies between those at the ends."""
    cubes = [-jnp.exp(start + end) * step**3 / 6 for end in (0.0, step)]
    return jnp.minimum(*cubes) * (1 + 1e-6), jnp.maximum(*cubes) * (1 + 1e-6)


def _expected_remainder(mean, variance, start, x, dispersion):
    value = -jnp.exp(start) * (jnp.exp(mean + 0.5 * variance) - 1 - mean - 0.5 * (mean**2 + variance))
    return value - 1e-3, value + 1e-3


@pytest.mark.any_precision
def test_a_family_of_ones_own(dtype):
    q = Posterior(np.zeros((1, 1)), np.eye(1)[None])
    with pytest.raises(TypeError, match="family: no bounds are known for CustomFamily"):
        bracket(_model(CustomFamily(_softplus), [[1.0]], [0.0]), [[1.0]], q)
    mixed = Mixed([(Bernoulli(), [0]), (CustomFamily(_softplus), [1])])
    with pytest.raises(TypeError, match="family: no bounds are known for CustomFamily"):
        bracket(_model(mixed, [[1.0], [1.0]], [0.0, 0.0]), [[1.0, 1.0]], q)
    # with a remainder it is enclosed at the mean of eta
    own = CustomFamily(jnp.exp, limits=Support(0.0), remainder=_remainder, expected_remainder=_expected_remainder)
    lower, upper = bracket(_model(own, [[0.7]], [0.3]), [[2.0]], q)
    exact = elbo_exact(_model(own, [[0.7]], [0.3]), [[2.0]], q)
    assert lower[0] < exact[0] < upper[0]
    np.testing.assert_allclose(upper - lower, 2e-3, rtol=1e-6)


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": [[1.0]]}, "x: expected 2 columns"),
        ({"x": [[1.0, np.nan]]}, "x: "),
        ({"posterior": Posterior(np.zeros((1, 2)), np.eye(2)[None])}, "posterior.mean: expected 1 columns"),
    ],
)
def test_bad_arguments_are_named(change, message):
    q = Posterior(np.zeros((1, 1)), np.eye(1)[None])
    arguments = {"model": _model(Bernoulli(), [[1.0], [1.0]], [0.0, 0.0]), "x": [[1.0, 0.0]], "posterior": q, **change}
    with pytest.raises(ValueError, match=message):
        bracket(**arguments)
