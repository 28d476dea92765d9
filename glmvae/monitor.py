"""What to watch while a net trains: its ELBO, its latent units, and the closed form's line to compare with.

The ELBO of a net with an affine decoder is exact; that of another is a Monte Carlo estimate with its standard error.
A unit is active where the variance over the data of its posterior mean exceeds 0.01 (Burda et al. 2015). The reference
line is L-hat at the closed-form optimum, with the bracket in which its remainder puts that optimum's own ELBO.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from glmvae import _settings
from glmvae.blocks import per_row
from glmvae.elbo import elbo_exact, elbo_profile, elbo_quadratic
from glmvae.elbo.decoders import elbo_monte_carlo
from glmvae.model import AffineModel, as_model, require_density
from glmvae.nets.autoencoder import VAE, as_vae, encode_rows, rows_for
from glmvae.optimum import AffineOptimum, posterior
from glmvae.rows import Rows, row_sum
from glmvae.sources import Source, as_source, require_alike
from glmvae.statistics import moments
from glmvae.variational import Posterior, gaussian_kl, predictor_moments

#: A unit is active where its activity exceeds this (Burda et al. 2015).
ACTIVE = 0.01


class Evaluation(NamedTuple):
    """Figures of one net, as NumPy arrays; in a run, each with a leading axis over evaluations.

    Fields:
        step: training steps taken.
        beta: weight of the KL divergence in the ELBOs.
        train_elbo, test_elbo: nats per row; NaN without test data.
        train_error, test_error: Monte Carlo standard errors of these; 0 where the ELBO is exact.
        kl: mean KL divergence of the marginal q(z_j | x) of every unit on train, nats, (kappa,); with a diagonal
            covariance they sum to the whole divergence.
        activity: variance over train rows of the posterior mean of every unit, (kappa,).
    """

    step: Int[np.ndarray, "*t"]
    beta: Float[np.ndarray, "*t"]
    train_elbo: Float[np.ndarray, "*t"]
    train_error: Float[np.ndarray, "*t"]
    test_elbo: Float[np.ndarray, "*t"]
    test_error: Float[np.ndarray, "*t"]
    kl: Float[np.ndarray, "*t k"]
    activity: Float[np.ndarray, "*t k"]

    @property
    def active_units(self) -> Int[np.ndarray, "*t"]:
        """How many units have an activity above 0.01."""
        return np.sum(np.asarray(self.activity) > ACTIVE, axis=-1)


def evaluate(key: Array, vae: VAE, x: Any, *, test: Any = None, num_samples: int = 16, step: int = 0) -> Evaluation:
    """The ELBO of a net on train and test data, under its own objective, and what its latent units do.

    Args:
        key: a JAX PRNG key, for the Monte Carlo draws of a decoder that is not affine.
        vae: the net; ``vae.with_beta(...)`` for another beta.
        x, test: data, (N, d), or :class:`~glmvae.rows.Rows` with their offset, trials, missing entries and weight; test
            may be None. Of named columns both have the same in the same order, and both bring an offset or neither.
        num_samples: draws of z a row, at least 2 for a standard error.
        step: recorded as it is.

    Returns:
        :class:`Evaluation`.

    Raises:
        ValueError, TypeError: bad data or num_samples, test data of other columns than x or where only one of the two
            has an offset, no net, no key; each names the argument.

    Exactness: exact (see :func:`~glmvae.elbo.elbo_exact`) for an affine decoder, otherwise unbiased.

    Example:
        >>> import jax
        >>> from glmvae import Objective, monitor, nets
        >>> from glmvae.families import Gaussian
        >>> objective = Objective(Gaussian(), dispersion=1.0)
        >>> vae = nets.canonical(jax.random.key(0), 4, 2, objective, encoder_widths=(8,))
        >>> at = monitor.evaluate(jax.random.key(0), vae, jax.random.normal(jax.random.key(1), (50, 4)))
        >>> at.kl.shape, float(at.train_error)
        ((2,), 0.0)
    """
    key, vae = _settings.prng_key(key, "key"), as_vae(vae)
    num_samples = _settings.integer(num_samples, "num_samples")
    source = rows_for(vae, x)
    tests = None if test is None else rows_for(vae, test, "test")
    if tests is not None:
        require_alike(tests, source)
    elbo, error, mean, kl, weight = _measured(key, vae, source, num_samples)
    test_elbo, test_error = np.nan, np.nan
    if tests is not None:
        test_elbo, test_error, *_ = _measured(key, vae, tests, num_samples, "test")
    with np.errstate(over="ignore"):  # an ELBO that is out of range is infinite
        activity = _mean(weight, (mean - _mean(weight, mean)[None]) ** 2)
        figures = (np.asarray(vae.beta), elbo, error, test_elbo, test_error, _mean(weight, kl), activity)
        return Evaluation(np.asarray(step), *(np.asarray(figure, vae.dtype) for figure in figures))


def _measured(key: Array, vae: VAE, source: Source, num_samples: int, name: str = "x") -> tuple[Any, ...]:
    """Mean ELBO, its standard error; posterior means, KL divergences by unit, and what a row counts (together 1)."""
    q, kl = per_row(_encoded, source, vae, family=vae.family, name=name)
    if vae.affine_decoder:
        elbo, error = elbo_exact(vae, source, q), jnp.zeros(())
    else:
        elbo, error = elbo_monte_carlo(key, vae.decoder, source, q, vae.objective, num_samples=num_samples)
    weight = _weights(source)
    squares = np.broadcast_to(np.asarray(error, float) ** 2, weight.shape)
    return _mean(weight, elbo), np.sqrt(_mean(weight**2, squares)), np.asarray(q.mean), kl, weight


def _encoded(rows: Rows, _: None, vae: VAE) -> tuple[None, tuple[Posterior, Array]]:
    """The posterior of every row, and the KL divergence of each of its marginals, (n, kappa)."""
    _, q = encode_rows(rows, None, vae)
    variance = jnp.diagonal(q.covariance, axis1=-2, axis2=-1)
    return None, (q, gaussian_kl(q.mean[..., None], variance, jnp.log(variance)))


def _mean(weight: np.ndarray, values: Any) -> np.ndarray:
    """The sum of weight times value, over the rows that count."""
    return weight[weight > 0] @ np.asarray(values, float)[weight > 0]


def _weights(source: Source) -> np.ndarray:
    """What a row counts in means, together 1."""
    if source.rows is None:
        weight = np.asarray(per_row(_weight, source), float)
    else:
        weight = np.ones(source.rows.num_rows) if source.rows.weight is None else np.asarray(source.rows.weight, float)
    return weight / weight.sum()


def _weight(rows: Rows, _: None) -> tuple[None, Array]:
    return None, rows.weight


class Reference(NamedTuple):
    """The closed form on some data, nats per row: lines to draw beside a training curve.

    Fields:
        elbo_taylor: L-hat at the optimum, as ``fit`` has it, beside an offset or trials an entry too.
        lower, upper: of the optimum's exact ELBO, L-hat and what it leaves out, enclosed: Corollary 1 and what is
            sharper (:func:`~glmvae.expected_remainder_bounds`); NaN for a family that knows no remainder.
        elbo_exact: that ELBO.
    """

    elbo_taylor: Float[np.ndarray, ""]
    lower: Float[np.ndarray, ""]
    upper: Float[np.ndarray, ""]
    elbo_exact: Float[np.ndarray, ""]


def reference(optimum: AffineOptimum, x: Any) -> Reference:
    """The L-hat line of an optimum on any data, the bracket of its remainder around it, and the exact ELBO within.

    Args:
        optimum: from :func:`~glmvae.optimum.fit`; its family, beta, dispersion and expansion point are used.
        x: data, (N, d), or :class:`~glmvae.rows.Rows`: those of the fit, or test data.

    Returns:
        :class:`Reference`, means over the rows by their weight.

    Raises:
        ValueError: bad data, no offset where the fit had one; an optimum whose dispersion is 0, which has no density.
        TypeError: no optimum with an expansion point.

    Exactness: lower <= elbo_exact <= upper up to rounding. L-hat is itself a lower bound for Bernoulli and binomial at
    expansion point 0. A net, whose posterior and decoder are its own, may rise above all four.

    Example:
        >>> import jax
        >>> from glmvae import fit, monitor
        >>> from glmvae.families import Bernoulli
        >>> x = jax.random.bernoulli(jax.random.key(0), 0.3, (50, 4)).astype("float32")
        >>> at = monitor.reference(fit(x, Bernoulli(), 2), x)
        >>> bool(at.lower <= at.elbo_exact <= at.upper)
        True

    Source: figure 1; Corollary 1.
    """
    eta0 = getattr(optimum, "expansion_point", None)
    if eta0 is None:
        raise TypeError(f"optimum: expected an AffineOptimum, as fit returns, got {type(optimum).__name__}")
    model = require_density(as_model(optimum, "optimum"), "optimum")
    source = as_source(x, columns=model.loadings.shape[0], like=optimum)
    q = posterior(optimum, source)
    data = moments(source, family=model.family)
    line = elbo_profile(optimum, data, expand_at=eta0 if data.at_offset is None else "zero")
    taylor = elbo_quadratic(optimum, source, q, expand_at=eta0)
    exact = elbo_exact(optimum, source, q)
    weight = _weights(source)
    lower = upper = np.full((), np.nan)
    if model.family.has_remainder:
        options: dict[str, Any] = {"family": model.family, "num_covariates": model.decoder.num_covariates, "given": q}
        lower, upper = (np.asarray(taylor + end) for end in per_row(_remainder, source, model, eta0, **options))
    dtype = np.asarray(exact).dtype
    values = (np.broadcast_to(np.asarray(value), weight.shape) for value in (lower, upper, exact))
    with np.errstate(over="ignore"):
        return Reference(np.asarray(line, dtype), *(np.asarray(_mean(weight, value), dtype) for value in values))


def _remainder(rows: Rows, q: Posterior, model: AffineModel, eta0: Array) -> tuple[None, tuple[Array, Array]]:
    """The ends of the expected remainder of every row."""
    mean, variance = (jnp.broadcast_to(part, rows.x.shape) for part in predictor_moments(model.decoder, rows, q))
    eta0, phi = jnp.broadcast_to(eta0, rows.x.shape), model.objective.dispersion_of_entries
    ends = model.family.for_rows(rows).expected_remainder(mean, variance, eta0, rows.x, phi)
    return None, jax.tree.map(lambda end: row_sum(rows, end), ends)
