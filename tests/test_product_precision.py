"""Every product of the library is in full, whatever JAX's default: a GPU rounds the factors of a float32 one.

A CPU computes all products in full, so a result cannot show it. But it refuses a product that asks for TF32 by name:
under that default, whatever runs has told each of its products otherwise.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import glmvae
from glmvae import Affine, AffineModel, Rows, datasets, fit, moments, monitor, nets, posterior, training
from glmvae.families import Bernoulli, Gaussian
from glmvae.initializers import mle_b

pytestmark = pytest.mark.any_precision
ROUNDED = "TF32_TF32_F32"
N, D, UNITS = 60, 9, 3
BINARY = Bernoulli()


@pytest.fixture(autouse=True)
def on_a_cpu():
    """Also where JAX has a GPU, which refuses nothing."""
    with jax.default_device(jax.devices("cpu")[0]):
        yield


@functools.cache
def data():
    rng = np.random.default_rng(0)
    covariates, offset = np.float32(rng.normal(size=(N, 2))), np.float32(0.1 * rng.normal(size=(N, D)))
    x = np.float32(rng.random((N, D)) < 0.4)
    return x, Rows(x, covariates=covariates, offset=offset)


@functools.cache
def optimum():
    return fit(data()[0], BINARY, UNITS)


@functools.cache
def with_covariates():
    return fit(data()[1], BINARY, UNITS)


def model_of(loadings):
    return AffineModel(Affine(loadings, optimum().model.intercept), optimum().model.objective)


def bent(z):
    return jnp.tanh(z) @ jnp.ones((UNITS, D), z.dtype)


def net():
    vae = nets.canonical(jax.random.key(0), D, UNITS, optimum().model.objective, encoder_widths=(D,))
    return mle_b(jax.random.key(1), vae, optimum())


def of_any_decoder():
    x, q, objective = data()[0], posterior(optimum(), data()[0]), optimum().model.objective
    return [
        glmvae.elbo_taylor(bent, x, q, objective),
        glmvae.optimal_posterior(bent, x, objective, z0=q.mean),
        glmvae.elbo_monte_carlo(jax.random.key(0), bent, x, q, objective, num_samples=2),
        glmvae.log_likelihood(jax.random.key(0), optimum(), x, num_samples=2),
    ]


def tightened():
    rows = Rows(data()[0], covariates=data()[1].covariates)
    return glmvae.tighten(fit(rows, BINARY, UNITS), moments(rows, family=BINARY))


def from_rows():
    refined = glmvae.refine(with_covariates(), data()[1], max_rounds=2)
    return [refined, glmvae.best_posterior(refined, data()[1]), glmvae.varimax(refined)]


def under_transformations():
    x = jnp.asarray(data()[0][:12])
    loadings, q = jnp.asarray(optimum().model.loadings), posterior(optimum(), x)

    return [
        jax.grad(lambda beta: fit(x, BINARY, UNITS, beta=beta).elbo_taylor)(1.0),
        jax.grad(lambda x: fit(Rows(x, covariates=data()[1].covariates[:12]), Gaussian(), UNITS).elbo_taylor)(x),
        jax.grad(lambda w: jnp.mean(glmvae.elbo_exact(model_of(w), x, q)))(loadings),
        jax.jit(lambda w: glmvae.best_posterior(model_of(w), x).mean)(loadings),
    ]


CALLS = {
    "moments": lambda: [moments(data()[1], family=BINARY), glmvae.merge(moments(data()[0]), moments(data()[0]))],
    "closed form": lambda: [fit(data()[1], BINARY, UNITS), fit(data()[0], BINARY, UNITS, expand_at="null")],
    "tighten": tightened,
    "posteriors": lambda: [
        posterior(with_covariates(), data()[1]),
        glmvae.affine_posterior(optimum().model, data()[0]),
    ],
    "elbos": lambda: [
        f(optimum(), data()[0], posterior(optimum(), data()[0]))
        for f in (glmvae.elbo_exact, glmvae.elbo_quadratic, glmvae.bracket)
    ],
    "profile": lambda: glmvae.elbo_profile(with_covariates().model, moments(data()[1], family=BINARY)),
    "diagnose": lambda: glmvae.diagnose(data()[0], BINARY, UNITS),
    "select": lambda: glmvae.select(data()[0], BINARY, (1, 2), folds=2),
    "decode": lambda: optimum().model.decoder(np.zeros((2, UNITS), np.float32)),
    "draw": lambda: datasets.synthetic(jax.random.key(0), 20, num_columns=40).train,
    "any decoder": of_any_decoder,
    "from rows": from_rows,
    "net": lambda: [monitor.evaluate(jax.random.key(0), net(), data()[0]), monitor.reference(optimum(), data()[0])],
    "transformed": under_transformations,
}


@pytest.mark.parametrize("name", CALLS)
def test_runs_where_only_full_products_do(name):
    with jax.enable_x64(False):
        optimum(), with_covariates()
        with jax.default_matmul_precision(ROUNDED):
            found = jax.block_until_ready(CALLS[name]())
    assert jax.tree.leaves(found)


def test_a_product_that_was_not_told_is_refused():
    with jax.default_matmul_precision(ROUNDED), pytest.raises(ValueError, match=ROUNDED):
        jax.block_until_ready(bent(jnp.zeros((2, UNITS), jnp.float32)))


def test_training_follows_the_default():
    with jax.enable_x64(False):
        vae, x = net(), data()[0]
        with jax.default_matmul_precision(ROUNDED), pytest.raises(ValueError, match=ROUNDED):
            training.train(jax.random.key(0), vae, x, steps=1, batch_size=10)
