"""What a user asks before training: how many latent units will stay active, and at which beta they collapse.

Two rules predict the number of active units, the count of lambda_j > beta in the whitened spectrum: the paper's, with
the expansion at eta = 0, and that of the null model, which knows the onset of collapse exactly. Both take one
eigendecomposition each. The third answer, the optimum refined beyond the expansion, needs some rounds over the data.

Of decoders that are not affine, this is what is known. Below the onset collapse is no optimum of any decoder that can
add a small affine term (though a parametrised net may sit there, its gradients dead). From the onset on it is stable
whatever the decoder, and something better may still exist.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from glmvae import _checks, _settings
from glmvae._frames import ColumnNames
from glmvae.ascent import refine as refined_by_rows
from glmvae.diagnosis.noise import directions_above_noise
from glmvae.diagnosis.null_model import NullModel, correlations, null_of_moments, null_of_rows
from glmvae.diagnosis.report import BROUGHT, above_rounding
from glmvae.diagnosis.report import Diagnosis as Diagnosis
from glmvae.elbo.means import mean_elbo
from glmvae.families import Family
from glmvae.families.checks import check_family
from glmvae.jaakkola import tighten
from glmvae.optimum import AffineOptimum, optimum_at
from glmvae.pruning import activity, betas_leaving
from glmvae.refined import RefinedOptimum
from glmvae.sources import Source, as_source
from glmvae.spectral import Spectrum, spectrum_of
from glmvae.statistics import Moments, as_moments
from glmvae.statistics.residuals import is_bounded

_REFINEMENTS = (None, "tighten", "entry", "exact")
# Eigenvectors that are known at least, to tell apart as many directions from noise.
_VECTORS = 32


def diagnose(
    x: Any,
    family: Family,
    latent_dim: int,
    *,
    beta: float | Array = 1.0,
    dispersion: ArrayLike | None = None,
    units: int | None = None,
    refine: str | None = None,
) -> Diagnosis:
    """Predict, before any training, what a beta-VAE with this many latent units will do with the data.

    Args:
        x: data, (N, d), :class:`~glmvae.rows.Rows` or a :class:`~glmvae.sources.Source`, or their
            :class:`~glmvae.statistics.Moments`. With an offset, covariates, trials or missing entries the null model is
            the GLM of these, found by passes over the rows; the paper's rule is left out where it has no closed form
            with them, and the report says so.
        family: the observation model.
        latent_dim: number of latent units [kappa], from 0 to d.
        beta: weight of the KL divergence, positive.
        dispersion: as in :func:`~glmvae.optimum.fit`.
        units: the number of active units to give the range of beta for; None is ``latent_dim``.
        refine: None, or how to find a better optimum, and count its active units too: ``"tighten"``
            (:func:`~glmvae.jaakkola.tighten`), ``"entry"`` or ``"exact"`` (:func:`~glmvae.ascent.refine`).

    Returns:
        :class:`Diagnosis`, a pytree of numbers that prints as a report.

    Raises:
        ValueError, TypeError: as ``fit``; units out of range or not an integer; an unknown ``refine``, and what those
            functions raise; moments that know an offset, trials or covariates.

    Exactness: the onset of collapse and its ELBO are exact for the beta-ELBO. The counts are exact for the optimum of
    L-hat at the two expansion points, and predictions for the beta-ELBO: believe the null model's, or better the
    refined one. For Gaussian all agree and are exact. The edge of noise is an asymptotic law. Weights count as numbers
    of rows. Not for use under ``jit``; its result is a pytree like any other.

    Cost: two eigendecompositions, O(d^3), and one of the correlations where they are another matrix (for Bernoulli data
    that are 0 or 1 they are not); one pass over the data for their moments and, where no bound tells that an optimum is
    above collapse, one for the ELBO of each closed form; with ``refine`` its rounds.

    Example:
        >>> import numpy as np
        >>> from glmvae import diagnose
        >>> from glmvae.families import Bernoulli
        >>> z = np.random.default_rng(0).normal(size=(500, 1))
        >>> x = (z * [2.0, 2.0, 2.0, -2.0] + np.random.default_rng(1).logistic(size=(500, 4)) > 0).astype("float32")
        >>> diagnose(x, Bernoulli(), 2, beta=0.9)
        Diagnosis: 500 rows, 4 columns, 2 latent units, beta = 0.9, dispersion 1
          active units     1 by the paper's rule, 1 by the null model's: believe the null model's
          ...

    Source: (17), (21); the onset of collapse as :func:`~glmvae.pruning.collapse_onset`.
    """
    check_family(family)
    _checks.on_host("diagnose", x=x, family=family)
    if refine not in _REFINEMENTS:
        raise ValueError(f'refine: expected None, "tighten", "entry" or "exact", got {refine!r}')
    source = None if isinstance(x, Moments) else as_source(x)
    brought = _brought(source)
    data = as_moments(x if source is None else source, family) if _has_closed_form(family, brought) else None
    columns = source.num_columns if data is None and source is not None else data.mean.shape[0]  # type: ignore[union-attr]
    latent_dim = _settings.latent_dim(latent_dim, columns, least=0)
    units = (
        latent_dim if units is None else _settings.latent_dim(units, latent_dim, "units", of="latent units", least=0)
    )
    known = max(latent_dim, _VECTORS)
    if source is not None and any(brought):
        null = null_of_rows(source, family, dispersion, known)
    else:
        null = null_of_moments(data, family, dispersion, known)  # type: ignore[arg-type]
    zero = None if data is None else spectrum_of(data, family, dispersion, "zero", known)
    beta = _settings.positive(beta, "beta", dtype=null.spectrum.values.dtype)
    at_null = optimum_at(null.spectrum, latent_dim, beta=beta)
    at_zero = None if zero is None else optimum_at(zero, latent_dim, beta=beta)
    start = at_zero if refine == "tighten" and at_zero is not None else at_null
    refined = None if refine is None else _refined(start, refine, data if source is None else source)
    optimum = _optimum_elbo(source, null, at_null, at_zero, refined, plain=not any(brought))
    found = _with_paper_rule(_diagnosis(null, at_null, refined, optimum, units, brought), zero, at_zero)
    names = None if source is None else source.column_names
    return found if names is None else found._replace(column_names=ColumnNames(names))


def _brought(source: Source | None) -> np.ndarray:
    """What of :data:`BROUGHT` the rows bring; of an iterator only its one pass would tell."""
    if source is None or source.passes == 1:
        return np.zeros(len(BROUGHT), bool)
    pieces = [source.rows] if source.rows is not None else source.pieces()
    found = np.zeros(len(BROUGHT), bool)
    for piece in pieces:
        found |= [getattr(piece, name) is not None for name in BROUGHT]
    return found


def _has_closed_form(family: Family, brought: np.ndarray) -> bool:
    """Whether the paper's rule knows what the rows bring."""
    offset, _, _, missing = brought
    members = [family.of_column(j) for j in range(family.columns or 1)]
    return not missing and (not offset or all(member.is_quadratic or is_bounded(member) for member in members))


