"""Mean and covariance of a block of rows that lies on the host: NumPy and BLAS, several parts of it side by side.

A product of a matrix with itself is a third cheaper there than compiled by XLA, and needs no compilation. BLAS runs on
one thread for each part: when another job is on the machine, its own threads wait for each other far longer than they
work. Rows are centred in the precision that they come in, before they are cast to that of the result.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from glmvae import threads
from glmvae.decomposition import one_thread
from glmvae.statistics.centring import divisor

# Entries of a part, which stays in cache; operations below which a part more is not worth a thread.
_ENTRIES = 3_300_000
_OPERATIONS = 20_000_000
# Columns up to which products are made in double precision: rows that come in few levels round alike, so that single
# precision is off by tens of units, which for few columns may be all that is left beside a large one.
_NARROW = 64
# Parts that are told apart before they are taken together.
_PARTS = 64


class Sums(NamedTuple):
    """Of parts of the rows, each centred at its own mean: what adds up to their moments.

    Fields:
        gram: the sum of weighted products of all parts, (d, d); adding to it changes it.
        count: the sum of the weights of each part, (parts,).
        mean: of each part, (parts, d), in double precision.
        off: how far from it the part was centred, (parts, d).
        low, high: the least and largest of every column of x.
    """

    gram: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # tuple.count gives way
    mean: np.ndarray
    off: np.ndarray
    low: np.ndarray
    high: np.ndarray


def sums_on_host(
    x: np.ndarray, weight: np.ndarray, dtype: Any, explained: np.ndarray | None, covariates: np.ndarray | None
) -> Sums:
    """Of rows of positive weight.

    Args:
        x: (n, d), of any real dtype.
        weight: (n,).
        dtype: the precision of the products, of many columns.
        explained: what is subtracted of x, (n, d) or (1, d), or None.
        covariates: further columns, (n, p) or (1, p), or None.
    """
    n, d = x.shape
    dtype = np.float64 if d <= _NARROW else dtype
    workers = max(1, min(threads.workers(), n * d * d // _OPERATIONS))
    parts = math.ceil(math.ceil(n / max(1, _ENTRIES // d)) / workers) * workers  # as many for each
    rows = math.ceil(n / parts)
    cuts = [slice(start, min(start + rows, n)) for start in range(0, n, rows)]
    even = bool(np.all(weight == weight[0]))

    def part(cut: slice) -> Sums:
        def of(array: Any) -> Any:
            return array if array is None or len(array) != n else array[cut]

        return _part(x[cut], float(weight[0]) if even else weight[cut], dtype, of(explained), of(covariates))

    with one_thread():
        if workers == 1:
            return functools.reduce(add, map(part, cuts))
        return functools.reduce(add, (found for _, found in threads.side_by_side(part, cuts, workers)))


def _part(rows: np.ndarray, weight: Any, dtype: Any, explained: Any, covariates: Any) -> Sums:
    n, low, high = len(rows), rows.min(axis=0), rows.max(axis=0)
    wide = dtype if np.can_cast(rows.dtype, dtype) else np.float64
    with np.errstate(all="ignore"):
        rows = rows.astype(wide, copy=False)
        if explained is not None:
            rows = rows - explained
        if covariates is not None:
            rows = np.concatenate([rows, np.broadcast_to(covariates.astype(wide), (n, covariates.shape[1]))], axis=1)
        total = weight * n if isinstance(weight, float) else float(np.sum(weight, dtype=np.float64))
        share = (
            None if isinstance(weight, float) else (weight.astype(np.float64) * (n / total)).astype(wide)
        )  # its mean is 1
        mean = rows.mean(axis=0) if share is None else share @ rows / n
        # A column that never leaves its value has variance 0, whatever its mean rounds to.
        near = np.abs(rows[0] - mean) <= 4 * n * np.finfo(wide).eps * np.abs(mean)
        still = np.flatnonzero(near)
        mean[still] = np.where((rows[:, still] == rows[0, still]).all(axis=0), rows[0, still], mean[still])
        centred = np.subtract(rows, mean).astype(dtype, copy=False)
        weights = np.ones(n, dtype) if share is None else share.astype(dtype)
        off = (weights @ centred).astype(np.float64) / n
        if share is not None:
            centred *= np.sqrt(weights)[:, None]
        gram = centred.T @ centred
        if total != n:
            gram *= np.asarray(total / n, dtype)
    return Sums(gram, np.array([total]), (mean + off)[None], off[None], low, high)


def add(a: Sums, b: Sums) -> Sums:
    """The sums of both; that of a is changed."""
    count, mean, off = (np.concatenate(pair) for pair in zip(a[1:4], b[1:4], strict=True))
    low, high = np.minimum(a.low, b.low), np.maximum(a.high, b.high)
    with np.errstate(all="ignore"):
        both = Sums(np.add(a.gram, b.gram, out=a.gram), count, mean, off, low, high)
        if len(both.count) < _PARTS:
            return both
        count, mean, spread = _between(both)
        both.gram[:] += spread.astype(both.gram.dtype)
    return both._replace(count=np.array([count]), mean=mean[None], off=np.zeros_like(mean)[None])


def finished(sums: Sums) -> tuple[Any, np.ndarray, np.ndarray]:
    """Sum of weights, mean and covariance, in double precision, of all parts at once (Chan, Golub and LeVeque 1983)."""
    with np.errstate(all="ignore"):
        count, mean, spread = _between(sums)
        spread += sums.gram
        spread /= divisor(count)
        return count, mean, spread


def mean_of(sums: Sums) -> tuple[Any, np.ndarray]:
    """Sum of weights, and mean."""
    count = sums.count.sum()
    heaviest = sums.mean[np.argmax(sums.count)]
    return count, heaviest + sums.count @ (sums.mean - heaviest) / divisor(count)


def _between(sums: Sums) -> tuple[Any, np.ndarray, np.ndarray]:
    """Sum of weights, mean, and the sum of weighted products of what the means of the parts are apart."""
    count, mean = mean_of(sums)
    apart, weight = sums.mean - mean, sums.count[:, None]
    apart, off = np.sqrt(weight) * apart, np.sqrt(weight) * sums.off
    with one_thread():  # of a product with itself half is made, so that it is symmetric
        spread = apart.T @ apart
        spread -= off.T @ off
    return count, mean, spread
