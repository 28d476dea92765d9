"""Where loadings are 0, as at a collapse, every derivative is that of the formula; and none is NaN where a mean is 0 or
a missing entry overflows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import glmvae.elbo
from glmvae import Affine, AffineModel, Objective, Posterior, Rows, bracket, elbo_exact, elbo_quadratic, fit, posterior
from glmvae.families import Bernoulli, Binomial, Gamma, Gaussian, NegativeBinomial, Poisson

pytestmark = pytest.mark.float64

Q = Posterior(jnp.array([[0.5, -0.2], [0.3, 0.4]]), jnp.array([[0.5, 0.1], [0.1, 0.7]])[None])
X = np.array([[1.0, 3.0, 2.0], [2.0, 1.0, 3.0]])
B = jnp.array([0.1, 0.2, -0.3])
FAMILIES = [Poisson(), Gaussian(), Gamma(), Binomial(5), NegativeBinomial(2.0)]


def curvature(elbo, family):
    """The second derivative in every loading at W = 0, and by differences of the first."""

    def total(loadings):
        return elbo(AffineModel(Affine(loadings, B), Objective(family, 0.9, 0.7)), X, Q).sum()

    gradient = jax.jit(jax.grad(total))
    zero, step = jnp.zeros((3, 2)), 1e-5
    exact = jax.jit(jax.jacfwd(gradient))(zero).reshape(6, 6)
    ends = [np.stack([gradient(s * step * e.reshape(3, 2)).ravel() for e in jnp.eye(6)]) for s in (1, -1)]
    return np.asarray(exact), (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_second_derivatives_at_a_collapse_are_those_of_the_formula(family, monkeypatch):
    for elbo in (elbo_exact, elbo_quadratic):
        exact, differences = curvature(elbo, family)
        np.testing.assert_allclose(exact, differences, atol=1e-6 * np.abs(differences).max())
    if isinstance(family, Gaussian):  # the control: half of what the variance adds, where `maximum` meets a tie
        moments = glmvae.elbo.predictor_moments

        def tied(*args):
            mean, variance = moments(*args)
            return mean, jnp.maximum(variance, 0.0)

        monkeypatch.setattr(glmvae.elbo, "predictor_moments", tied)
        jax.clear_caches()
        exact, differences = curvature(elbo_exact, family)
        jax.clear_caches()
        assert np.abs(exact - differences).max() > 0.1


@pytest.mark.parametrize("family", [Bernoulli(), Binomial(20), NegativeBinomial(2.0), Poisson(), Gaussian()], ids=repr)
def test_a_bracket_has_a_gradient_at_a_mean_of_0(family):
    x = np.repeat([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]], 2, axis=0)
    q = Posterior(np.zeros((8, 1)), np.ones((1, 1, 1)))

    def model(decoder):
        return AffineModel(decoder, Objective(family, dispersion=1.0))

    collapsed = Affine(np.zeros((2, 1)), np.zeros(2))
    exact = jax.grad(lambda d: elbo_exact(model(d), x, q).mean())(collapsed)
    for end in (0, 1):  # all are one value there, so no end has another slope
        found = jax.grad(lambda d, end=end: bracket(model(d), x, q)[end].mean())(collapsed)
        np.testing.assert_allclose(found.intercept, exact.intercept, atol=1e-9, equal_nan=False)
        np.testing.assert_allclose(found.loadings, exact.loadings, atol=1e-9, equal_nan=False)


def test_an_optimum_without_active_units_has_a_bracket_to_differentiate():
    x = np.repeat([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]], 5, axis=0)
    optimum = fit(x, Bernoulli(), 1)
    assert not np.asarray(optimum.loadings).any()
    q = posterior(optimum, x)
    found = jax.grad(lambda d: bracket(AffineModel(d, optimum.model.objective), x, q)[0].mean())(optimum.decoder)
    np.testing.assert_allclose(found.intercept, 0.0, atol=1e-9)


@pytest.mark.parametrize(("family", "far"), [(Poisson(), 1000.0), (Gamma(), -1000.0)], ids=["poisson", "gamma"])
def test_a_missing_entry_that_overflows_has_no_part_in_a_bracket(family, far):
    rows = Rows(np.full((2, 3), 2.0), missing=np.array([[False, False, True]]))

    def lower(loadings, intercept):
        model = AffineModel(Affine(loadings, intercept), Objective(family, dispersion=0.8))
        return bracket(model, rows, Q)[0].sum()

    value, (by_loadings, by_intercept) = jax.value_and_grad(lower, (0, 1))(jnp.ones((3, 2)), jnp.array([0.0, 0.0, far]))
    # What is missing is no matter
    plain, (wanted, _) = jax.value_and_grad(lower, (0, 1))(jnp.ones((3, 2)), jnp.zeros(3))
    np.testing.assert_allclose(value, plain, rtol=1e-12)
    np.testing.assert_allclose(by_loadings, wanted, rtol=1e-9)
    assert np.isfinite(by_intercept).all()
    np.testing.assert_array_equal([*by_loadings[2], by_intercept[2]], 0.0)
