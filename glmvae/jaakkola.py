"""The closed form under Jaakkola and Jordan's bound (:mod:`glmvae.tangents`) with one xi a column.

Its optimum is probabilistic PCA of G^1/2 Cov(y) G^1/2, G and y the weights and responses of the bound, and the xi best
for it is xi_j^2 = mean E t_j^2: :func:`tighten` takes the two in turn, and extrapolates xi from the last few turns
where that raises the bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from glmvae import _checks, _settings
from glmvae._frames import names_for
from glmvae._precision import in_full
from glmvae._progress import bar
from glmvae.elbo.means import mean_elbo
from glmvae.expansion import null_predictor
from glmvae.extrapolation import Memory
from glmvae.families import Family
from glmvae.model import Affine, AffineModel, as_model, require_density
from glmvae.optimum import AffineOptimum, optimum_at
from glmvae.quadratics import Quadratic
from glmvae.refined import RefinedOptimum
from glmvae.sources import as_source, require_offset
from glmvae.spectral import decomposed_spectrum
from glmvae.statistics import Moments, as_moments, columns_of, statistic_of
from glmvae.statistics.at_null import Columns, mean_log_prob
from glmvae.tangents import require_tangent, tangent_quadratic

# Rounding units of the sums that make a bound, allowed for so that it is one in floating point too.
_ROUNDING = 8


def tighten(
    optimum: Any, x: Any, *, tolerance: float = 1e-6, max_rounds: int = 100, progress: bool = False
) -> RefinedOptimum:
    """Raise a closed-form optimum to Jaakkola and Jordan's tighter bound with one xi a column, from moments alone.

    Given xi the closed form of :func:`~glmvae.optimum.fit` applies with weight rho^2 n omega / phi; then xi_j^2 =
    mean E t_j^2, or its extrapolation from the last few rounds. A round is one eigendecomposition, two where the
    extrapolation does not raise the bound.

    Args:
        optimum: where to start, from :func:`~glmvae.optimum.fit`; it sets latent_dim, beta and the dispersion. A
            start that is worse than the null model is replaced by it.
        x: data, (N, d), :class:`~glmvae.rows.Rows` or a source, or their :class:`~glmvae.statistics.Moments` (made
            for the family).
        tolerance: nats per row; stop when a round gains less. In float32 it is at least a few rounding units.
        max_rounds: rounds, at most.
        progress: show a bar (needs tqdm).

    Returns:
        :class:`~glmvae.refined.RefinedOptimum`, with the exact ELBO of its affine encoder where rows were given.

    Raises:
        TypeError: a column that is neither logistic nor Gaussian, by number and family.
        ValueError: rows with an offset, trials an entry or missing entries, which one xi a column has no place for
            (``refine(method="entry")`` has); bad data or moments as ``fit``; tolerance or max_rounds not positive.
        ImportError: ``progress`` without tqdm.

    Exactness: every entry of ``history`` is at least the one before. ``lower_bound`` is a lower bound of the exact
    ELBO, floating point included, for Bernoulli, binomial and Gaussian columns. For a negative binomial, whose trials
    x + r it averages over a column, the objective is no bound, and ``lower_bound`` is None; where rows were given
    nothing is returned whose exact ELBO is below the null model's.

    Example:
        >>> import numpy as np
        >>> from glmvae import fit, tighten
        >>> from glmvae.families import Bernoulli
        >>> z = np.random.default_rng(0).normal(size=(300, 1))
        >>> x = (np.random.default_rng(1).normal(size=(300, 6)) < 2 * z).astype("float32")
        >>> start = fit(x, Bernoulli(), 1)
        >>> bound = tighten(start, x)
        >>> bool(start.elbo_taylor < bound.lower_bound < bound.elbo)
        True

    Source: Jaakkola and Jordan (2000).
    """
    _settings.positive(tolerance, "tolerance")
    max_rounds = _settings.integer(max_rounds, "max_rounds")
    _checks.on_host("tighten", optimum=optimum, x=x)
    model = require_density(as_model(optimum, "optimum"), "optimum")
    require_tangent(model.family)
    source = None if isinstance(x, Moments) else as_source(x, columns=model.loadings.shape[0], like=optimum)
    data = as_moments(x if source is None else source, model.family)
    _checks.columns_of_optimum(model.loadings.shape[0], data.mean.shape[0], "x")
    require_offset(optimum, data.at_offset is not None)
    if data.at_offset is not None or data.trials is not None:
        raise ValueError('x: one xi a column has no place for an offset or trials an entry; use refine(method="entry")')
    with bar(progress, max_rounds, "tighten", "nats per row") as report:
        now, history, converged = _rounds(model, data, float(tolerance), max_rounds, report)
    elbo = None
    if source is not None and source.passes != 1:
        elbo = mean_elbo(now.model, source, now.encoder)
        null = _null(data, model.family, model.dispersion)
        if not _is_bound(model.family) and float(elbo) < float(null.value):
            now, elbo = _collapsed(now, model.family, data), null.value
    return RefinedOptimum(
        model=now.model,
        encoder=now.encoder,
        eigenvalues=now.eigenvalues,
        elbo=elbo,
        lower_bound=_certified(now, data) if _is_bound(model.family) else None,
        posterior=None,
        history=jax.device_put(np.asarray(history, data.mean.dtype)),
        converged=jax.device_put(converged),
        dispersion_estimated=jax.device_put(False),
        **names_for(source, optimum),
    )


def _rounds(
    model: AffineModel, data: Moments, tolerance: float, max_rounds: int, report: Callable[[float], None]
) -> tuple[AffineOptimum, list[float], bool]:
    dtype, units = np.dtype(data.mean.dtype), model.decoder.latent_dim
    phi, zero = jnp.asarray(model.dispersion, dtype), jax.device_put(np.zeros(data.mean.shape, dtype))
    eps = float(np.finfo(dtype).eps)

    def at(xi: np.ndarray) -> AffineOptimum:
        quadratic = tangent_quadratic(data, model.family, phi, jax.device_put(xi.astype(dtype)))
        spectrum = decomposed_spectrum(data, model.family, quadratic, phi, zero, max(units, 1))
        return optimum_at(spectrum, units, beta=model.beta)

    def best_xi(decoder: Affine) -> np.ndarray:
        return np.asarray(_next_xi(model.family, data, decoder), np.float64)

    null, xi, past = _null(data, model.family, phi), best_xi(model.decoder), Memory(eps)
    now = at(xi)
    if not float(now.elbo_taylor) >= float(null.value):
        xi = np.asarray(null.xi, np.float64)
        now = at(xi)
    history, converged = [float(now.elbo_taylor)], False
    for _ in range(max_rounds):
        step, least = best_xi(now.decoder) - xi, max(tolerance, 4 * eps * abs(history[-1]))
        # the bound is even in xi
        proposals = [np.abs(past.extrapolated(xi, step)), xi + step] if past else [xi + step]
        for proposal in proposals:
            new = at(proposal)
            gain = float(new.elbo_taylor) - history[-1]
            if gain >= least:
                past.remember(xi, step)
                break
            past.forget()
        if gain > 0:
            now, xi = new, proposal
            history.append(float(now.elbo_taylor))
            report(history[-1])
        if not gain >= least:
            converged = True
            break
    return now, history, converged


def _is_bound(family: Family) -> bool:
    """Whether the objective is one: trials do not move with x."""
    return family.curvature_is_constant


def _certified(now: AffineOptimum, data: Moments) -> Array:
    """The bound less what rounding may have added: to the sums over columns, and to the moments and eigenvalues."""
    phi, family = now.dispersion, now.family
    quadratic = tangent_quadratic(data, family, phi, _next_xi(family, data, now.decoder))
    return _less_rounding(quadratic, data, family, phi, now.elbo_taylor)


@jax.jit
def _less_rounding(quadratic: Quadratic, data: Moments, family: Family, phi: Array, elbo: Array) -> Array:
    spread = quadratic.weight * (quadratic.slope**2 * jnp.diagonal(data.covariance) + quadratic.response**2)
    # The constant is a difference: log C(n, x) grows as n, and so does what it is taken from
    base = family.log_base_measure_from(statistic_of(data, family, phi), phi)
    constant = jnp.abs(base) + jnp.abs(quadratic.constant - base)
    size = jnp.sum(constant + spread) + jnp.abs(elbo)
    return elbo - _ROUNDING * jnp.finfo(size.dtype).eps * size


def _collapsed(now: AffineOptimum, family: Family, data: Moments) -> AffineOptimum:
    """The null model, in the form of an optimum."""
    loadings = jnp.zeros_like(now.loadings)
    model = AffineModel(Affine(loadings, null_predictor(family, data.mean)), now.model.objective)
    encoder = now.encoder._replace(
        weight=jnp.zeros_like(now.encoder.weight),
        bias=jnp.zeros_like(now.encoder.bias),
        covariance=jnp.eye(loadings.shape[1], dtype=loadings.dtype),
    )
    return now._replace(model=model, encoder=encoder, eigenvalues=jnp.minimum(now.eigenvalues, now.beta))


class _Null(NamedTuple):
    """The null model's log-likelihood, nats per row, and the xi at which the bound attains it."""

    value: Array
    xi: Array


