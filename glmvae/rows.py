"""Rows: data in memory with all that differs from row to row.

One rule shapes every field: **its first axis is N, or 1 where the rows share it**. So one function cuts, pads, shards
and maps whatever rows carry, and nothing about an entry is ever guessed from a shape.

    eta_i = W z_i + b + B' covariates_i + offset_i         trials_ij of a binomial,   missing_ij,   weight_i
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from glmvae import _checks, _frames
from glmvae._frames import ColumnNames
from glmvae.families import Family
from glmvae.row_fields import checked_fields

FIELDS = ("x", "trials", "offset", "covariates", "missing", "weight")


@jax.tree_util.register_static
class Brought(tuple[str, ...]):
    """Names of what the rows of a fit brought and no part of its model tells, ``("offset",)``; without leaves, so that
    a result that keeps them is a pytree of arrays still."""

    __slots__ = ()


OFFSET = Brought(("offset",))


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False, repr=False, init=False)
class Rows:
    """Rows of data and what each brings with it; a pytree, checked when made.

    Args:
        x: observations, (N, d). Integers and booleans are numbers; a NumPy masked array's mask joins ``missing``. NumPy
            arrays and memmaps stay where they are and are cast a block at a time. The names of a table's columns
            (pandas, polars, Arrow) are kept as ``column_names`` for errors and reports; they are no part of the pytree,
            and rows rebuilt from it (``map``, ``replace``) have none. Trials, offset and missing that are tables too
            have no column of x at another place.
        trials: of a ``Binomial(None)``, (N, d), (N, 1) or (1, d), not negative; an entry of 0 trials is missing, and
            where one is missing they may be anything. Of a ``Mixed`` (N, d) or (1, d), and 1 in the columns of its
            other members, which know no trials.
        offset: added to eta (log exposure, library size): (N,) or (N, 1), one a row; (N, d); or (1, d), one a column.
            An optimum knows that its rows brought one and refuses rows without; zeros say "none".
        covariates: (N, p), known columns beside the latent ones; a table's names are kept as ``covariate_names``.
        missing: (N, d) or (1, d), true where an entry of x is to be ignored, whatever stands there.
        weight: of the rows in sums and means, (N,), not negative, not all 0. It never changes a row's own result.

    Raises:
        ValueError: another shape (each says which), no rows, values that are not finite, below 0 where none may be,
            weights all 0; it names the argument and the first bad index. Values of x are looked at when the rows meet a
            family, in the first pass over them.
        TypeError: not numbers (a table's column by its name), ``missing`` not booleans.

    Example:
        >>> from glmvae import Rows
        >>> Rows([[1.0, 2.0], [3.0, 4.0]], offset=[0.5, 1.0])
        Rows(x=(2, 2), offset=(2, 1))
    """

    x: Any
    trials: Any
    offset: Any
    covariates: Any
    missing: Any
    weight: Any
    column_names: ColumnNames | None = dataclasses.field(default=None, init=False)
    covariate_names: ColumnNames | None = dataclasses.field(default=None, init=False)
    #: (row, column) of the first entry of each column that is missing for want of trials; no part of the pytree either.
    without_trials: tuple[tuple[int, int], ...] = dataclasses.field(default=(), init=False)

    def __init__(
        self,
        x: ArrayLike,
        *,
        trials: ArrayLike | None = None,
        offset: ArrayLike | None = None,
        covariates: ArrayLike | None = None,
        missing: ArrayLike | None = None,
        weight: ArrayLike | None = None,
    ) -> None:
        fields, without_trials = checked_fields(x, trials, offset, covariates, missing, weight)
        for name, value in zip(FIELDS, fields, strict=True):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "column_names", _frames.names_of(x))
        object.__setattr__(self, "covariate_names", _frames.names_of(covariates))
        object.__setattr__(self, "without_trials", without_trials)

    @property
    def num_rows(self) -> int:
        """N."""
        return self.x.shape[0]

    @property
    def num_columns(self) -> int:
        """d."""
        return self.x.shape[1]

    @property
    def num_covariates(self) -> int:
        """p, 0 without covariates."""
        return 0 if self.covariates is None else self.covariates.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """The precision of what is computed from the rows: that of x if it floats, JAX's default otherwise."""
        return _checks.compute_dtype(self.x.dtype)

    def map(self, f: Callable[[Any], Any]) -> Rows:
        """The rows with f of every field that is there."""
        return self.replace(**{name: f(v) for name in FIELDS if (v := getattr(self, name)) is not None})

    def replace(self, **fields: Any) -> Rows:
        """The rows with other fields, unchecked."""
        rows = Rows.tree_unflatten(None, [fields.get(name, getattr(self, name)) for name in FIELDS])
        object.__setattr__(rows, "without_trials", self.without_trials)
        return rows

    def tree_flatten(self) -> tuple[list[Any], None]:
        """The fields, for JAX."""
        return [getattr(self, name) for name in FIELDS], None

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], None]:
        """The fields with their names, for JAX."""
        return [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in FIELDS], None

    @classmethod
    def tree_unflatten(cls, _: None, fields: Any) -> Rows:
        """Rebuilt from leaves, without a check."""
        rows = object.__new__(cls)
        for name, value in zip(FIELDS, fields, strict=True):
            object.__setattr__(rows, name, value)
        return rows

    def __repr__(self) -> str:
        parts = [f"{name}={np.shape(v)}" for name in FIELDS if (v := getattr(self, name)) is not None]
        return f"Rows({', '.join(parts)})"


