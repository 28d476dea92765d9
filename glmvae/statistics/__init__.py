"""Mean and covariance of the data: all that the closed-form optimum needs, in one pass.

Every block of rows is centred at its own mean before its products are summed, and moments of parts merge exactly
(Chan, Golub and LeVeque 1983; :mod:`glmvae.statistics.centring`). So no row is trusted to be typical of others, float32
keeps its digits where the mean dwarfs the spread, and data may come in any order, in batches, in shards or from several
machines. Covariances divide by the (weighted) number of rows.

Rows with an offset o, or with trials an entry, enter as **working residuals** x - mu(o): Gaussian ones exactly,
logistic ones by Boehning's bound at eta0 = o (:mod:`glmvae.statistics.residuals`), which needs the mean of log p at o
beside.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from glmvae import _checks
from glmvae.blocks import total
from glmvae.cuts import block_size
from glmvae.families import Family
from glmvae.families.checks import check_columns, check_family
from glmvae.sources import as_source
from glmvae.statistics.at_null import Columns, joined
from glmvae.statistics.block_moments import (
    OnHost,
    Part,
    fixed_statistic,
    inside,
    join,
    moments_of_block,
    moments_on_host,
    needs_no_program,
)
from glmvae.statistics.moment_checks import (
    check_covariates,
    check_held,
    check_parts,
    check_possible,
    held_or_nan,
    in_precision,
)

# Entries of a block: the d^2 operations of a merge are to be few beside its products.
_ENTRIES = 6_500_000


class Covariates(NamedTuple):
    """Moments of known covariates beside those of x.

    Fields:
        mean: (p,).
        covariance: (p, p).
        cross: their covariance with the columns of x, (p, d).
    """

    mean: Float[Array, " p"]
    covariance: Float[Array, "p p"]
    cross: Float[Array, "p d"]


class Moments(NamedTuple):
    """Weighted count, mean and covariance of data, and what of a family goes with them; a pytree.

    Fields:
        count: number of rows, or the sum of their weights.
        mean: column means, (d,).
        covariance: (d, d), divided by ``count``.
        base_statistic: column means of ``family.base_statistic``, (d,): with it the moments know the mean log base
            measure K, and so L-hat to its last constant. None where no family was given.
        family: the one given.
        covariates: :class:`Covariates`; None where the rows bring none.
        at_offset: column means of x theta(o) - F(theta(o)), (d,), where rows bring an offset o or trials; mean and
            covariance are then those of x - mu(o). None elsewhere.
        trials: the most of each column, (d,), where rows bring them.
        null_log_prob: column means of log p at the null model (at the offset, of residuals) and phi = 1, (d,): of
            columns of counts, for which K cancels with the rest of log p. 0 for others; None without any.
    """

    count: Float[Array, ""]  # type: ignore[assignment]  # tuple.count gives way
    mean: Float[Array, " d"]
    covariance: Float[Array, "d d"]
    base_statistic: Float[Array, " d"] | None = None
    family: Family | None = None
    covariates: Covariates | None = None
    at_offset: Float[Array, " d"] | None = None
    trials: Float[Array, " d"] | None = None
    null_log_prob: Float[Array, " d"] | None = None

    def __repr__(self) -> str:
        if not _checks.concrete(self) or np.ndim(self.mean) != 1:
            return f"Moments(count={self.count}, mean={self.mean}, covariance={self.covariance})"
        known = "without" if self.base_statistic is None else "with"
        also = "" if self.family is None else f" of {self.family!r}"
        if self.covariates is not None:
            also += f", {_checks.counted(np.shape(self.covariates.mean)[0], 'covariate')}"
        also += "" if self.at_offset is None else ", of working residuals"
        size = f"{_checks.counted(self.count, 'row')}, {_checks.counted(np.shape(self.mean)[0], 'column')}"
        size += f", {np.asarray(self.mean).dtype}"
        return f"Moments of {size}, {known} the mean log base measure{also}"


def moments(x: Any, *, family: Family | None = None) -> Moments:
    """The moments of data, in one pass.

    Args:
        x: data, (N, d); :class:`~glmvae.rows.Rows` (weights, covariates, an offset, trials); a
            :class:`~glmvae.sources.Source`, an iterator over batches or a function that gives one.
        family: the observation model; the data are then checked against its support and ``base_statistic`` is kept.
            Required where rows bring an offset or trials.

    Returns:
        :class:`Moments`; float32 data give float32 moments, float64 data float64.

    Raises:
        ValueError: no rows, no batches, another number of dimensions or of columns, NaN, infinity, a value out of
            the family's support (it names the first bad entry); missing entries, which ``refine`` takes; an offset that
            the family has no closed form with; a covariance that the precision in use cannot hold.
        TypeError: not numbers, no family.

    Exactness: exact up to rounding, whatever the order of the rows, their weights, blocks or source. With mean 100 and
    standard deviation 0.5 the float32 covariance has a relative error below 1e-5 (``tests/test_statistics.py``).
    Float64 data that are computed in float32 are centred before they are cast. Under ``jit`` bad values show as NaN.

    Example:
        >>> from glmvae import Rows, moments
        >>> m = moments([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])
        >>> print(m.mean, m.covariance[0, 1])
        [2. 2.] 2.0
        >>> m
        Moments of 3 rows, 2 columns, float32, without the mean log base measure
        >>> print(moments(Rows([[1.0], [5.0]], weight=[3.0, 1.0])).mean)
        [2.]

    Source: Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance".
    """
    if family is not None:
        check_family(family)
    source = as_source(x)
    if family is not None:
        check_columns(source.num_columns, family, "x")
    size = block_size(source.num_columns, _ENTRIES)
    cast, dtype = in_precision(family, source.dtype), source.dtype
    with _checks.at_once():
        fixed = fixed_statistic(cast, source.num_columns, dtype) if _checks.concrete(cast) else None
    options: dict[str, Any] = {"num_covariates": None, "size": size, "check": inside}
    options["add"] = functools.partial(join, cast)
    options["on_host"] = functools.partial(moments_on_host, dtype=dtype, fixed=fixed)
    options["whole"] = functools.partial(needs_no_program, family, fixed)
    found = total(moments_of_block, source, cast, family=cast, **options)
    part: Part = found.finished() if isinstance(found, OnHost) else found
    covariates = None if part.covariates is None else Covariates(*part.covariates)
    known = part.at_offset, part.trials, part.null_log_prob
    result = Moments(part.count, part.mean, part.covariance, part.base_statistic, None, covariates, *known)
    if _checks.concrete(part):
        with _checks.at_once():
            result = jax.tree.map(lambda leaf: jax.device_put(_cast(leaf, dtype)), result)
            check_held(result, part.low, part.high, source.column_names)
    else:
        result = held_or_nan(result, part.low, part.high)
    return result._replace(family=family)


def _cast(leaf: Any, dtype: Any) -> Any:
    if not isinstance(leaf, np.ndarray | np.generic):
        return leaf
    with np.errstate(over="ignore"):
        return leaf.astype(dtype)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of two sets of rows taken together.

    Args:
        a, b: moments of the two sets, over the same columns and covariates, of one family.

    Returns:
        :class:`Moments`; the base statistic and the family are kept where both have them.

    Raises:
        ValueError: another number of columns or covariates, moments of two families, moments of working residuals with
            others.
        TypeError: an argument that is not Moments.

    Exactness: exact up to rounding, in any order; the means that are merged are rounded already, which columns feel
    that spread over few rounding units of their mean.

    Example:
        >>> from glmvae import merge, moments
        >>> print(merge(moments([[1.0]]), moments([[2.0], [6.0]])).mean)
        [3.]

    Source: Chan, Golub and LeVeque (1983).
    """
    a, b = _checked(a, "a"), _checked(b, "b")
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"b: expected {a.mean.shape[0]} columns as in a, got {b.mean.shape[0]}")
    counts = [0 if m.covariates is None else m.covariates.mean.shape[0] for m in (a, b)]
    if counts[0] != counts[1]:
        raise ValueError(f"b: expected {counts[0]} covariates as in a, got {counts[1]}")
    if (a.at_offset is None) != (b.at_offset is None):
        raise ValueError("b: of a and b one is of rows with an offset or trials, x - mu(offset), and the other of x")
    family = a.family
    if a.family is None or b.family is None:
        family = None
        a, b = (m._replace(family=None, base_statistic=None, null_log_prob=None) for m in (a, b))
    elif not same_family(a.family, b.family):
        raise ValueError(f"b: expected moments of the family of a, {a.family!r}, got those of {b.family!r}")
    return _merged(a._replace(family=None), b._replace(family=None), family)._replace(family=family)


