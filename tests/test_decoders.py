"""The ELBO of any decoder: its expansion in z by hand and beside that in eta, Monte Carlo beside the exact one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import counted
from dense_reference import kl_divergence as dense_kl
from elbo_cases import RTOL, UNITS, float32_keeps, setting
from flax import nnx
from tables import all_refused

from glmvae import (
    Affine,
    AffineModel,
    Objective,
    Posterior,
    Rows,
    affine_posterior,
    elbo_monte_carlo,
    elbo_quadratic,
    elbo_taylor,
    optimal_posterior,
)
from glmvae.families import Bernoulli, Gaussian, Poisson

# L-hat in z ------------------------------------------------------------------------------------------------


def curved(z):
    """A decoder that bends, R^2 -> R^4."""
    return jnp.stack([jnp.tanh(z[0] + z[1]), z[0] * z[1], jnp.sin(z[0]) - z[1], 0.3 * z[0] ** 2 + 0.5 * z[1]])


@functools.cache
def value_gradient_and_hessian(family):
    """Of log p(x | curved(z)) in z, by reverse mode twice."""

    def f(z, row):
        return jnp.sum(family.log_prob(row, curved(z), 0.8))

    return jax.jit(lambda z, row: (f(z, row), jax.grad(f)(z, row), jax.jacrev(jax.jacrev(f))(z, row)))


@pytest.mark.parametrize("at", float32_keeps(["rows"], ["mean", "shared", "rows"]))
@pytest.mark.parametrize("name", float32_keeps(["bernoulli"], ["gaussian", "bernoulli", "poisson", "gamma"]))
def test_taylor_equals_25_by_hand(name, at, dtype):
    s = setting(name, dtype, beta=0.6)
    z0 = {
        "mean": None,
        "shared": np.asarray([0.2, -0.1], dtype),
        "rows": np.random.default_rng(5).normal(size=s.q.mean.shape).astype(dtype),
    }[at]
    got = elbo_taylor(curved, s.x, s.q, s.objective, z0=z0)
    rows = s.q.mean if z0 is None else np.broadcast_to(z0, s.q.mean.shape)
    derivatives = value_gradient_and_hessian(s.family)
    printed = []
    for i in range(4):
        step, covariance = s.q.mean[i] - rows[i], s.q.covariance[i]
        value, gradient, h = (np.asarray(a) for a in derivatives(rows[i], s.x[i]))
        first = value + gradient @ step + 0.5 * np.trace(h @ covariance)
        kl = 0.6 * dense_kl(s.q.mean[i : i + 1], covariance)[0]
        np.testing.assert_allclose(got[i], first + 0.5 * step @ h @ step - kl, rtol=RTOL[str(dtype)])
        printed.append(float(first - kl))
    if at != "mean":  # (4) as printed leaves the quadratic in the mean out
        assert np.abs(np.asarray(got[:4]) - printed).max() > 1e-2


MEETING = ["gaussian", "bernoulli", "binomial_columns", "poisson", "bernoulli_tanh"]


@pytest.mark.parametrize("name", float32_keeps(["bernoulli_tanh"], [*MEETING, "gamma"]))
def test_taylor_and_quadratic_agree_where_the_decoder_meets_eta0(name, dtype):
    s = setting(name, dtype, beta=0.6)
    z0 = np.asarray([0.4, -0.3], dtype)
    taylor = elbo_taylor(s.model.decoder, s.x, s.q, s.objective, z0=z0)
    at_z0 = np.asarray(elbo_quadratic(s.model, s.x, s.q, expand_at=s.model.decoder(z0)))
    elsewhere = np.asarray(elbo_quadratic(s.model, s.x, s.q))
    rtol = RTOL[str(dtype)]
    if name != "gamma":
        np.testing.assert_allclose(taylor, at_z0, rtol=rtol)
    else:  # the curvature depends on x: (25) has the observed one, the form in eta its expectation
        assert np.abs(taylor - at_z0).max() > 1e-2
    if name == "gaussian":
        np.testing.assert_allclose(taylor, elsewhere, rtol=rtol)
    else:
        assert np.abs(taylor - elsewhere).max() > 1e-2


@pytest.mark.parametrize("name", float32_keeps(["poisson"], ["gaussian", "bernoulli_tanh", "poisson"]))
def test_optimal_posterior_is_stationary_and_affine_posterior_for_an_affine_decoder(name, dtype):
    s = setting(name, dtype, beta=0.6)
    decoder, z0 = s.model.decoder, np.asarray([0.4, -0.3], dtype)
    q = optimal_posterior(decoder, s.x, s.objective, z0=z0)
    best = affine_posterior(s.model, s.x, expand_at=decoder(z0))
    rtol = 10 * RTOL[str(dtype)]
    np.testing.assert_allclose(q.mean, best.mean, rtol=rtol, atol=rtol * np.abs(best.mean).max())
    np.testing.assert_allclose(q.covariance, np.broadcast_to(best.covariance, q.covariance.shape), rtol=rtol, atol=rtol)

    def objective(mean, covariance):
        return jnp.sum(elbo_taylor(decoder, s.x, Posterior(mean, covariance), s.objective, z0=z0))

    slope = jax.jit(jax.grad(objective, argnums=(0, 1)))
    scale = rtol * 10 * (1 + np.abs(s.x).max())
    for gradient in slope(*q):
        np.testing.assert_allclose(gradient, 0.0, atol=scale)
    assert np.abs(slope(q.mean + 1.0, q.covariance)[0]).max() > 10 * scale
    assert np.abs(slope(q.mean, 0.2 * q.covariance)[1]).max() > 10 * scale


@pytest.mark.any_precision
def test_optimal_posterior_of_a_relu_net_beats_others(dtype):
    """Piecewise linear: H = J' diag(-w) J is negative semi-definite, so (5), (6) are a maximum."""
    s = setting("bernoulli", dtype)
    objective = Objective(Bernoulli(), beta=0.6)
    inner = jnp.asarray(np.random.default_rng(3).normal(size=(5, 2)), dtype)
    outer = jnp.asarray(np.random.default_rng(4).normal(size=(4, 5)), dtype)

    def net(z):
        return outer @ jax.nn.relu(inner @ z + 0.5) + s.model.intercept

    z0 = jnp.asarray([0.3, 0.2], dtype)
    q = optimal_posterior(net, s.x, objective, z0=z0)
    best = elbo_taylor(net, s.x, q, objective, z0=z0)
    for other in (Posterior(q.mean + 0.1, q.covariance), Posterior(q.mean, 0.8 * q.covariance)):
        assert np.all(elbo_taylor(net, s.x, other, objective, z0=z0) < best)


