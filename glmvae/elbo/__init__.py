"""The beta-ELBO of an affine decoder and a Gaussian posterior, row by row: exact, and its expansion in eta.

    L = E_q log p(x | W z + b) - beta KL(q(z | x) || N(0, I))                        (1)

``elbo_exact`` is L without Monte Carlo; ``elbo_quadratic`` has log p expanded at eta0, is largest at
``affine_posterior``, and is then ``elbo_profile``, which moments of the data determine. For decoders of any kind see
:mod:`glmvae.elbo.decoders`. Rows bring their offset, covariates, trials and missing entries with them; what is missing
adds nothing, and weights count in the mean of the results alone.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

from glmvae._numerics import symmetric_inverse, unpacked
from glmvae._precision import in_full
from glmvae.blocks import common_dtype, per_row
from glmvae.expansion import Expansion, expand_rows, expansion_point, null_point
from glmvae.families import Family
from glmvae.model import AffineModel, as_model, fixed_predictor, require_density, unchecked
from glmvae.quadratics import expanded
from glmvae.rows import Rows, observed, row_sum
from glmvae.sources import Source, as_source, require_offset
from glmvae.statistics import Moments, as_moments
from glmvae.statistics.moment_checks import in_precision
from glmvae.statistics.residuals import with_trials
from glmvae.variational import Posterior, as_posterior, kl_of, one_a_row, packed_curvature, predictor_moments


def elbo_exact(model: Any, x: Any, posterior: Posterior) -> Float[Array, " n"]:
    """The exact beta-ELBO of an affine decoder, without Monte Carlo (1).

    Under an affine decoder every eta_j is Gaussian, N(m, v), so the expectation is one-dimensional, column by column:
    closed for Gaussian, (m^2 + v) / 2, Poisson, exp(m + v / 2), and Gamma, x exp(-m + v / 2); a quadrature elsewhere.

    Args:
        model: an :class:`~glmvae.model.AffineModel`, or a result that has one (an optimum).
        x: data, (N, d), :class:`~glmvae.rows.Rows` or a :class:`~glmvae.sources.Source`.
        posterior: means (N, kappa), covariance (N, kappa, kappa) or (1, kappa, kappa).

    Returns:
        (N,), nats; their (weighted) mean is the objective. Under a transformation a row with a value out of the support
        is NaN, and so is one whose covariance is not positive definite.

    Raises:
        ValueError, TypeError: no model, shapes that do not fit, values that are not finite or out of the support, rows
            that do not bring what the model needs; each names the argument.

    Exactness: exact up to rounding for Gaussian, Poisson, Gamma and Exponential. Bernoulli, binomial and negative
    binomial: an absolute error of 3e-12 trials an entry in float64, of rounding in float32, at any mean and variance.
    Custom families: a trapezoid rule of 64 nodes.

    Example:
        >>> import jax.numpy as jnp
        >>> from glmvae import Affine, AffineModel, Posterior, elbo_exact
        >>> from glmvae.families import Poisson
        >>> model = AffineModel(Affine([[1.0]], [0.0]), Poisson())
        >>> q = Posterior(jnp.zeros((1, 1)), jnp.eye(1)[None])
        >>> print(f"{elbo_exact(model, [[0.0]], q)[0]:.4f}")  # -exp(1/2)
        -1.6487

    Source: (1); the one-dimensional expectations as in variational Gaussian GLMs (Challis and Barber 2013).
    """
    model, source = affine_arguments(model, x)
    posterior = as_posterior(posterior, model.decoder.latent_dim, source.num_rows)
    return one_a_row(per_row(_exact, source, model, given=posterior, **options_of(model)), posterior)


def exact_of_rows(rows: Rows, posterior: Posterior, model: AffineModel) -> Array:
    """:func:`elbo_exact` of a block."""
    predictor = predictor_moments(model.decoder, rows, posterior)
    return expected_of_rows(rows, predictor, model) - model.beta * kl_of(posterior)


def expected_of_rows(rows: Rows, predictor: tuple[Array, Array], model: AffineModel) -> Array:
    """E log p of every row of a block, from mean and variance of eta."""
    # What is missing must not overflow: 0 times infinity is no gradient
    mean, variance = (observed(rows, jnp.broadcast_to(part, rows.x.shape)) for part in predictor)
    family = model.family.for_rows(rows)
    return row_sum(rows, family.expected_log_prob(rows.x, mean, variance, model.objective.dispersion_of_entries))


def _exact(rows: Rows, posterior: Posterior, model: AffineModel) -> tuple[None, Array]:
    return None, exact_of_rows(rows, posterior, model)


def elbo_quadratic(
    model: Any, x: Any, posterior: Posterior, *, expand_at: ArrayLike | str = "zero"
) -> Float[Array, " n"]:
    """L-hat in eta: the beta-ELBO of an affine decoder and any Gaussian q, with log p expanded at eta0.

        sum_j [c_j - w_j ((y_j - m_j)^2 + v_j) / 2] - beta KL,       eta_j ~ N(m_j, v_j) under q

    Args:
        model, x, posterior: as in :func:`elbo_exact`.
        expand_at: eta0, see :func:`~glmvae.expansion.expansion_point`. ``"null"`` takes the column means of x
            (weighted, of what was observed, an offset left aside), one more pass over the rows.

    Returns:
        (N,), nats.

    Raises:
        ValueError, TypeError: as :func:`elbo_exact`, and a bad ``expand_at``.

    Exactness: equal to :func:`elbo_exact` for Gaussian; for Bernoulli and binomial at ``"zero"`` below it, at any
    loadings, intercept, offset, posterior and beta; otherwise an approximation, see
    :func:`~glmvae.elbo.bounds.expected_remainder_bounds`. It equals :func:`~glmvae.elbo.decoders.elbo_taylor` where
    decoder(z0) = eta0 if the curvature of log p does not depend on x, and always for Gaussian.

    Example:
        >>> import jax.numpy as jnp
        >>> from glmvae import Affine, AffineModel, Posterior, elbo_quadratic
        >>> from glmvae.families import Poisson
        >>> model = AffineModel(Affine([[1.0]], [0.0]), Poisson())
        >>> q = Posterior(jnp.zeros((1, 1)), jnp.eye(1)[None])
        >>> print(f"{elbo_quadratic(model, [[0.0]], q)[0]:.4f}")  # -(1 + 1/2)
        -1.5000

    Source: (25) in eta; its maximum over q is (12), (14).
    """
    model, source = affine_arguments(model, x)
    posterior = as_posterior(posterior, model.decoder.latent_dim, source.num_rows)
    eta0 = _expansion_point(expand_at, model, source)
    return one_a_row(per_row(_quadratic, source, model, eta0, given=posterior, **options_of(model)), posterior)


def _quadratic(rows: Rows, posterior: Posterior, model: AffineModel, eta0: Array) -> tuple[None, Array]:
    mean, variance = predictor_moments(model.decoder, rows, posterior)
    quadratic = _expansion(rows, model, eta0)
    expected = quadratic(mean) - 0.5 * quadratic.weight * variance
    return None, row_sum(rows, expected) - model.beta * kl_of(posterior)


def _expansion(rows: Rows, model: AffineModel, eta0: Array) -> Expansion:
    """The quadratic of every entry; its weight is (1, d) where the rows share it."""
    phi = model.objective.dispersion_of_entries
    return expand_rows(rows.x, model.family.for_rows(rows), eta0[None], phi)


def affine_posterior(model: Any, x: Any, *, expand_at: ArrayLike | str = "zero") -> Posterior:
    """The posterior that maximises :func:`elbo_quadratic` for a given affine decoder.

        Sigma_z = (I + W' G W / beta)^-1,     mu_z = Sigma_z W' G (y - b - B' covariates - offset) / beta

    Args:
        model, x, expand_at: as in :func:`elbo_quadratic`.

    Returns:
        A :class:`~glmvae.variational.Posterior`, means (N, kappa); one covariance (1, kappa, kappa), or one a row where
        trials or missing entries give each row its own G.

    Raises:
        ValueError, TypeError: as :func:`elbo_quadratic`.

    Exactness: the maximum of L-hat over all Gaussian posteriors; exact posterior (raised to beta) for Gaussian.

    Example:
        >>> from glmvae import Affine, AffineModel, Objective, affine_posterior
        >>> from glmvae.families import Gaussian
        >>> model = AffineModel(Affine([[1.0]], [0.0]), Objective(Gaussian(), dispersion=1.0))
        >>> q = affine_posterior(model, [[3.0]])
        >>> print(f"{q.mean[0, 0]:.4f} {q.covariance[0, 0, 0]:.4f}")
        1.5000 0.5000

    Source: (5), (6) for an affine decoder.
    """
    model, source = affine_arguments(model, x)
    eta0 = _expansion_point(expand_at, model, source)
    return per_row(_posterior, source, model, eta0, **options_of(model))


def _posterior(rows: Rows, old: None, model: AffineModel, eta0: Array) -> tuple[None, Posterior]:
    quadratic = _expansion(rows, model, eta0)
    loadings, residual = model.loadings, quadratic.response - fixed_predictor(model.decoder, rows)
    if rows.missing is None and not model.family.needs_trials:
        weighted = loadings * quadratic.weight.T / model.beta
        precision = (loadings.T @ weighted)[None]
        ahead = residual @ weighted
    else:
        weight = observed(rows, jnp.broadcast_to(quadratic.weight, rows.x.shape)) / model.beta
        precision = unpacked(packed_curvature(loadings, weight), model.decoder.latent_dim)
        ahead = (weight * residual) @ loadings
    covariance, _ = symmetric_inverse(precision + jnp.eye(precision.shape[-1], dtype=precision.dtype)[None])
    return None, Posterior(jnp.squeeze(ahead[:, None] @ covariance, 1), covariance)


def elbo_profile(model: Any, moments: Moments, *, expand_at: ArrayLike | str = "zero") -> Float[Array, ""]:
    """L-hat of an affine decoder under its best posterior, from the moments of the data alone: (12), (14).

        C = G^-1 + W W' / beta,      S = mean r r',  r = y - b - B' covariates
        L-hat = -1/2 [tr(C^-1 S) + beta log|C| + beta log|G| + D]

    Args:
        model: an :class:`~glmvae.model.AffineModel`, or a result that has one.
        moments: :class:`~glmvae.statistics.Moments`, made for the family if the constant matters.
        expand_at: as in :func:`elbo_quadratic`.

    Returns:
        A scalar, nats per row: the (weighted) mean of :func:`elbo_quadratic` at :func:`affine_posterior`. Of moments of
        working residuals (rows with an offset or trials) it is what ``fit`` maximises, with one weight a column.

    Raises:
        ValueError, TypeError: no model, no Moments; moments of another family or another number of columns or
            covariates; a bad ``expand_at``, or one other than ``"zero"`` for working residuals.

    Exactness: equal to that mean; see :func:`elbo_quadratic` for how it compares with the beta-ELBO. Its maximum over
    the decoder is ``fit(...).elbo_taylor``.

    Cost: O(d^2 kappa): no matrix of size d is inverted.

    Example:
        >>> from glmvae import Affine, AffineModel, Objective, elbo_profile, moments
        >>> from glmvae.families import Gaussian
        >>> model = AffineModel(Affine([[0.0]], [0.0]), Objective(Gaussian(), dispersion=1.0))
        >>> print(f"{elbo_profile(model, moments([[1.0], [-1.0]])):.4f}")
        -1.4189

    Source: (12), (14), (33).
    """
    like, model = model, require_density(as_model(model))
    if not isinstance(moments, Moments):
        raise TypeError(f"moments: expected Moments (see glmvae.moments), got {type(moments).__name__}")
    data = as_moments(moments, model.family, "moments")
    require_offset(like, data.at_offset is not None)
    if data.mean.shape[0] != model.loadings.shape[0]:
        raise ValueError(f"moments.mean: expected {model.loadings.shape[0]} columns, got {data.mean.shape[0]}")
    known, wanted = 0 if data.covariates is None else data.covariates.mean.shape[0], model.decoder.num_covariates
    if known != wanted:
        raise ValueError(f"covariates: the decoder has coefficients for {wanted}, the moments know {known}")
    if data.at_offset is not None and not (isinstance(expand_at, str) and expand_at == "zero"):
        raise ValueError(f'expand_at: expected "zero" for moments of working residuals, got {expand_at!r}')
    data, model = in_precision((data._replace(family=None), model), common_dtype(data.mean, model.decoder))
    family = with_trials(model.family, data.trials)
    return _profile(model, data, family, expansion_point(expand_at, family, data.mean))


@jax.jit
@in_full
def _profile(model: AffineModel, data: Moments, family: Family, eta0: Array) -> Array:
    quadratic = expanded(data, family, eta0, model.dispersion)
    scale, beta = jnp.sqrt(quadratic.weight), model.beta
    per_x = scale * quadratic.slope  # whitened response = per_x * x + ...
    loadings = model.loadings * scale[:, None]
    residual = scale * (quadratic.response - model.intercept)
    spread = per_x[:, None] * data.covariance * per_x[None]
    if data.covariates is not None and model.coefficients is not None:
        effect = model.coefficients * scale[None]
        residual = residual - data.covariates.mean @ effect
        crossed = (data.covariates.cross * per_x[None]).T @ effect
        spread = spread - crossed - crossed.T + effect.T @ data.covariates.covariance @ effect
    spread = spread + residual[:, None] * residual[None]
    # tr(A S) with A = (I + W~ W~' / beta)^-1 = I - W~ M W~' / beta, M = (I + W~' W~ / beta)^-1, by way of
    # A = A A' + W~ M (W~ M)' / beta: no difference of large numbers, an eigenvalue of 10^8 leaves one of 1 its digits
    inner = jnp.eye(loadings.shape[1], dtype=loadings.dtype) + loadings.T @ loadings / beta
    inverse, log_det = symmetric_inverse(inner[None])
    carried = loadings @ inverse[0]
    rest = jnp.eye(loadings.shape[0], dtype=loadings.dtype) - carried @ loadings.T / beta
    left = spread - carried @ (loadings.T @ spread) / beta
    trace = jnp.sum(left * rest) + jnp.sum((spread @ carried) * carried) / beta
    return jnp.sum(quadratic.constant) - 0.5 * (trace + beta * log_det[0])


def affine_arguments(model: Any, x: Any) -> tuple[AffineModel, Source]:
    """A model and the rows it is for; what its objective holds is in their precision and that of the decoder."""
    like, model = model, require_density(as_model(model))
    source = as_source(x, columns=model.decoder.loadings.shape[0], like=like)
    objective = in_precision(model.objective, common_dtype(source, model.decoder))
    return unchecked(AffineModel, decoder=model.decoder, objective=objective), source


def options_of(model: AffineModel) -> dict[str, Any]:
    return {"family": model.family, "num_covariates": model.decoder.num_covariates}


def _expansion_point(expand_at: ArrayLike | str, model: AffineModel, source: Source) -> Float[Array, " d"]:
    """eta0; the null model's takes a pass over the rows."""
    dtype = common_dtype(source, model.decoder)
    if isinstance(expand_at, str) and expand_at == "null":
        return null_point(source, model.family, model.decoder.num_covariates).astype(dtype)
    ones = np.ones(source.num_columns, dtype)
    return expansion_point(expand_at, with_trials(model.family, ones), jnp.asarray(0 * ones))
