"""The marginal likelihood of rows, held out or not, by importance sampling from their posteriors.

    log p(x) = log E_q [ p(x | z) N(z; 0, I) / q(z | x) ]

With k draws the log of the mean of the weights is Burda's bound: below log p(x) in expectation, and the closer the
more draws. beta is no part of it, so that models fitted at different beta can be compared: their own beta-ELBOs cannot,
since the smallest beta always has the largest.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from glmvae import _checks, _settings
from glmvae.ascent import best_posterior
from glmvae.elbo import affine_posterior, elbo_exact
from glmvae.elbo.decoding import Decoder, decoded, decoder_arguments, per_row_of
from glmvae.elbo.sampling import draw, log_prob_of, over_draws, rows_of, sampler
from glmvae.model import Objective, as_model, require_density
from glmvae.rows import Rows
from glmvae.sources import as_source
from glmvae.variational import Posterior, as_posterior, one_a_row

# Below so many effective draws a value cannot be trusted, nor its standard error.
_FEW = 10


def log_likelihood(
    key: Array,
    model: Any,
    x: Any,
    *,
    num_samples: int = 1000,
    posterior: Posterior | None = None,
    objective: Any = None,
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """log p(x) of every row, z integrated out, with its standard error.

        log 1/k sum_s p(x | z_s) N(z_s; 0, I) / q(z_s | x),       z_s ~ q(z | x)

    Args:
        key: a JAX PRNG key; rows draw independently, and what a row draws does not depend on the other rows.
        model: an :class:`~glmvae.model.AffineModel` or a result that has one; or any decoder, ``z (kappa,) ->
            eta (d,)``, with its ``objective`` and a ``posterior``.
        x: data, (N, d), :class:`~glmvae.rows.Rows` or a :class:`~glmvae.sources.Source`; new rows as well as old ones.
        num_samples: draws a row [k].
        posterior: q, where the draws come from. None finds :func:`~glmvae.ascent.best_posterior` at beta = 1.
        objective: of a decoder that is no model; an :class:`~glmvae.model.Objective` or a family that fixes its
            dispersion. Its beta plays no part, nor does that of a model.

    Returns:
        (value, standard_error), each (N,), nats. Their sum over rows is the held-out log-likelihood. With one sample
        the standard error is NaN.

    Raises:
        ValueError, TypeError: no key; no model, or a decoder without its objective or posterior; num_samples not a
            positive integer; rows and posteriors that do not fit; each names the argument.

    Warns:
        UserWarning: rows whose effective sample size is below 10; see :func:`effective_sample_size`.

    Exactness: exact up to rounding, with a standard error of 0, for an affine model of Gaussian columns. Otherwise in
    expectation a lower bound that rises with num_samples and has log p(x) as its limit; the standard error is that of
    the delta method, and too small where few draws have all the weight.

    Example:
        >>> import jax
        >>> from glmvae import Affine, AffineModel, Objective
        >>> from glmvae.families import Gaussian, Poisson
        >>> from glmvae.likelihood import log_likelihood
        >>> model = AffineModel(Affine([[1.0]], [0.0]), Objective(Gaussian(), dispersion=1.0))
        >>> value, error = log_likelihood(jax.random.key(0), model, [[0.0]])
        >>> print(f"{value[0]:.4f}", error[0])  # N(0; 0, 2)
        -1.2655 0.0
        >>> value, error = log_likelihood(jax.random.key(0), AffineModel(model.decoder, Poisson()), [[0.0]])
        >>> bool(abs(value[0] + 0.9612) < 5 * error[0])  # by quadrature
        True

    Source: Burda et al. (2015), (8); Owen (2013), ch. 9, for the standard error and the effective sample size.
    """
    value, error, size = _estimate(key, model, x, num_samples, posterior, objective)
    _tell_of_few(size, num_samples)
    return value, error


def effective_sample_size(
    key: Array,
    model: Any,
    x: Any,
    *,
    num_samples: int = 1000,
    posterior: Posterior | None = None,
    objective: Any = None,
) -> Float[Array, " n"]:
    """How many draws the estimate of :func:`log_likelihood` rests on, row by row.

        (sum_s w_s)^2 / sum_s w_s^2,     w_s = p(x | z_s) N(z_s; 0, I) / q(z_s | x)

    Args:
        key, model, x, num_samples, posterior, objective: as in :func:`log_likelihood`; the same key, the same draws.

    Returns:
        (N,), between 1 and num_samples; num_samples where nothing is sampled.

    Raises:
        ValueError, TypeError: as :func:`log_likelihood`.

    Exactness: exact for the draws made. It is small where q misses much of the true posterior, and cannot see what no
    draw has met.

    Example:
        >>> import jax
        >>> from glmvae import Affine, AffineModel
        >>> from glmvae.families import Poisson
        >>> from glmvae.likelihood import effective_sample_size
        >>> model = AffineModel(Affine([[1.0]], [0.0]), Poisson())
        >>> bool(effective_sample_size(jax.random.key(0), model, [[3.0]], num_samples=100)[0] > 90)
        True

    Source: Kong (1992); Owen (2013), ch. 9.
    """
    return _estimate(key, model, x, num_samples, posterior, objective)[2]


def _estimate(
    key: Any, model: Any, x: Any, num_samples: Any, posterior: Any, objective: Any
) -> tuple[Array, Array, Array]:
    """Value, standard error and effective sample size of every row."""
    key = _settings.prng_key(key, "key")
    num_samples = _settings.integer(num_samples, "num_samples")
    if objective is None:
        like, model = model, _without_beta(model)
        source: Any = as_source(x, columns=model.loadings.shape[0], like=like)
        if model.family.is_quadratic:
            value = elbo_exact(model, source, affine_posterior(model, source))
            return value, jnp.zeros_like(value), jnp.full_like(value, num_samples)
        if posterior is None:
            posterior = best_posterior(model, source)
        decoder, objective = model.decoder, model.objective
    else:
        decoder, source = model, as_source(x)
        if posterior is None:
            raise TypeError("posterior: a decoder that is no affine model has none; expected a Posterior, got None")
    source, objective, units = decoder_arguments(decoder, source, objective)
    posterior = as_posterior(posterior, units, source.num_rows)
    given, draws = (posterior, np.arange(posterior.mean.shape[0])), np.arange(num_samples)
    found = per_row_of(_weighed, decoder, source, objective, posterior.mean, given, key, draws, width=1)
    value, size = one_a_row(found, posterior)
    if num_samples == 1:  # the NaN is meant
        with jax.debug_nans(False):
            return value, jnp.full_like(value, jnp.nan), size
    return value, _standard_error(size, num_samples), size


def _without_beta(model: Any) -> Any:
    if callable(model) and not hasattr(model, "model"):
        raise TypeError("objective: a decoder that is no affine model needs one, and a posterior; got None")
    return require_density(as_model(model)).with_beta(1.0)


@jax.jit
def _standard_error(size: Array, num_samples: int) -> Array:
    """Of the log of a mean of weights, by the delta method, from their effective number."""
    return jnp.sqrt(jnp.maximum(num_samples / size - 1, 0.0) / (num_samples - 1))


def _tell_of_few(size: Array, num_samples: int) -> None:
    if not _checks.concrete(size) or num_samples <= _FEW:  # on more no row can rest
        return
    few = np.asarray(size) < _FEW
    if few.any():
        row = int(np.argmin(np.asarray(size)))
        warnings.warn(
            f"log_likelihood: {int(few.sum())} of {few.size} rows rest on fewer than {_FEW} of {num_samples} draws "
            f"(row {row} on {float(size[row]):.1f}): their values tend to be too low and their standard errors too "
            "small; take more samples, or a posterior nearer to the true one",
            stacklevel=3,
        )


def _weighed(
    rows: Rows, old: Any, decoder: Decoder, objective: Objective, key: Array, draws: Array
) -> tuple[None, tuple[Array, Array]]:
    """Of every row the log of the mean weight and the effective number of draws."""
    posterior, index = old
    q = sampler(key, index, posterior, rows.num_rows)

    def add(state: _State, draws: Array) -> _State:
        z, noise = draw(q, draws)
        log_p = log_prob_of(rows, decoded(decoder, rows_of(z), rows), objective)
        return _added(state, log_p, z, noise, q.log_det)

    zero = jnp.zeros(rows.num_rows, rows.x.dtype)
    state = over_draws(add, _State(jnp.full_like(zero, -jnp.inf), zero, zero), draws, rows)
    return None, _summed_up(state, len(draws))


class _State(NamedTuple):
    """The largest log weight, and the sums of the weights and of their squares over it."""

    largest: Array
    total: Array
    squares: Array


@jax.jit
def _added(state: _State, log_p: Array, z: Array, noise: Array, log_det: Array) -> _State:
    """With further draws (draws, N): log N(z; 0, I) / q(z) is half of |noise|^2 - |z|^2 + log |Sigma|."""
    log_ratio = 0.5 * (jnp.sum(noise**2, axis=-1) - jnp.sum(z**2, axis=-1) + log_det[None])
    weights = log_p + log_ratio
    largest = jnp.maximum(state.largest, jnp.max(weights, axis=0))
    safe = jnp.where(jnp.isfinite(largest), largest, 0.0)
    scaled, before = jnp.exp(weights - safe[None]), jnp.exp(state.largest - safe)
    total = state.total * before + jnp.sum(scaled, axis=0)
    return _State(largest, total, state.squares * before**2 + jnp.sum(scaled**2, axis=0))


@jax.jit
def _summed_up(state: _State, num_samples: int) -> tuple[Array, Array]:
    met = state.total > 0
    total, squares = (jnp.where(met, part, 1.0) for part in (state.total, state.squares))
    return state.largest + jnp.log(total / num_samples), total**2 / squares
