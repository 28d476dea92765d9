"""What the estimator is given: tables as scikit-learn looks at them, and rows of the library made of these."""

from __future__ import annotations

from typing import Any

import numpy as np

from glmvae import _checks, _frames, _settings
from glmvae._optional import optional
from glmvae.estimator.named_families import family_of, is_never_negative
from glmvae.estimator.parts import check_words
from glmvae.families import Family
from glmvae.row_fields import refuse_moved
from glmvae.rows import Rows, named
from glmvae.statistics import Moments, same_family
from glmvae.statistics.residuals import brings_residuals

_validation: Any = optional("sklearn.utils.validation", "glmvae.estimator", "sklearn")

FLOATS = (np.float64, np.float32)
_TAKEN_BY = 'method="exact" takes missing entries, the others know the rows by their moments, in which none has a place'


def rows_to_fit(estimator: Any, X: Any, least: int, reset: bool, **brought: Any) -> Any:
    """The rows to fit, with all parameters checked; the estimator keeps the family and the names.

    Args:
        estimator: the estimator.
        X: a table, of at least that many rows.
        least: their number.
        reset: whether the fit begins anew, or goes on from ``moments_``.
        brought: offset, covariates, trials and sample_weight.

    Raises:
        ValueError, TypeError: bad parameters, of which the family comes first, and bad data; it names what is bad.
    """
    check_words(estimator.method, estimator.scoring, estimator.dispersion)
    x, names = _table(estimator, X, least, reset)
    family = family_of(estimator.family, x.shape[1], names)
    rows = _rows(estimator, family, x, names, reset, **brought)
    _settings.latent_dim(estimator.n_components, rows.num_columns, "n_components", least=0)
    if estimator.method != "exact":
        refuse_without_trials(rows)
    if not reset:
        _check_merges(estimator.moments_, rows, family)
    estimator.family_ = family
    return rows


def rows_to_ask(estimator: Any, X: Any, **brought: Any) -> Any:
    """The rows that a fitted estimator is asked about: the columns of the fit, by name where both have names."""
    return _rows(estimator, estimator.family_, *_table(estimator, X, 1, False), False, **brought)


def beside(estimator: Any, family: Family, reset: bool = False, **brought: Any) -> dict[str, Any]:
    """What goes beside X, once its names are held to those of X and of the fit's covariates.

    Raises:
        ValueError: other names; no trials where the family has them from the rows.
    """
    if family.needs_trials and brought["trials"] is None:
        raise ValueError(f"trials: expected a number of trials an entry, which {family!r} has from the rows, got None")
    for name in ("offset", "trials"):
        refuse_moved(brought[name], getattr(estimator, "feature_names_in_", None), name, "of X")
    names = _frames.names_of(brought["covariates"])
    if reset:
        estimator.covariate_names_in_ = names
    _frames.refuse_names(names, getattr(estimator, "covariate_names_in_", None), "covariates", "those of the fit")
    return brought


def _table(estimator: Any, X: Any, least: int, reset: bool) -> tuple[np.ndarray, _frames.ColumnNames | None]:
    options = {"dtype": FLOATS, "ensure_all_finite": False, "ensure_min_samples": least}
    x = _validation.validate_data(estimator, _entering(X), reset=reset, **options)
    names = getattr(estimator, "feature_names_in_", None)
    return x, None if names is None else _frames.ColumnNames(names)


def _rows(
    estimator: Any,
    family: Family,
    x: np.ndarray,
    names: _frames.ColumnNames | None,
    reset: bool,
    *,
    sample_weight: Any = None,
    **brought: Any,
) -> Rows:
    """Rows as the library has them, looked at as scikit-learn does it."""
    _refuse_infinite(x, names)
    missing = _missing_of(x, names, allowed=estimator.method == "exact")
    if is_never_negative(estimator.family):
        _check_not_negative(x, names)
    if sample_weight is not None:
        sample_weight = weights_of(sample_weight, x)
    brought = beside(estimator, family, reset, **brought)
    rows = Rows(x, weight=sample_weight, missing=missing, **brought)
    return named(rows, names, rows.covariate_names)


