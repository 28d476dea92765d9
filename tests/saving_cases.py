"""Models of every family to keep, and what it means that two are the same."""

import jax
import jax.numpy as jnp
import numpy as np

from glmvae import fit
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

N, D, K = 24, 4, 2
RNG = np.random.default_rng(0)
COUNTS = RNG.integers(0, 4, (N, D)).astype(float)
POSITIVE = RNG.gamma(2.0, size=(N, D))
CUSTOM = CustomFamily(jnp.exp, limits=Support(0.0))


class Counts(Poisson):
    """A family of the user's own, by class."""


FAMILIES = {
    "Gaussian": (Gaussian(), COUNTS),
    "Bernoulli": (Bernoulli(activation_scale=2.0), (COUNTS > 1) * 1.0),
    "Binomial": (Binomial(np.array([3.0, 4.0, 3.0, 5.0])), COUNTS),
    "Binomial scalar": (Binomial(3), COUNTS),
    "Poisson": (Poisson(), COUNTS),
    "Gamma": (Gamma(), POSITIVE),
    "Exponential": (Exponential(), POSITIVE),
    "NegativeBinomial": (NegativeBinomial(2.5), COUNTS),
    "Mixed": (Mixed([(Bernoulli(), [1]), (Poisson(), [0, 3]), (Binomial(3), [2])]), np.minimum(COUNTS, [9, 1, 3, 9])),
    "CustomFamily": (CUSTOM, COUNTS),
    "Counts": (Counts(), COUNTS),
    "Mixed custom": (Mixed([(Bernoulli(), [1]), (CUSTOM, [0, 2, 3])]), np.minimum(COUNTS, [9, 1, 9, 9])),
}
OWN = ("CustomFamily", "Counts", "Mixed custom")


def fitted(name, dtype, latent_dim=K):
    family, x = FAMILIES[name]
    dispersion = 0.7 if family.fixed_dispersion is None and not isinstance(family, Gaussian) else None
    return fit(x.astype(dtype), family, latent_dim, dispersion=dispersion, beta=1.5), x.astype(dtype)


def assert_same(a, b):
    """Leaves of one kind, dtype, weak type and bits, and one structure."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (at, left), (_, right) in zip(*map(jax.tree_util.tree_leaves_with_path, (a, b)), strict=True):
        name = jax.tree_util.keystr(at)
        assert isinstance(left, jax.Array) == isinstance(right, jax.Array), name
        assert getattr(left, "weak_type", None) == getattr(right, "weak_type", None), name
        left, right = np.asarray(left), np.asarray(right)
        assert (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes()), name
