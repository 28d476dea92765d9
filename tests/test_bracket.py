"""The bracket encloses the exact ELBO, whatever the decoder, the posterior and beta, and is not too wide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmvae import Posterior, elbo_exact, kl_divergence
from glmvae.bracket import bracket
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


def _both(name, seed, size, beta, phi, dtype):
    """Bracket in the precision of the run; exact ELBO of the very same numbers in float64."""
    family, *arrays = _draw(name, seed, size)
    loadings, intercept, x, mean, covariance = (jnp.asarray(np.asarray(a, dtype)) for a in arrays)
    lower, upper = bracket(
        loadings, intercept, x, Posterior(mean, covariance), family, beta=beta, dispersion=jnp.asarray(phi, dtype)
    )
    assert lower.dtype == upper.dtype == dtype
    beta, phi = float(np.asarray(beta, dtype)), float(np.asarray(phi, dtype))
    with jax.enable_x64(True):
        wide = [np.asarray(a, np.float64) for a in (loadings, intercept, x, mean, covariance)]
        q = Posterior(jnp.asarray(wide[3]), jnp.asarray(wide[4]))
        exact = elbo_exact(*(jnp.asarray(a) for a in wide[:3]), q, family, beta=beta, dispersion=phi)
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
    q = Posterior(jnp.zeros((1, 1)), jnp.eye(1))
    lower, upper = bracket([[0.0], [0.0]], [0.4, -3.0], [[1.0, 0.0]], q, Bernoulli())
    np.testing.assert_allclose(lower, upper, rtol=1e-13)


def test_corollary_1_beats_jensen_near_zero_and_loses_far_out(dtype):
    # one unit of loading w at eta = 0: Jensen's gap is w^2 / 8, Corollary 1's w^4 / 64
    q = Posterior(jnp.zeros((1, 1), dtype), jnp.eye(1, dtype=dtype))
    _, near = bracket(jnp.full((1, 1), 0.4, dtype), jnp.zeros(1, dtype), jnp.ones((1, 1), dtype), q, Bernoulli())
    assert near[0] < -np.log(2) - 0.4**2 / 8 + 0.4**4 / 32
    _, far = bracket(jnp.full((1, 1), 10.0, dtype), jnp.zeros(1, dtype), jnp.ones((1, 1), dtype), q, Bernoulli())
    np.testing.assert_allclose(far[0], -np.log(2), rtol=1e-4)


@pytest.mark.float64
def test_mixed_columns_are_the_sum_of_their_members(dtype):
    members = [(Bernoulli(), [0, 3, 4]), (Poisson(), [1, 2, 5])]
    family = Mixed(members)
    rng = np.random.default_rng(0)
    x = np.stack([rng.random(N) if j in (0, 3, 4) else rng.poisson(2.0, N) for j in range(D)], axis=1)
    loadings, intercept = rng.normal(size=(D, K)), rng.normal(size=D)
    q = Posterior(jnp.asarray(rng.normal(size=(N, K))), jnp.eye(K))
    lower, upper = bracket(loadings, intercept, x, q, family)
    exact = elbo_exact(loadings, intercept, x, q, family)
    assert np.all(lower <= exact)
    assert np.all(exact <= upper)
    everything = sum(np.asarray(bracket(loadings[c], intercept[c], x[:, c], q, f)[0]) for f, c in members)
    np.testing.assert_allclose(lower, everything + kl_divergence(q), rtol=1e-10)


def _softplus(theta):
    return jnp.logaddexp(theta, 0.0)


@pytest.mark.any_precision
def test_a_family_without_bounds_is_refused():
    q = Posterior(jnp.zeros((1, 1)), jnp.eye(1))
    with pytest.raises(TypeError, match="family: no bounds are known"):
        bracket([[1.0]], [0.0], [[1.0]], q, CustomFamily(_softplus))


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loadings": [[1.0]]}, "loadings: expected 2 rows"),
        ({"intercept": [1.0]}, r"intercept: expected shape \(2,\)"),
        ({"x": [[1.0, np.nan]]}, "x: "),
        ({"beta": 0.0}, "beta: expected a positive"),
        ({"dispersion": -1.0}, "dispersion: expected a positive"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"loadings": [[1.0], [1.0]], "intercept": [0.0, 0.0], "x": [[1.0, 0.0]], "beta": 1.0, "dispersion": 1.0}
    arguments |= change
    q = Posterior(jnp.zeros((1, 1)), jnp.eye(1))
    with pytest.raises(ValueError, match=message):
        bracket(posterior=q, family=Bernoulli(), **arguments)