@pytest.mark.any_precision
def test_where_l_hat_has_no_maximum_the_row_is_nan(dtype):
    def bowl(z):  # log p rises to all sides of z = 0 where x = 1
        return jnp.sum(z**2)[None]

    q = optimal_posterior(bowl, np.array([[1.0], [0.0]], dtype), Objective(Bernoulli(), 0.1), z0=np.zeros(2, dtype))
    assert np.isnan(q.mean[0]).all()
    assert np.isnan(q.covariance[0]).all()
    assert np.isfinite(q.covariance[1]).all()


# Decoders of two kinds -------------------------------------------------------------------------------------


def partial_affine(loadings, intercept, z):
    return loadings @ z + intercept


class Net(nnx.Module):
    def __init__(self, loadings, intercept):
        self.loadings, self.intercept = nnx.Param(jnp.asarray(loadings)), nnx.Param(jnp.asarray(intercept))

    def __call__(self, z):
        return self.loadings[...] @ z + self.intercept[...]


@pytest.mark.any_precision
def test_decoders_of_every_kind_are_one(dtype):
    """And a new one of a kind compiles nothing."""
    s = setting("binomial", dtype, fields=("offset", "missing"))
    kinds = {
        "affine": Affine,
        "partial": lambda w, b: jax.tree_util.Partial(partial_affine, w, b),
        "module": Net,
        "function": lambda w, b: lambda z: jnp.asarray(w) @ z + jnp.asarray(b),
    }

    def everything(decoder):
        z0 = np.zeros(UNITS, dtype)
        return jax.tree.leaves(
            (
                elbo_taylor(decoder, s.rows, s.q, s.objective),
                optimal_posterior(decoder, s.rows, s.objective, z0=z0),
                elbo_monte_carlo(jax.random.key(0), decoder, s.rows, s.q, s.objective, num_samples=5),
            )
        )

    w, b = np.asarray(s.model.loadings), np.asarray(s.model.intercept)
    found = {name: everything(make(w, b)) for name, make in kinds.items()}
    for name, make in kinds.items():
        for mine, reference in zip(found[name], found["affine"], strict=True):
            np.testing.assert_allclose(mine, reference, rtol=1e-9, atol=1e-9, err_msg=name)
        with counted() as compiled:
            others = everything(make(2 * w, b + 1))
        assert compiled.number == 0, name
        assert np.abs(others[0] - found[name][0]).max() > 0.1