def weights_of(sample_weight: Any, x: np.ndarray) -> np.ndarray:
    """A weight a row, as scikit-learn takes them; 1 where there are none.

    Raises:
        ValueError: not one for all or one a row; NaN; a number below 0, by its index.
    """
    weight: np.ndarray = _validation._check_sample_weight(sample_weight, x)
    if (weight < 0).any():
        row = int(np.argmax(weight < 0))
        raise ValueError(f"sample_weight: expected no number below 0, got {weight[row]:g} at [{row}]")
    return weight


def refuse_without_trials(rows: Rows) -> None:
    """No entry of 0 trials, which is a missing one, where none has a place.

    Raises:
        ValueError: it names the first.
    """
    for row, column in rows.without_trials[:1]:
        where = f"[{row}, {column}]{_frames.shown(column, rows.column_names)}"
        raise ValueError(f"trials: expected numbers above 0, got 0 at {where}, a missing entry; {_TAKEN_BY}")


def _entering(X: Any) -> Any:
    """A table as it is, its columns looked at; what an array masks is NaN.

    Raises:
        TypeError: Rows; an AnnData; a column that holds no numbers.
    """
    _checks.refuse_annotated(X, "X")
    if isinstance(X, Rows):
        raise TypeError("X: expected a table, got Rows; an offset, covariates and trials are arguments beside X")
    if _frames.is_table(X):
        _frames.values_of(X, "X")  # what is no number is named by its column
    return np.ma.filled(X.astype(np.float64), np.nan) if isinstance(X, np.ma.MaskedArray) else X


def _refuse_infinite(x: np.ndarray, column_names: Any) -> None:
    """No infinity, which is not what is missing either.

    Raises:
        ValueError: it names the first entry.
    """
    if np.isinf(x).any():
        row, column = (int(i) for i in np.argwhere(np.isinf(x))[0])
        which = "infinity" if x[row, column] > 0 else "-infinity"
        raise ValueError(
            f"X: expected finite numbers, got {which} at [{row}, {column}]{_frames.shown(column, column_names)}"
        )


def _check_not_negative(x: np.ndarray, column_names: Any) -> None:
    """Nothing below 0, in scikit-learn's words.

    Raises:
        ValueError: it names the first entry.
    """
    if np.any(x < 0):
        row, column = (int(i) for i in np.argwhere(x < 0)[0])
        where = f"{x[row, column]:g} at [{row}, {column}]{_frames.shown(column, column_names)}"
        raise ValueError(f"Negative values in data passed to AffineVAE (input X), the first {where}")


def _missing_of(x: np.ndarray, column_names: Any, *, allowed: bool) -> np.ndarray | None:
    """Where x is NaN; None where it is nowhere.

    Raises:
        ValueError: it is somewhere and that is not allowed; it names the first entry.
    """
    missing = np.isnan(x)
    if not missing.any():
        return None
    if not allowed:
        row, column = (int(i) for i in np.argwhere(missing)[0])
        where = f"[{row}, {column}]{_frames.shown(column, column_names)}"
        raise ValueError(f"X: expected finite numbers, got NaN at {where}; {_TAKEN_BY}")
    return missing


def _check_merges(before: Moments, rows: Rows, family: Family) -> None:
    """What ``partial_fit`` gets is what it had before: of one family, with covariates and an offset or without.

    Raises:
        ValueError: it is not; it names the argument.
    """
    if before.family is not None and not same_family(before.family, family):
        raise ValueError(f"family: expected {before.family!r} as of the rows before, got {family!r}; `fit` begins anew")
    had = 0 if before.covariates is None else before.covariates.mean.shape[0]
    if rows.num_covariates != had:
        raise ValueError(
            f"covariates: expected {had} as of the rows before, got {rows.num_covariates}; `fit` begins anew"
        )
    had_offset = before.at_offset is not None
    if brings_residuals(family, rows) != had_offset:
        there, got = ("one", "none") if had_offset else ("none", "one")
        raise ValueError(f"offset: expected {there} as of the rows before, got {got}; `fit` begins anew")
