"""Parts of the estimator that need no scikit-learn: its words checked, moments, keys."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from glmvae._frames import names_for
from glmvae.entries import refuse_empty
from glmvae.families import Family
from glmvae.rows import Rows, named
from glmvae.statistics import Moments, moments
from glmvae.statistics.moment_checks import check_held

_METHODS = ("closed-form", "tightened", "exact")
_SCORINGS = ("elbo", "likelihood")


def check_words(method: Any, scoring: Any, dispersion: Any) -> None:
    """Those that the estimator knows.

    Raises:
        ValueError: others.
    """
    _check_word(method, _METHODS, "method")
    _check_word(scoring, _SCORINGS, "scoring")
    if isinstance(dispersion, str) and (dispersion, method) != ("estimate", "exact"):
        raise ValueError(f'dispersion: expected a number, or "estimate" with "exact", got {dispersion!r}')


def _check_word(value: Any, words: tuple[str, ...], name: str) -> None:
    if not (isinstance(value, str) and value in words):
        listed = ", ".join(f'"{word}"' for word in words)
        raise ValueError(f"{name}: expected one of {listed}, got {value!r}")


def filled(rows: Rows) -> Rows:
    """What the closed form can start from: no offset, and column means (of shares, with trials) where an entry is
    missing.

    Raises:
        ValueError: a column without any entry.
    """
    fields: dict[str, Any] = {"offset": None}
    if rows.missing is not None:
        trials = np.broadcast_to(1.0 if rows.trials is None else np.asarray(rows.trials), rows.x.shape)
        weight = np.ones(rows.num_rows) if rows.weight is None else np.asarray(rows.weight)
        counted = np.where(rows.missing, 0.0, weight[:, None])
        of = np.sum(counted * trials, axis=0)
        refuse_empty(of, rows.column_names, "X")
        mean = np.sum(counted * np.where(rows.missing, 0.0, rows.x), axis=0) / of
        fields |= {"x": np.where(rows.missing, (mean * trials).astype(rows.dtype), rows.x), "missing": None}
    return named(rows.replace(**fields), **names_for(rows))


def merges_moments(estimator: Any) -> bool:
    """Whether the method works from moments.

    Raises:
        AttributeError: it does not.
    """
    if estimator.method == "exact":
        raise AttributeError(
            'method: partial_fit merges moments, from which "exact" cannot be found; "closed-form" and "tightened" can'
        )
    return True


def moments_of(rows: Rows, family: Family) -> Moments:
    """In double precision, whatever JAX is set to, if the rows are; then cast to what the rest is computed in.

    So tables, which have 64 bits, give the same moments in any order, and rows the same as their repeats and weights.

    Raises:
        ValueError: that precision cannot hold the covariance; it names the column.
    """
    dtype = rows.dtype
    with jax.enable_x64(True):
        found = moments(rows, family=family)._replace(family=None)
    with np.errstate(over="ignore"):
        cast: Moments = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), found)
    check_held(cast, np.min(rows.x, axis=0), np.max(rows.x, axis=0), rows.column_names)
    return cast._replace(family=family)


def key_of(random_state: np.random.RandomState) -> jax.Array:
    """A key of JAX drawn from a generator of NumPy's."""
    return jax.random.key(random_state.randint(2**31 - 1))