@pytest.mark.any_precision
def test_draws_that_overflow_are_minus_infinity_for_every_kind_of_decoder():
    """All of the draws, or some of them; what is no number stays none."""
    q = Posterior(np.zeros((1, 1)), np.eye(1)[None])
    for slope, intercept, expected in ((0.0, 2000.0, -np.inf), (1000.0, 700.0, -np.inf), (np.nan, 0.0, np.nan)):
        w, b = jnp.full((1, 1), slope), jnp.full(1, intercept)
        for decoder in (jax.tree_util.Partial(partial_affine, w, b), lambda z, w=w, b=b: w @ z + b):
            value, error = elbo_monte_carlo(jax.random.key(0), decoder, [[1.0]], q, Poisson(), num_samples=5)
            np.testing.assert_array_equal(value, [expected])
            assert np.isnan(error).all()


@pytest.mark.any_precision
def test_gradients_in_the_decoder(dtype):
    """Of an Affine, and through what a function closes over, in and out of jit."""
    s = setting("poisson", dtype, size=0.3)
    w, b = jnp.asarray(s.model.loadings), jnp.asarray(s.model.intercept)

    def values(decoder):
        taylor = elbo_taylor(decoder, s.x, s.q, s.objective)
        return jnp.sum(taylor + elbo_monte_carlo(jax.random.key(0), decoder, s.x, s.q, s.objective, num_samples=3)[0])

    expected = jax.jit(jax.grad(lambda w: values(Affine(w, b))))(w)
    closed = jax.grad(lambda w: values(lambda z: w @ z + b))
    np.testing.assert_allclose(jax.jit(closed)(w), expected, rtol=1e-9)
    np.testing.assert_allclose(closed(w), expected, rtol=1e-9)
    step = 1e-6 * np.ones_like(w)
    slope = (values(Affine(w + step, b)) - values(Affine(w - step, b))) / 2e-6
    np.testing.assert_allclose(np.sum(expected), slope, rtol=1e-6)


@pytest.mark.parametrize("name", float32_keeps(["poisson"], ["binomial_columns", "poisson"]))
def test_jit_vmap_and_eager_agree(name, dtype):
    s = setting(name, dtype)
    x, z0, key = jnp.asarray(s.x), jnp.asarray([0.1, 0.2], dtype), jax.random.key(0)

    def everything(beta, x, q, model):
        objective = model.objective.with_beta(beta)
        return (
            elbo_taylor(model.decoder, x, q, objective),
            optimal_posterior(model.decoder, x, objective, z0=z0),
            elbo_monte_carlo(key, model.decoder, x, q, objective, num_samples=3),
        )

    betas = jnp.asarray([0.5, 2.0], dtype)
    mapped = jax.jit(jax.vmap(everything, in_axes=(0, None, None, None)))(betas, x, s.q, s.model)
    jitted = jax.jit(everything)(betas[0], x, s.q, s.model)
    eager = [everything(beta, x, s.q, s.model) for beta in betas]
    for a, b, one, both in zip(*map(jax.tree.leaves, (*eager, jitted, mapped)), strict=True):
        for value, other in ((one, a), (both[0], a), (both[1], b)):
            scale = RTOL[str(dtype)] * (1 + np.abs(other).max())
            np.testing.assert_allclose(value, other, rtol=RTOL[str(dtype)], atol=scale)