def as_rows(x: Any) -> Rows:
    """Rows as they are, or made of a matrix."""
    return x if isinstance(x, Rows) else Rows(x)


def named(rows: Rows, column_names: ColumnNames | None, covariate_names: ColumnNames | None) -> Rows:
    """The same rows, their columns and covariates named."""
    rows = rows.replace()
    object.__setattr__(rows, "column_names", column_names)
    object.__setattr__(rows, "covariate_names", covariate_names)
    return rows


def check_rows(rows: Rows, family: Family, num_covariates: int | None = None, name: str = "x") -> None:
    """The rows bring what the family (and the decoder) need, no less and no more; shapes only.

    Raises:
        ValueError: it names the field that is missing or has no use, and another number of columns.
    """
    if family.columns not in (None, rows.num_columns):
        raise ValueError(
            f"{name}: expected {family.columns} columns, the number {family!r} is for, got shape {rows.x.shape}"
        )
    if family.needs_trials and rows.trials is None:
        raise ValueError(f"{name}: {family!r} has its trials from the rows: Rows(x, trials=...), got none")
    if rows.trials is not None and not family.needs_trials:
        raise ValueError(f"trials: {family!r} takes none from the rows; Binomial(None) does")
    for row, column in rows.without_trials:
        member = family.of_column(column)
        if not member.needs_trials:
            raise ValueError(
                f"trials: expected 1 in a column of {member!r}, which takes none from the rows, got 0 at "
                f"[{row}, {column}]{_frames.shown(column, rows.column_names)}; what is missing there goes in as "
                "Rows(x, missing=...)"
            )
    if num_covariates is not None and rows.num_covariates != num_covariates:
        raise ValueError(
            f"covariates: the decoder has coefficients for {num_covariates}, the rows bring {rows.num_covariates}"
        )


def entered(rows: Rows, family: Family | None, dtype: DTypeLike) -> Rows:
    """Rows as formulas see them: of one dtype, a weight each, and a value of the support where an entry is missing."""

    out = rows.map(lambda leaf: jnp.asarray(leaf).astype(dtype))
    if rows.missing is not None:
        out = out.replace(missing=jnp.asarray(rows.missing))
    if out.weight is None:
        out = out.replace(weight=jnp.ones(out.num_rows, dtype))
    return out if family is None else filled(out, family)


def filled(rows: Rows, family: Family) -> Rows:
    """The rows with a value of the support, and no offset, where an entry is missing."""
    if rows.missing is None:
        return rows
    filler = family.for_rows(rows).mean(jnp.zeros((1, rows.num_columns), rows.dtype))
    fields = {"x": jnp.where(rows.missing, filler, rows.x)}
    if rows.offset is not None:
        fields["offset"] = jnp.where(rows.missing, 0.0, rows.offset)
    return rows.replace(**fields)


def without_idle(rows: Rows) -> Rows:
    """The rows with all that has weight 0 missing: gradients of a masked sum are NaN where what it masks overflows."""
    if rows.weight is None:
        return rows
    idle = jnp.broadcast_to((rows.weight <= 0)[:, None], rows.x.shape)
    return rows.replace(missing=idle if rows.missing is None else rows.missing | idle)


def observed(rows: Rows, values: Array) -> Array:
    """The values, 0 where the entry is missing."""
    return values if rows.missing is None else jnp.where(rows.missing, 0.0, values)


def row_sum(rows: Rows, values: Array) -> Array:
    """The sum over the columns that were observed, (N,)."""
    return jnp.sum(observed(rows, jnp.broadcast_to(values, rows.x.shape)), axis=-1)


def weighted_sum(rows: Rows, values: Array) -> Array:
    """The sum over the rows of values with a leading axis N, each times its row's weight, where that is not 0."""
    weight = jnp.reshape(rows.weight, (-1,) + (1,) * (values.ndim - 1))
    return jnp.sum(jnp.where(weight > 0, weight * values, 0.0), axis=0)
