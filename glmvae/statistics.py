"""Mean and covariance of the data: all that the closed-form optimum needs, in one pass.

Every block of rows is centred at its own mean before its products are summed, and moments of parts merge exactly
(Chan, Golub and LeVeque 1983; :mod:`glmvae.centring`). So no row is trusted to be typical of others, float32 keeps its
digits where the mean dwarfs the spread, and data may come in any order, in batches, in shards or from several machines.
Covariances divide by the (weighted) number of rows.

Rows with an offset o, or with trials an entry, enter as **working residuals** x - mu(o): Gaussian ones exactly,
logistic ones by Boehning's bound at eta0 = o (:mod:`glmvae.residuals`), which needs the mean of log p at o beside.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from glmvae import _checks
from glmvae.blocks import all_inside, block_size, total
from glmvae.centring import Origin, centred_moments, divisor, merged
from glmvae.families import Family, Support
from glmvae.moment_checks import check_covariates, check_held, check_parts, check_possible, in_precision
from glmvae.residuals import brings_residuals, working_residual
from glmvae.rows import Rows
from glmvae.sources import as_source

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
    """

    count: Float[Array, ""]  # type: ignore[assignment]  # tuple.count gives way
    mean: Float[Array, " d"]
    covariance: Float[Array, "d d"]
    base_statistic: Float[Array, " d"] | None = None
    family: Family | None = None
    covariates: Covariates | None = None
    at_offset: Float[Array, " d"] | None = None
    trials: Float[Array, " d"] | None = None

    def __repr__(self) -> str:
        if not _checks.concrete(self) or np.ndim(self.mean) != 1:
            return f"Moments(count={self.count}, mean={self.mean}, covariance={self.covariance})"
        known = "without" if self.base_statistic is None else "with"
        also = "" if self.family is None else f" of {self.family!r}"
        also += "" if self.covariates is None else f", {np.shape(self.covariates.mean)[0]} covariates"
        also += "" if self.at_offset is None else ", of working residuals"
        return (
            f"Moments of {float(self.count):g} rows, {np.shape(self.mean)[0]} columns, {np.asarray(self.mean).dtype}, "
            f"{known} the mean log base measure{also}"
        )


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
        _checks.family(family)
    source = as_source(x)
    size = block_size(source.num_columns, _ENTRIES)
    cast, origin = in_precision(family, source.dtype), Origin()
    options: dict[str, Any] = {"add": _join, "num_covariates": None, "size": size, "origin": origin.of}
    options["check"] = _inside
    part = total(_block, source, cast, family=cast, **options)
    result = part.moments._replace(family=family)
    if _checks.concrete(part):
        check_held(part.moments, part.low, part.high)
    if origin.point is not None:
        mean = (np.asarray(result.mean, np.float64) + origin.point).astype(source.dtype)
        result = result._replace(mean=jnp.asarray(mean))
    return result


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

    Exactness: exact up to rounding, in any order.

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
        a, b = (m._replace(family=None, base_statistic=None) for m in (a, b))
    elif not same_family(a.family, b.family):
        raise ValueError(f"b: expected moments of the family of a, {a.family!r}, got those of {b.family!r}")
    return _merged(a._replace(family=None), b._replace(family=None))._replace(family=family)


# One block ------------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """Moments of a block, and the least and largest value of its columns."""

    moments: Moments
    low: Array
    high: Array


def _block(rows: Rows, shifted: Array | None, family: Family | None) -> tuple[_Part, None]:
    _refuse(rows, family)
    x, at_offset, statistic, trials = rows.x, None, None, None
    if family is not None:
        resolved = family.for_rows(rows)
        statistic = _mean_statistic(rows, resolved)
    near = x if shifted is None else shifted
    if family is not None and brings_residuals(family, rows):
        near, kernel = working_residual(family, rows, near)
        at_offset = _mean(rows, kernel)
    d, covariates = rows.num_columns, None
    if family is not None and family.needs_trials:
        most = jnp.max(jnp.where(rows.weight[:, None] > 0, rows.trials, 1.0), axis=0)
        trials = jnp.broadcast_to(most, (d,))
    joint = near if not rows.num_covariates else jnp.concatenate([near, rows.covariates], axis=1)
    found = centred_moments(joint, rows.weight)
    mean, covariance = found.mean, found.covariance
    if rows.num_covariates:
        covariates = Covariates(mean[d:], covariance[d:, d:], covariance[d:, :d])
        mean, covariance = mean[:d], covariance[:d, :d]
    result = Moments(found.count, mean, covariance, statistic, None, covariates, at_offset, trials)
    ends = (found.low[:d], found.high[:d]) if near is x else (jnp.min(x, axis=0), jnp.max(x, axis=0))
    return _Part(result, *ends), None


def _inside(rows: Rows, family: Family | None, part: _Part) -> Array:
    """Whether all rows of a block are in the support: where its limits are those of a column, its ends tell."""
    support = Support() if family is None else family.support
    if rows.trials is not None:
        return all_inside(rows, family)
    return jnp.all(support.contains(part.low) & support.contains(part.high))


def _refuse(rows: Rows, family: Family | None) -> None:
    """Rows that no moments tell all about."""
    if rows.missing is not None:
        raise ValueError(
            "missing: moments, and with them the closed form, know no missing entries; `refine` takes them (so does a "
            "trial count of 0, which is a missing entry)"
        )
    for name in ("offset", "trials"):
        if family is None and getattr(rows, name) is not None:
            raise ValueError(f"{name}: moments of rows with {name} need the family, moments(x, family=...), got none")


def _mean(rows: Rows, values: Array) -> Array:
    """The weighted mean over rows."""
    weight = rows.weight[:, None]
    return jnp.sum(jnp.where(weight > 0, weight * values, 0.0), axis=0) / divisor(jnp.sum(rows.weight))


def _mean_statistic(rows: Rows, family: Family) -> Array:
    """Of ``base_statistic``; where it is the same for every x that of one row will do."""
    columns = jax.make_jaxpr(family.base_statistic)(rows.x[:1]).jaxpr
    if rows.trials is None and not any(columns.invars[0] in equation.invars for equation in columns.eqns):
        return family.base_statistic(rows.x[:1])[0]
    return _mean(rows, family.base_statistic(rows.x))


@jax.jit
def _merged(a: Moments, b: Moments) -> Moments:
    result: Moments = merged(a, b)
    return result


@jax.jit
def _join(a: _Part, b: _Part) -> _Part:
    shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(part)] for part in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "x: expected every batch to bring an offset, trials and as many covariates as the first, or none"
        )
    return _Part(merged(a.moments, b.moments), jnp.minimum(a.low, b.low), jnp.maximum(a.high, b.high))


# Arguments ------------------------------------------------------------------------------------------------


def as_moments(x: Any, family: Family, name: str = "x") -> Moments:
    """The moments of rows, or Moments as they are: checked, and for that family.

    Raises:
        ValueError: moments of another family, of another number of columns, with means or variances that no data of the
            family have; parts that do not fit each other.
    """
    if not isinstance(x, Moments):
        return moments(x, family=family)
    data = _checked(x, name)
    _checks.columns_of(data.mean.shape[0], family, f"{name}.mean")
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