def _refined(start: AffineOptimum, method: str, x: Any) -> RefinedOptimum:
    return tighten(start, x) if method == "tighten" else refined_by_rows(start, x, method=method)


def _optimum_elbo(
    source: Source | None,
    null: NullModel,
    at_null: AffineOptimum,
    at_zero: AffineOptimum | None,
    refined: RefinedOptimum | None,
    plain: bool,
) -> tuple[Array | None, bool]:
    """The beta-ELBO of the best affine optimum at hand, and whether it is only bounded below."""
    family = at_null.family
    if refined is not None:
        return (refined.lower_bound, True) if refined.elbo is None else (refined.elbo, False)
    if plain and family.is_quadratic:
        return at_null.elbo_taylor, False
    bound = None
    if at_zero is not None and all(is_bounded(family.of_column(j)) for j in range(family.columns or 1)):
        bound = at_zero.elbo_taylor
        if above_rounding(np.asarray(bound), np.asarray(null.elbo)):
            return bound, True
    if not plain or source is None or source.passes == 1:
        return bound, bound is not None
    awake = [o for o in (at_null, at_zero) if o is not None and np.any(np.asarray(o.loadings))]
    values = [mean_elbo(o.model, source, o.encoder) for o in awake]
    finite = [value for value in values if np.isfinite(value)]
    return max([null.elbo, *finite][len(finite) > 0 :], key=float), False