@jax.jit
def _null(data: Moments, family: Family, dispersion: Array) -> _Null:
    eta = family.null_predictor(data.mean)
    value, xi = family.by_member(_null_of, columns_of(data, family, dispersion), dispersion, eta)
    return _Null(jnp.sum(value), xi)


def _null_of(member: Family, known: Columns, dispersion: Array, eta: Array) -> tuple[Array, Array]:
    form = member.logistic_form(known.mean)
    xi = jnp.zeros_like(known.mean) if form is None else jnp.abs(form.scale * eta)
    return mean_log_prob(member, known, eta, dispersion), xi


@jax.jit
@in_full
def _next_xi(family: Family, data: Moments, decoder: Affine) -> Array:
    """xi_j^2 = mean E t_j^2: the mean of E zz' is I where W is not 0."""
    centre, spread = decoder.intercept, jnp.sum(decoder.loadings**2, axis=1)
    if decoder.coefficients is not None and data.covariates is not None:
        centre = centre + data.covariates.mean @ decoder.coefficients
        spread = spread + jnp.sum(decoder.coefficients * (data.covariates.covariance @ decoder.coefficients), axis=0)
    return family.by_member(_xi_of, data.mean, jnp.sqrt(centre**2 + spread))


def _xi_of(member: Family, mean: Array, length: Array) -> Array:
    form = member.logistic_form(mean)
    return jnp.zeros_like(length) if form is None else jnp.abs(form.scale) * length
