"""Losses as users write them, and their gradients beside those of the beta-ELBO."""

import jax
import jax.numpy as jnp
import numpy as np

from glmvae import Posterior, kl_divergence

# A gradient of a few sums against the same sums in another order.
RELATIVE = {"float64": 1e-11, "float32": 2e-5}
BATCH, COLUMNS, UNITS = 6, 5, 3


def a_batch(dtype, binary=False):
    rng = np.random.default_rng(0)
    x = rng.random((BATCH, COLUMNS))
    outputs = rng.normal(size=(BATCH, COLUMNS)), rng.normal(size=(BATCH, UNITS)), rng.normal(size=(BATCH, UNITS)) / 2
    return jnp.asarray(x > 0.5 if binary else x, dtype), [jnp.asarray(o, dtype) for o in outputs]


# Users' terms, written out on their own.


def squared_error(x, output):
    return (x - output) ** 2


def cross_entropy(x, logit):
    p = jax.nn.sigmoid(logit)
    return -(x * jnp.log(p) + (1 - x) * jnp.log(1 - p))


def kl_terms(mu, logvar):
    return -0.5 * (1 + logvar - mu**2 - jnp.exp(logvar))


REDUCE = {
    "sum": jnp.sum,
    "batchmean": lambda terms: jnp.mean(jnp.sum(terms, axis=1)),
    "mean": jnp.mean,
}


def gradient_of_loss(loss, x, outputs):
    return jnp.concatenate([g.ravel() for g in jax.grad(lambda o: loss(x, *o))(outputs)])


def gradient_of_elbo(convention, x, outputs, beta=None):
    def objective(o):
        eta, mu, logvar = o
        phi = 1.0 if convention.dispersion is None else convention.dispersion
        log_prob = jnp.sum(convention.family.log_prob(x, eta, phi), axis=1)
        q = Posterior(mu, jax.vmap(jnp.diag)(jnp.exp(logvar)))
        return jnp.mean((convention.beta if beta is None else beta) * kl_divergence(q) - log_prob)

    return jnp.concatenate([g.ravel() for g in jax.grad(objective)(outputs)])


def balance(theirs, ours):
    """How the weight of KL against the reconstruction in theirs compares with ours; 1 if they are the same."""
    cut = BATCH * COLUMNS  # the output's entries come first
    ratios = [float(jnp.linalg.norm(theirs[s]) / jnp.linalg.norm(ours[s])) for s in (slice(cut), slice(cut, None))]
    return ratios[1] / ratios[0]
