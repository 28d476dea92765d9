"""Factors a reader can name: how much each explains, and the axes in which each column depends on few of them.

Any rotation of the latent space, z -> R'z with W -> W R, is another optimum of the same beta-ELBO. Varimax takes the
one whose squared loadings vary most,

    sum_k [ mean_j l_jk^4 - (mean_j l_jk^2)^2 ],     l = W R,  by Kaiser with its rows at length 1

so that a factor has a few large loadings and many small ones.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from glmvae import _checks
from glmvae._precision import in_full
from glmvae.blocks import total
from glmvae.elbo import affine_arguments
from glmvae.entries import refuse_empty
from glmvae.expansion import working_weight
from glmvae.families import Family
from glmvae.model import Affine, AffineModel, as_model, fixed_predictor, require_density
from glmvae.optimum import Encoder
from glmvae.rows import Rows, observed
from glmvae.sources import Source
from glmvae.variational import Posterior

_MOST_SWEEPS = 500
# A sweep that turns every plane by less, in radians, is the last.
_STILL = 1e-10
# Columns named in the print, a factor.
_SHOWN = 4


class ExplainedVariance(NamedTuple):
    """What the factors explain; ``print`` it to read it.

    Fields:
        by_factor: share of the whole that each factor explains, (kappa,).
        by_column: share of each column, (d, kappa); a column's communality is the sum of its row.
    """

    by_factor: Float[Array, " k"]
    by_column: Float[Array, "d k"]

    @property
    def total(self) -> Float[Array, ""]:
        """Share of the whole that all factors explain."""
        return jnp.sum(self.by_factor)

    def __repr__(self) -> str:
        if not _checks.concrete(self) or jnp.ndim(self.by_column) != 2:
            return f"ExplainedVariance(by_factor={self.by_factor}, ...)"
        share, columns = np.asarray(self.by_factor), np.asarray(self.by_column)
        size = f"{_checks.counted(columns.shape[0], 'column')}, {_checks.counted(share.size, 'factor')}"
        lines = [f"ExplainedVariance: {size}, {share.sum():.1%} together"]
        for k, part in enumerate(share.tolist()):
            first = np.argsort(-columns[:, k], kind="stable")[:_SHOWN]
            named = ", ".join(f"{j} ({columns[j, k]:.0%})" for j in first.tolist() if columns[j, k] > 0)
            lines.append(f"  factor {k:<3d} {part:6.1%}   " + (f"columns {named}" if named else "pruned"))
        return "\n".join(lines)


def explained_variance(model: Any, x: Any = None) -> ExplainedVariance:
    """The share of the variance that each factor explains, of every column and of all.

        W_jk^2 / (|W_j|^2 + 1 / w_j),      sum_j w_j W_jk^2 / sum_j (w_j |W_j|^2 + 1)

    with w the working weights: 1 / w_j is what of a working response the decoder leaves to chance, so that every column
    counts in units of its own noise. They are those at the intercept b, of a row without an offset o and covariates c;
    or, given rows, the mean of those at b + B'c + o, which is elsewhere, and counts for all families but Gaussian.

    Args:
        model: an :class:`~glmvae.model.AffineModel` or a result that has one.
        x: rows, say those of the fit: what they bring and weigh counts, x itself only by what of it is missing. None
            takes a row that brings nothing.

    Returns:
        :class:`ExplainedVariance`.

    Raises:
        TypeError: no model.
        ValueError: no rows, and a family whose trials they bring; rows of another width, that do not bring what the
            model needs, or without an entry in some column; a dispersion of 0.

    Exactness: of the model, under z ~ N(0, I). For Gaussian exact, and with its dispersion estimated at beta = 1 the
    share (lambda_k - 1) / sum lambda of probabilistic PCA; elsewhere on the scale of the linear predictor, with the
    noise to first order.

    Example:
        >>> from glmvae import Affine, AffineModel, Objective
        >>> from glmvae.factors import explained_variance
        >>> from glmvae.families import Gaussian
        >>> decoder = Affine([[1.0, 0.0], [1.0, 1.0]], [0.0, 0.0])
        >>> explained_variance(AffineModel(decoder, Objective(Gaussian(), dispersion=1.0)))
        ExplainedVariance: 2 columns, 2 factors, 60.0% together
          factor 0    40.0%   columns 0 (50%), 1 (33%)
          factor 1    20.0%   columns 1 (33%)

    Source: communalities of factor analysis; Nakagawa, Johnson and Schielzeth (2017) for other families.
    """
    if x is not None:
        model, source = affine_arguments(model, x)
        return ExplainedVariance(*_explained(model.loadings, _mean_weights(model, source)))
    model = require_density(as_model(model))
    if model.family.needs_trials:
        raise ValueError(
            f"x: {model.family!r} has its trials from the rows, give them, or a family with trials a column"
        )
    return ExplainedVariance(*_explained_at(model.loadings, model.intercept, model.family, model.dispersion))


@jax.jit
def _explained_at(loadings: Array, intercept: Array, family: Family, dispersion: Array) -> tuple[Array, Array]:
    return _explained(loadings, working_weight(family, intercept, dispersion))


def _mean_weights(model: AffineModel, source: Source) -> Array:
    """The working weights of the rows at z = 0, averaged over what of each column was observed, (d,)."""
    options: dict[str, Any] = {"family": model.family, "num_covariates": model.decoder.num_covariates}
    summed, entries = total(_summed_weights, source, model, **options)
    if _checks.concrete((summed, entries)):
        refuse_empty(entries, source.column_names)
        return jax.device_put((np.asarray(summed) / np.asarray(entries)).astype(model.loadings.dtype))
    return (summed / entries).astype(model.loadings.dtype)


def _summed_weights(rows: Rows, _: None, model: AffineModel) -> tuple[tuple[Array, Array], None]:
    eta = jnp.broadcast_to(fixed_predictor(model.decoder, rows), rows.x.shape)
    weight = working_weight(model.family.for_rows(rows), eta, model.objective.dispersion_of_entries)
    each = observed(rows, jnp.broadcast_to(rows.weight[:, None], rows.x.shape))
    return (jnp.sum(jnp.where(each > 0, each * weight, 0.0), axis=0), jnp.sum(each, axis=0)), None


@jax.jit
def _explained(loadings: Array, weight: Array) -> tuple[Array, Array]:
    signal = weight[:, None] * loadings**2
    whole = jnp.sum(signal, axis=1) + 1
    return jnp.sum(signal, axis=0) / jnp.sum(whole), signal / whole[:, None]


def varimax(optimum: Any, *, normalize: bool = True) -> Any:
    """The same optimum in the axes of varimax.

    Args:
        optimum: from :func:`~glmvae.optimum.fit`, :func:`~glmvae.jaakkola.tighten` or :func:`~glmvae.ascent.refine`,
            or an :class:`~glmvae.model.AffineModel`.
        normalize: Kaiser's: every column counts alike, whatever its communality.

    Returns:
        What was given, with loadings W R, and encoder and posterior where it has them turned along, z -> R'z; the
        eigenvalues of the units are those for which :func:`~glmvae.pruning.activity` is right in these axes. Pruned
        units stay pruned: active ones alone are rotated, among themselves, and stand by descending explained variance.
        The largest loading of each factor, in units of the noise of its column, is positive. Where the rows bring
        trials nothing tells that noise, and loadings as they are stand in for both.

    Raises:
        TypeError: no model; one that a transformation traces (this runs on the host).

    Exactness: the rotation is orthogonal, so that every ELBO is what it was, up to rounding. The criterion is at a
    local maximum, which no rotation in the plane of two factors raises. The covariance of the encoder is no longer
    diagonal.

    Example:
        >>> from glmvae import Affine, AffineModel
        >>> from glmvae.factors import varimax
        >>> from glmvae.families import Poisson
        >>> mixed = Affine([[1.0, 1.0], [2.0, 2.0], [1.0, -1.0]], [0.0, 0.0, 0.0])
        >>> print(abs(varimax(AffineModel(mixed, Poisson())).loadings).round(3))
        [[1.414 0.   ]
         [2.828 0.   ]
         [0.    1.414]]

    Source: Kaiser (1958), "The varimax criterion for analytic rotation in factor analysis".
    """
    model = as_model(optimum, "optimum")
    loadings = model.loadings
    _checks.on_host("varimax", optimum=optimum)
    host = np.asarray(loadings, np.float64)
    rotation = np.eye(host.shape[1])
    active = np.flatnonzero(np.any(host != 0, axis=0))
    if active.size:
        rotation = _rotation(host, active, np.sqrt(_weights(model)), normalize)
    turned = np.asarray(host @ rotation, loadings.dtype)
    turned[:, active.size :] = 0.0
    result = AffineModel(Affine(turned, model.intercept, model.coefficients), model.objective)
    return result if optimum is model else _turned(optimum, result, rotation, active.size)


@in_full
def _turned(optimum: Any, model: AffineModel, rotation: np.ndarray, active: int) -> Any:
    """The optimum with that model, and the rest of it in the same axes."""
    r = jnp.asarray(rotation, model.loadings.dtype)
    eigenvalues = np.array(optimum.eigenvalues)
    share = 1 - float(optimum.beta) / np.maximum(eigenvalues[: len(rotation)].astype(float), float(optimum.beta))
    with np.errstate(divide="ignore"):
        eigenvalues[:active] = (float(optimum.beta) / (1 - share @ rotation**2))[:active]
    fields = {"model": model, "eigenvalues": jnp.asarray(eigenvalues)}
    if optimum.encoder is not None:
        fields["encoder"] = _turned_encoder(optimum.encoder, r)
    if getattr(optimum, "posterior", None) is not None:
        mean, covariance = optimum.posterior
        fields["posterior"] = Posterior(mean @ r, r.T[None] @ covariance @ r[None])
    return optimum._replace(**fields)


def _weights(model: AffineModel) -> np.ndarray:
    """Working weights, by which factors are ordered and signed; 1 where the rows bring trials."""
    if model.family.needs_trials:
        return np.ones(model.loadings.shape[0])
    return np.asarray(working_weight(model.family, model.intercept, model.dispersion), np.float64)


def _rotation(loadings: np.ndarray, active: np.ndarray, scale: np.ndarray, normalize: bool) -> np.ndarray:
    """(kappa, kappa): active units in the axes of varimax, by descending strength, then the others."""
    units = loadings.shape[1]
    part = loadings[:, active]
    length = np.linalg.norm(part, axis=1, keepdims=True)
    inner = varimax_rotation(part / np.where(length > 0, length, 1.0) if normalize else part)
    turned = part @ inner
    turned = scale[:, None] * turned  # in units of the noise, whatever those of the columns
    order = np.argsort(-np.sum(turned**2, axis=0), kind="stable")
    turned, inner = turned[:, order], inner[:, order]
    inner = inner * np.where(np.take_along_axis(turned, np.argmax(np.abs(turned), axis=0)[None], 0) < 0, -1.0, 1.0)
    whole = np.zeros((units, units))
    whole[active, : active.size] = inner
    others = np.setdiff1d(np.arange(units), active)
    whole[others, active.size + np.arange(others.size)] = 1.0
    return whole


def varimax_rotation(loadings: np.ndarray) -> np.ndarray:
    """The orthogonal matrix that maximises the criterion of ``loadings @ R``, plane after plane.

    In the plane of two factors the best angle has a closed form: with u = x^2 - y^2 and v = 2 x y, a quarter of the
    angle of the complex number sum (u + i v)^2 - (sum (u + i v))^2 / d.
    """
    turned = np.array(loadings, np.float64)
    d, units = turned.shape
    rotation = np.eye(units)
    for _ in range(_MOST_SWEEPS):
        largest = 0.0
        for p, q in combinations(range(units), 2):
            point = (turned[:, p] + 1j * turned[:, q]) ** 2  # u + i v
            angle = 0.25 * float(np.angle(np.sum(point**2) - np.sum(point) ** 2 / d))
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            turned[:, [p, q]] = turned[:, [p, q]] @ turn
            rotation[:, [p, q]] = rotation[:, [p, q]] @ turn
            largest = max(largest, abs(angle))
        if largest < _STILL:
            break
    return rotation


def _turned_encoder(encoder: Encoder, rotation: Array) -> Encoder:
    coefficients = None if encoder.coefficients is None else encoder.coefficients @ rotation
    covariance = rotation.T @ encoder.covariance @ rotation
    return Encoder(rotation.T @ encoder.weight, rotation.T @ encoder.bias, covariance, coefficients)
