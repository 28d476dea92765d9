"""Held-out data: folds of rows or of entries, and what a model that has not seen them gives them, in nats.

Scores are at beta = 1, whatever beta the model was fitted with: the beta-ELBO of the smallest beta is always the
largest. Decoders are padded with loadings of 0 to one width, whose units stay at the prior and add nothing, so that one
compiled program scores them all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from glmvae._frames import shown
from glmvae.ascent import best_posterior
from glmvae.blocks import per_row
from glmvae.elbo import elbo_exact
from glmvae.likelihood import log_likelihood
from glmvae.model import Affine, AffineModel
from glmvae.rows import Rows, row_sum
from glmvae.selection.predictive import log_predictive
from glmvae.sources import RowsSource
from glmvae.variational import Posterior, predictor_moments

_DRAWS = 100


class Fold(NamedTuple):
    """One split.

    Fields:
        train: gives the rows to fit, a copy; of held-out entries all rows, with these missing.
        given: the rows that posteriors are found from.
        asked: the rows to score; of held-out entries all rows, with the others missing.
        size: the weight of each scored row, times its number of entries where entries are held out.
    """

    train: Callable[[], Rows]
    given: Rows
    asked: Rows
    size: np.ndarray


def folds_of_rows(rows: Rows, folds: int, seed: int) -> Iterator[Rows]:
    """The rows in parts of nearly one size, at random; rows of weight 0 are in none.

    Raises:
        ValueError: fewer rows than folds.
    """
    weight = np.ones(rows.num_rows) if rows.weight is None else np.asarray(rows.weight)
    counted = np.flatnonzero(weight > 0)
    if counted.size < folds:
        raise ValueError(f"folds: expected no more than the {counted.size} rows, got {folds}")
    part = np.random.default_rng(seed).permutation(np.arange(counted.size) % folds)
    for fold in range(folds):
        yield _taken(rows, counted[part == fold])


def rows_without(rows: Rows, folds: int, seed: int) -> Iterator[Fold]:
    """Each part held out, with the rows of the others."""
    weight = np.ones(rows.num_rows) if rows.weight is None else np.asarray(rows.weight)
    counted = np.flatnonzero(weight > 0)
    part = np.random.default_rng(seed).permutation(np.arange(counted.size) % folds)
    for fold, held in enumerate(folds_of_rows(rows, folds, seed)):
        others = functools.partial(_taken, rows, counted[part != fold])
        yield Fold(others, held, held, weight[counted[part == fold]])


def _taken(rows: Rows, index: np.ndarray) -> Rows:
    """Those rows; fields that all rows share stay."""
    whole = rows.num_rows
    return rows.map(lambda leaf: leaf if leaf.shape[0] != whole else np.asarray(leaf[index]))


def entries_without(rows: Rows, folds: int, seed: int) -> Iterator[Fold]:
    """The observed entries in parts, at random and alike in every column, each held out.

    Raises:
        ValueError: a column with fewer entries than folds.
    """
    n, d = rows.num_rows, rows.num_columns
    missing = np.broadcast_to(False if rows.missing is None else np.asarray(rows.missing), (n, d))
    weight = np.ones(n) if rows.weight is None else np.asarray(rows.weight)
    counted = ~missing & (weight > 0)[:, None]
    few = counted.sum(axis=0) < folds
    if few.any():
        column = int(np.flatnonzero(few)[0])
        which = f"column {column}{shown(column, rows.column_names)}"
        raise ValueError(f"folds: {which} has {counted.sum(axis=0)[column]} entries, expected at least {folds}")
    rng = np.random.default_rng(seed)
    order = np.argsort(np.where(counted, rng.random((n, d)), np.inf), axis=0)
    rank = np.empty((n, d), int)
    np.put_along_axis(rank, order, np.arange(n)[:, None], axis=0)
    part = (rank + rng.integers(folds, size=d)) % folds
    for fold in range(folds):
        held = counted & (part == fold)
        train = rows.replace(missing=missing | held)
        yield Fold(
            functools.partial(Rows.replace, train), train, rows.replace(missing=~held), weight * held.sum(axis=1)
        )


def padded(model: AffineModel, units: int) -> AffineModel:
    """The model at beta = 1, with further units that are off."""
    loadings = np.asarray(model.loadings)
    wide = np.zeros((loadings.shape[0], units), loadings.dtype)
    wide[:, : loadings.shape[1]] = loadings
    return AffineModel(Affine(wide, model.intercept, model.coefficients), model.objective.with_beta(1.0))


def score_of(model: AffineModel, fold: Fold, metric: str, by_entry: bool, key: Array) -> float:
    """The mean score of what is held out: a row, or with ``by_entry`` an entry."""
    given: Any = fold.given
    q = best_posterior(model, given)
    if by_entry:
        f = _predictive if metric == "log_likelihood" else _expected
        source = RowsSource(fold.asked)
        options: dict[str, Any] = {"family": model.family, "num_covariates": model.decoder.num_covariates}
        value = per_row(f, source, model, given=q, **options)
        weight = 1.0 if fold.asked.weight is None else np.asarray(fold.asked.weight, np.float64)
        return float(np.sum(weight * np.asarray(value, np.float64)) / np.sum(fold.size))
    if metric == "log_likelihood":
        value = log_likelihood(key, model, fold.asked, num_samples=_DRAWS, posterior=q)[0]
    else:
        value = elbo_exact(model, fold.asked, q)
    return float(np.sum(fold.size * np.asarray(value, np.float64)) / np.sum(fold.size))


def _predictive(rows: Rows, posterior: Posterior, model: AffineModel) -> tuple[None, Array]:
    mean, variance = predictor_moments(model.decoder, rows, posterior)
    phi = model.objective.dispersion_of_entries
    return None, row_sum(rows, log_predictive(model.family.for_rows(rows), rows.x, mean, variance, phi))


def _expected(rows: Rows, posterior: Posterior, model: AffineModel) -> tuple[None, Array]:
    mean, variance = predictor_moments(model.decoder, rows, posterior)
    phi = model.objective.dispersion_of_entries
    return None, row_sum(rows, model.family.for_rows(rows).expected_log_prob(rows.x, mean, variance, phi))