@jax.jit
def _merged(a: Moments, b: Moments, family: Family | None) -> Moments:
    result: Moments = joined(family, a, b)
    return result


# Arguments ------------------------------------------------------------------------------------------------


def statistic_of(data: Moments, family: Family, phi: Array) -> Array:
    """The base statistic of every column, (d,): 0 where none was kept, NaN where it does not determine K(x, phi)."""
    if data.base_statistic is None:
        return jnp.zeros_like(data.mean)

    def of(member: Family, statistic: Array, phi: Array) -> Array:
        return statistic if member.statistic_is_enough else jnp.where(phi == 1, statistic, jnp.nan)

    found: Array = family.by_member(of, data.base_statistic, phi)
    return found


def columns_of(data: Moments, family: Family, phi: Array) -> Columns:
    """What the moments know of each column, for the family's members to take."""
    return Columns(data.mean, jnp.diagonal(data.covariance), statistic_of(data, family, phi), data.null_log_prob)


def as_moments(x: Any, family: Family, name: str = "x") -> Moments:
    """The moments of rows, or Moments as they are: checked, and for that family.

    Raises:
        ValueError: moments of another family, of another number of columns, with means or variances that no data of the
            family have; parts that do not fit each other.
    """
    if not isinstance(x, Moments):
        return moments(x, family=family)
    data = _checked(x, name)
    check_columns(data.mean.shape[0], family, f"{name}.mean")
    if data.family is not None and not same_family(data.family, family):
        raise ValueError(f"{name}: expected moments of {family!r}, got those of {data.family!r}")
    if data.at_offset is None and family.needs_trials:
        raise ValueError(f"{name}: {family!r} has its trials from the rows: moments(Rows(x, trials=...), family=...)")
    if data.at_offset is None:
        check_possible(data, family, name)
    return data


def _checked(data: Any, name: str) -> Moments:
    if not isinstance(data, Moments):
        raise TypeError(f"{name}: expected Moments (see glmvae.moments), got {type(data).__name__}")
    parts = check_parts(data, name)
    if data.covariates is not None:
        parts["covariates"] = Covariates(*check_covariates(data.covariates, parts["mean"], f"{name}.covariates"))
    return data._replace(**parts)


def same_family(a: Family, b: Family) -> bool:
    """Whether two families are one, as far as can be seen: of traced ones the kind alone."""
    if _checks.concrete((a, b)):
        return a == b
    return bool(jax.tree.structure(a) == jax.tree.structure(b))  # type: ignore[operator]
