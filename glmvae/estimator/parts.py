"""Parts of the estimator that need no scikit-learn: its words checked, tables looked at, moments, keys."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from glmvae import _frames
from glmvae.families import Family
from glmvae.rows import Rows
from glmvae.statistics import Moments, moments


def check_word(value: Any, words: tuple[str, ...], name: str) -> None:
    """One of several words.

    Raises:
        ValueError: another.
    """
    if not (isinstance(value, str) and value in words):
        listed = ", ".join(f'"{word}"' for word in words)
        raise ValueError(f"{name}: expected one of {listed}, got {value!r}")


def check_not_negative(x: np.ndarray, column_names: Any) -> None:
    """Nothing below 0, in scikit-learn's words.

    Raises:
        ValueError: it names the first entry.
    """
    if np.any(x < 0):
        row, column = (int(i) for i in np.argwhere(x < 0)[0])
        where = f"{x[row, column]:g} at [{row}, {column}]{_frames.shown(column, column_names)}"
        raise ValueError(f"Negative values in data passed to AffineVAE (input X), the first {where}")


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
    """
    dtype = rows.dtype
    with jax.enable_x64(True):
        found = moments(rows, family=family)._replace(family=None)
    with np.errstate(over="ignore"):  # what does not fit is refused where the moments are used
        cast: Moments = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), found)
    return cast._replace(family=family)


def key_of(random_state: np.random.RandomState) -> jax.Array:
    """A key of JAX drawn from a generator of NumPy's."""
    return jax.random.key(random_state.randint(2**31 - 1))