def _diagnosis(
    null: NullModel,
    at_null: AffineOptimum,
    refined: RefinedOptimum | None,
    optimum: tuple[Array | None, bool],
    units: int,
    brought: np.ndarray,
) -> Diagnosis:
    """The report without the paper's rule."""
    latent_dim, dtype = at_null.loadings.shape[1], null.spectrum.values.dtype
    shared = correlations(null)
    basis = np.asarray(shared.values), np.asarray(shared.vectors)
    above, edge = directions_above_noise(null.variances > 0, *basis, null.degrees)
    active, explained = activity(at_null), _explained(null, at_null)
    refined_units = None
    if refined is not None:
        refined_units = _units_of(refined)
    return Diagnosis(
        rows=null.rows,
        beta=at_null.beta,
        dispersion=at_null.dispersion,
        eigenvalues=None,
        null_eigenvalues=at_null.eigenvalues,
        activity=None,
        null_activity=active,
        active_units=None,
        null_active_units=_units_of(at_null),
        refined_active_units=refined_units,
        correlation_eigenvalues=shared.values,
        noise_edge=_in_precision(edge, dtype),
        directions_above_noise=jax.device_put(above),
        collapse_onset=null.onset,
        collapse_elbo=null.elbo,
        optimum_elbo=optimum[0],
        optimum_elbo_is_bound=jax.device_put(optimum[1]),
        wanted_units=jax.device_put(units),
        beta_range=None,
        null_beta_range=_in_precision(betas_leaving(null.spectrum, units, latent_dim), dtype),
        constant_columns=null.constant_columns,
        boundary_columns=null.boundary_columns,
        explained=_in_precision(explained, dtype),
        collapsed_columns=jax.device_put(explained <= np.sqrt(np.finfo(dtype).eps)),
        brought=jax.device_put(brought),
    )


def _with_paper_rule(found: Diagnosis, zero: Spectrum | None, at_zero: AffineOptimum | None) -> Diagnosis:
    if zero is None or at_zero is None:
        return found
    active, dtype = activity(at_zero), zero.values.dtype
    return found._replace(
        eigenvalues=at_zero.eigenvalues,
        activity=active,
        active_units=_units_of(at_zero),
        beta_range=_in_precision(betas_leaving(zero, int(found.wanted_units), active.shape[0]), dtype),
    )


def _in_precision(values: Any, dtype: Any) -> Array:
    return jax.device_put(np.asarray(values).astype(dtype))


def _units_of(optimum: AffineOptimum | RefinedOptimum) -> Array:
    """The number of its units that are active."""
    values, beta = np.asarray(optimum.eigenvalues), np.asarray(optimum.beta)
    return jax.device_put(int(np.sum(above_rounding(values[: optimum.loadings.shape[1]], beta))))


def _explained(null: NullModel, optimum: AffineOptimum) -> np.ndarray:
    """Diagonal of W W' over that of Cov(y)."""
    signal = np.asarray(null.spectrum.quadratic.weight) * np.sum(np.asarray(optimum.loadings) ** 2, axis=1)
    varies = null.variances > 0
    return np.where(varies, signal / np.where(varies, null.variances, 1.0), 0.0)
