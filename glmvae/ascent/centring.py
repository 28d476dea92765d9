"""Covariates about their means while a decoder climbs: a year varies little beside its size.

    b + B' c = (b + B' mean) + B' (c - mean)

In single precision the sums of products of a covariate of 2000 +- 5 with itself and with 1 leave nothing to tell the
two apart; about the mean they do.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from glmvae import _checks
from glmvae.model import Affine
from glmvae.rows import Rows
from glmvae.sources import RowsSource, Source


class _Centred(Source):
    """The rows of another source, their covariates less a centre."""

    def __init__(self, source: Source, centre: np.ndarray) -> None:
        self._source, self._centre = source, centre
        self.num_columns, self.num_rows, self.dtype = source.num_columns, source.num_rows, source.dtype
        self.passes, self.column_names, self.has_offset = source.passes, source.column_names, source.has_offset

    def pieces(self) -> Iterator[Rows]:
        return (_less(rows, self._centre) for rows in self._source.pieces())


def centred(source: Source, centre: np.ndarray) -> Source:
    """The same rows, covariates (p,) less the centre."""
    if source.rows is not None:
        return RowsSource(_less(source.rows, centre))
    return _Centred(source, centre)


def recentred(decoder: Affine, centre: np.ndarray) -> Affine:
    """The decoder that gives with covariates less the centre what this one gives with them; minus it leads back."""
    assert decoder.coefficients is not None
    shift = centre @ np.asarray(decoder.coefficients, np.float64)
    intercept = np.asarray(decoder.intercept)
    return Affine(decoder.loadings, (intercept + shift).astype(intercept.dtype), decoder.coefficients)


def _less(rows: Rows, centre: np.ndarray) -> Rows:
    if rows.covariates is None:
        return rows
    covariates = np.asarray(rows.covariates)
    return rows.replace(covariates=(covariates - centre).astype(_checks.compute_dtype(covariates.dtype)))
