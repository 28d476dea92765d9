"""What to watch while a net trains: its ELBO, its latent units, and the closed form's line to compare with.

The ELBO of a net with an affine decoder is exact; that of another is a Monte Carlo estimate with its standard error.
A unit is active where the variance over the data of its posterior mean exceeds 0.01 (Burda et al. 2015). The reference
line is L-hat at the closed-form optimum, with the bracket in which Corollary 1 puts that optimum's own ELBO.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from glmvae import _checks
from glmvae.elbo import elbo_exact, elbo_monte_carlo, elbo_quadratic, predictor_moments
from glmvae.expansion import expected_remainder_bounds
from glmvae.families import Binomial, Family, Gaussian, Poisson
from glmvae.nets import VAE
from glmvae.optimum import AffineOptimum, posterior

#: A unit is active where its activity exceeds this (Burda et al. 2015).
ACTIVE = 0.01
# Rows at a time, so that the hidden layers of many rows need not be held at once.
_BLOCK = 500


class Evaluation(NamedTuple):
    """Figures of one net; in a run, each with a leading axis over evaluations.

    Fields:
        step: training steps taken.
        beta: weight of the KL divergence in the ELBOs.
        train_elbo, test_elbo: nats per row; NaN without test data.
        train_error, test_error: Monte Carlo standard errors of these; 0 where the ELBO is exact.
        kl: mean KL divergence of the marginal q(z_j | x) of every unit on train, nats, (kappa,); with a diagonal
            covariance they sum to the whole divergence.
        activity: variance over train rows of the posterior mean of every unit, (kappa,).
    """

    step: Int[Array, "*t"]
    beta: Float[Array, "*t"]
    train_elbo: Float[Array, "*t"]
    train_error: Float[Array, "*t"]
    test_elbo: Float[Array, "*t"]
    test_error: Float[Array, "*t"]
    kl: Float[Array, "*t k"]
    activity: Float[Array, "*t k"]

    @property
    def active_units(self) -> Int[Array, "*t"]:
        """How many units have an activity above 0.01."""
        return jnp.sum(jnp.asarray(self.activity) > ACTIVE, axis=-1)


def evaluate(
    key: Array,
    vae: VAE,
    x: ArrayLike,
    *,
    test: ArrayLike | None = None,
    beta: float | Array = 1.0,
    dispersion: ArrayLike = 1.0,
    num_samples: int = 16,
    step: int = 0,
) -> Evaluation:
    """The ELBO of a net on train and test data, and what its latent units do.

    Args:
        key: a JAX PRNG key, for the Monte Carlo draws of a decoder that is not affine.
        vae: the net.
        x, test: data, (N, d); test may be None.
        beta, dispersion: as in :func:`~glmvae.elbo.elbo_exact`.
        num_samples: draws of z a row, at least 2 for a standard error.
        step: recorded as it is.

    Returns:
        :class:`Evaluation`.

    Raises:
        ValueError, TypeError: bad data, beta (below 0), dispersion or num_samples; each names the argument.

    Exactness: exact (see :func:`~glmvae.elbo.elbo_exact`) for an affine decoder, otherwise unbiased.

    Example:
        >>> import jax
        >>> from glmvae import monitor, nets
        >>> from glmvae.families import Gaussian
        >>> vae = nets.canonical(jax.random.key(0), 4, 2, Gaussian(), encoder_widths=(8,))
        >>> at = monitor.evaluate(jax.random.key(0), vae, jax.random.normal(jax.random.key(1), (50, 4)))
        >>> at.kl.shape, float(at.train_error)
        ((2,), 0.0)
    """
    x = _checks.rows_of(x, vae.family, vae.columns).astype(vae.dtype)
    _checks.at_least(beta, 0.0, "beta")  # 0 is where annealing starts
    _checks.positive(dispersion, "dispersion", vae.columns)
    weight, phi = jnp.asarray(beta, vae.dtype), jnp.asarray(dispersion, vae.dtype)
    structure, params, rest = nnx.split(vae, nnx.Param, ...)  # type: ignore[misc]
    elbo, error, kl, activity = _measure(structure, params, rest, key, x, weight, phi, num_samples)
    test_elbo = test_error = jnp.full((), jnp.nan, vae.dtype)
    if test is not None:
        test = _checks.rows_of(test, vae.family, vae.columns, name="test").astype(vae.dtype)
        test_elbo, test_error, _, _ = _measure(structure, params, rest, key, test, weight, phi, num_samples)
    return Evaluation(jnp.asarray(step), weight, elbo, error, test_elbo, test_error, kl, activity)


@partial(jax.jit, static_argnames=("structure", "num_samples"))
def _measure(
    structure: Any, params: Any, rest: Any, key: Array, x: Array, beta: Array, phi: Array, num_samples: int
) -> tuple[Array, Array, Array, Array]:
    vae = nnx.merge(structure, params, rest)

    def rows(x: Array, block: Array) -> tuple[Array, ...]:
        q = vae.encoder(x)
        if vae.affine_decoder:
            elbo = elbo_exact(vae.loadings, vae.intercept, x, q, vae.family, beta=beta, dispersion=phi)
            error = jnp.zeros_like(elbo)
        else:
            draws = jax.random.fold_in(key, block)
            elbo, error = elbo_monte_carlo(
                draws, vae.decoder, x, q, vae.family, beta=beta, dispersion=phi, num_samples=num_samples
            )
        variance = jnp.diagonal(q.covariance, axis1=-2, axis2=-1)
        kl = 0.5 * (variance + q.mean**2 - 1 - jnp.log(variance))
        return elbo, error, kl, q.mean

    (elbo, error, kl, mean), weight = _by_blocks(rows, x)
    centre = weight @ mean
    return weight @ elbo, jnp.sqrt(jnp.sum((weight * error) ** 2)), weight @ kl, weight @ (mean - centre) ** 2


def _by_blocks(f: Callable[[Array, Array], tuple[Array, ...]], x: Array) -> tuple[tuple[Array, ...], Array]:
    """f(rows, number of the block), block after block, with the weight of every row in a mean: 1 / N, or 0.

    The last block ends at the last row; the rows it shares with the one before it weigh 0 there.
    """
    count = x.shape[0]
    block = min(_BLOCK, count)

    def body(_: None, i: Array) -> tuple[None, tuple]:
        start = jnp.minimum(i * block, count - block)
        fresh = start + jnp.arange(block) >= i * block
        return None, (f(jax.lax.dynamic_slice_in_dim(x, start, block), i), fresh.astype(x.dtype) / count)

    _, stacked = jax.lax.scan(body, None, jnp.arange(-(-count // block)))
    values, weight = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), stacked)
    return values, weight


class Reference(NamedTuple):
    """The closed form on some data, nats per row: lines to draw beside a training curve.

    Fields:
        elbo_taylor: L-hat at the optimum.
        lower, upper: what Corollary 1 says of the optimum's exact ELBO; NaN for families without remainder bounds.
        elbo_exact: that ELBO.
    """

    elbo_taylor: Float[Array, ""]
    lower: Float[Array, ""]
    upper: Float[Array, ""]
    elbo_exact: Float[Array, ""]


def reference(optimum: AffineOptimum, x: ArrayLike, family: Family) -> Reference:
    """The L-hat line of an optimum on any data, the bracket of Corollary 1 around it, and the exact ELBO within.

    Args:
        optimum: from :func:`~glmvae.optimum.fit`; its beta, dispersion and expansion point are used.
        x: data, (N, d): those of the fit, or test data.
        family: the observation model.

    Returns:
        :class:`Reference`.

    Raises:
        ValueError, TypeError: bad data.

    Exactness: lower <= elbo_exact <= upper up to rounding. L-hat is itself a lower bound for Bernoulli and binomial at
    expansion point 0. A net, whose posterior and decoder are its own, may rise above all four.

    Example:
        >>> import jax
        >>> from glmvae import fit, monitor
        >>> from glmvae.families import Bernoulli
        >>> x = jax.random.bernoulli(jax.random.key(0), 0.3, (50, 4)).astype("float32")
        >>> at = monitor.reference(fit(x, Bernoulli(), 2), x, Bernoulli())
        >>> bool(at.lower <= at.elbo_exact <= at.upper)
        True

    Source: figure 1; Corollary 1.
    """
    x = _checks.rows_of(x, family, optimum.loadings.shape[0]).astype(optimum.loadings.dtype)
    return _reference(optimum, x, family)


@jax.jit
def _reference(optimum: AffineOptimum, x: Array, family: Family) -> Reference:
    settings = {"beta": optimum.beta, "dispersion": optimum.dispersion}
    eta0 = optimum.expansion_point

    def rows(x: Array, _: Array) -> tuple[Array, ...]:
        q = posterior(optimum, x)
        decoder = (optimum.loadings, optimum.intercept)
        taylor = elbo_quadratic(*decoder, x, q, family, expand_at=eta0, **settings)
        lower = upper = jnp.full_like(taylor, jnp.nan)
        if isinstance(family, Gaussian | Binomial | Poisson):
            bounds = expected_remainder_bounds(
                family, *predictor_moments(*decoder, q), eta0, dispersion=optimum.dispersion
            )
            lower, upper = (taylor + jnp.sum(b, axis=-1) for b in bounds)
        return taylor, lower, upper, elbo_exact(*decoder, x, q, family, **settings)

    values, weight = _by_blocks(rows, x)
    return Reference(*(weight @ v for v in values))