@pytest.mark.any_precision
def test_float32_stays_float32(dtype):
    s = setting("bernoulli", np.float32, beta=np.float64(0.5))
    wide = np.asarray(s.model.loadings, np.float64)
    for decoder in (s.model.decoder, lambda z: wide @ z):
        value, error = elbo_monte_carlo(jax.random.key(0), decoder, s.x, s.q, s.objective, num_samples=2)
        q = optimal_posterior(decoder, s.x, s.objective, z0=np.zeros(UNITS, np.float32))
        leaves = (value, error, *q, elbo_taylor(decoder, s.x, s.q, s.objective))
        assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}


# Errors ----------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_bad_arguments_are_named():
    x, q, key = np.zeros((2, 3)), Posterior(np.zeros((2, 1)), np.eye(1)[None]), jax.random.key(0)

    def three(z):
        return jnp.zeros(3)

    affine, narrow = Affine(np.zeros((3, 1)), np.zeros(3)), Objective(Gaussian(), 1.0, np.ones(2))
    model, known = AffineModel(affine, Bernoulli()), Rows(x, covariates=np.ones((2, 1)))
    all_refused(
        [
            (lambda: elbo_taylor(np.zeros((3, 1)), x, q, Bernoulli()), TypeError, "decoder: expected a function"),
            (lambda: elbo_taylor(model, x, q, Bernoulli()), TypeError, r"decoder: .*pass its \.decoder"),
            (lambda: elbo_taylor(lambda z: z, x, q, Bernoulli()), ValueError, r"decoder: .*\(3,\)"),
            (lambda: elbo_taylor(lambda z: np.zeros(3), x, q, Bernoulli()), TypeError, "decoder: .*JAX .*ndarray"),
            (lambda: elbo_taylor(lambda z: (z, z), x, q, Bernoulli()), TypeError, r"decoder: .*array .*tuple"),
            (lambda: elbo_monte_carlo(key, lambda z: z, x, q, Bernoulli()), ValueError, r"decoder: .*\(3,\)"),
            (lambda: elbo_taylor(affine, x[:, :2], q, Bernoulli()), ValueError, r"decoder: .*\(2,\).*\(3,\)"),
            (lambda: elbo_taylor(three, x, q, Bernoulli(), z0=np.zeros(2)), ValueError, "z0: "),
            (lambda: optimal_posterior(three, x, Bernoulli(), z0=0.0), ValueError, "z0: "),
            (lambda: optimal_posterior(three, x, Bernoulli(), z0=[np.nan]), ValueError, r"z0: .*nan"),
            (lambda: optimal_posterior(affine, x, Bernoulli(), z0=np.zeros(2)), ValueError, r"z0: .*\(1,\)"),
            (lambda: elbo_taylor(three, x + 2, q, Bernoulli()), ValueError, r"x: .*2 at \[0, 0\]"),
            (lambda: elbo_taylor(three, x, q, Gaussian()), ValueError, "dispersion: .*Objective"),
            (lambda: elbo_taylor(three, x, q, Bernoulli), TypeError, "objective: .*class Bernoulli"),
            (
                lambda: elbo_taylor(three, x, q, narrow),
                ValueError,
                r"dispersion: .*\(3,\)",
            ),
            (lambda: elbo_taylor(three, x, np.zeros((2, 1)), Bernoulli()), TypeError, "posterior: "),
            (lambda: elbo_taylor(three, known, q, Bernoulli()), ValueError, "covariates: "),
            (lambda: elbo_monte_carlo(0, three, x, q, Bernoulli()), TypeError, "key: "),
            (lambda: elbo_monte_carlo(key, three, x, q, Bernoulli(), num_samples=0), ValueError, "num_samples: "),
            (lambda: elbo_monte_carlo(key, three, x, q, Bernoulli(), num_samples=1.5), TypeError, "num_samples: "),
            (lambda: elbo_monte_carlo(key, three, x, q, Bernoulli(), num_samples=True), TypeError, "num_samples: "),
        ]
    )
