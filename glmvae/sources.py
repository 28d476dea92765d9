"""Where rows come from: memory, a memmap, an iterator over batches, a function that gives a fresh one.

A source is on the host's side and gives pieces of :class:`~glmvae.rows.Rows`, in order; the loop over rows
(:mod:`glmvae.blocks`) cuts them further. Another kind, say a folder of compressed files, is one class with
``num_columns`` and ``pieces()``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from glmvae import _checks, _frames
from glmvae._frames import ColumnNames
from glmvae.rows import OFFSET, Brought, Rows, as_rows


class Source:
    """Rows in pieces. Subclasses give :attr:`num_columns`, :attr:`num_rows`, :attr:`dtype` and :meth:`pieces`.

    Attributes:
        num_columns: d.
        num_rows: N, or None where only a pass tells.
        passes: how often :meth:`pieces` may be called, None for as often as wanted.
        dtype: the precision to compute in.
        column_names: of the columns, where they have any: those of a table, of the first batch.
        covariate_names: of the covariates, likewise.
        has_offset: whether the rows bring one; None where that is not known before a pass.
    """

    num_columns: int
    num_rows: int | None = None
    passes: int | None = None
    dtype: np.dtype
    column_names: ColumnNames | None = None
    covariate_names: ColumnNames | None = None
    has_offset: bool | None = None

    def pieces(self) -> Iterator[Rows]:
        """The rows from the first on, in pieces of any length."""
        raise NotImplementedError

    @property
    def rows(self) -> Rows | None:
        """All rows at once where they are in memory, else None."""
        return None


class RowsSource(Source):
    """Rows in memory (or in a memmap, which is read as it is cut)."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self.num_rows, self.num_columns, self.dtype = rows.num_rows, rows.num_columns, rows.dtype
        self.column_names, self.covariate_names = rows.column_names, rows.covariate_names
        self.has_offset = rows.offset is not None

    def pieces(self) -> Iterator[Rows]:
        yield self._rows

    @property
    def rows(self) -> Rows:
        return self._rows


class BatchSource(Source):
    """Batches, each an array (n, d) or Rows, from one iterator, or from a function that gives a fresh one.

    Raises:
        ValueError: no batch, a batch of other columns, of columns of other names or that is no matrix, an offset in
            some batches only (it says which), a second pass over an iterator.
    """

    def __init__(self, make: Callable[[], Iterable[Any]] | Iterator[Any], name: str = "x") -> None:
        self._make, self._name = make, name
        self.passes = 1 if isinstance(make, Iterator) else None
        self._started = False
        self._first: Rows | None = None
        self._iterator = iter(self._open())
        first = next(self._iterator, None)
        if first is None:
            raise ValueError(f"{name}: expected at least one batch of rows, got none")
        self._first = self._batch(first, 0)
        self.num_columns, self.dtype = self._first.num_columns, self._first.dtype
        self.column_names, self.covariate_names = self._first.column_names, self._first.covariate_names
        self.has_offset = self._first.offset is not None

    def _open(self) -> Iterable[Any]:
        if isinstance(self._make, Iterator):
            return self._make
        batches = self._make()
        if not isinstance(batches, Iterable):
            raise TypeError(f"{self._name}: expected the function to return batches, got {type(batches).__name__}")
        return batches

    def _batch(self, batch: Any, index: int) -> Rows:
        try:
            rows = as_rows(batch)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{self._name}: in batch {index}: {error}") from error
        if index and rows.num_columns != self.num_columns:
            raise ValueError(
                f"{self._name}: expected {self.num_columns} columns as in batch 0, "
                f"got {rows.num_columns} in batch {index}"
            )
        if index and self.has_offset != (rows.offset is not None):
            there, got = ("an", "none") if self.has_offset else ("no", "one")
            raise ValueError(
                f"{self._name}: expected every batch to bring {there} offset as batch 0 does, got {got} in batch "
                f"{index}; zeros are no offset"
            )
        if index:
            _frames.refuse_other(rows, self, self._name, "of batch 0", f" in batch {index}")
        return rows

    def pieces(self) -> Iterator[Rows]:
        if self._started and self.passes == 1:
            raise ValueError(
                f"{self._name}: this needs several passes over the rows, an iterator gives one; "
                "pass an array, a memmap, or a function that returns a fresh iterator"
            )
        if self._started:
            batches: Iterable[Any] = self._open()
        else:
            batches, self._started = self._chained(), True
        for index, batch in enumerate(batches):
            yield self._batch(batch, index)

    def _chained(self) -> Iterator[Any]:
        first, self._first = self._first, None
        yield first
        yield from self._iterator


def as_source(x: Any, name: str = "x", columns: int | None = None, like: Any = None) -> Source:
    """A source of whatever rows may be: an array, :class:`Rows`, a :class:`Source`, an iterator, a function.

    Raises:
        ValueError, TypeError: as :class:`Rows`; another number of columns than ``columns``; other names than those of
            ``like``, an optimum or None, where both have names; no offset where the rows of ``like`` brought one.
    """
    if isinstance(x, Source):
        source: Source = x
    elif isinstance(x, Rows):
        source = RowsSource(x)
    elif isinstance(x, Iterator) or (callable(x) and not hasattr(x, "__array__")):
        source = BatchSource(x, name)
    else:
        source = RowsSource(Rows(x))
    if columns is not None and source.num_columns != columns:
        shape = "" if source.rows is None else f" (shape {source.rows.x.shape})"
        raise ValueError(f"{name}: expected {columns} columns, got {source.num_columns}{shape}")
    _frames.refuse_other(source, like, name, "of the optimum")
    require_offset(like, source.has_offset)
    return source


def require_alike(test: Source, source: Source) -> None:
    """Test data are what the data x are: columns (and covariates) of the same names in one order, and an offset in both
    or in neither.

    Raises:
        ValueError: they are not.
    """
    _frames.refuse_other(test, source, "test", "of x")
    if None not in (source.has_offset, test.has_offset) and source.has_offset != test.has_offset:
        an, one, none = ("an", "one", "none") if source.has_offset else ("no", "none", "one")
        raise ValueError(
            f'test: expected {an} offset as x brings {one}, got {none}; zeros say "none", offset=numpy.zeros(N)'
        )


def require_offset(like: Any, has_offset: bool | None) -> None:
    """Rows for an optimum whose own rows brought an offset bring one too: 0 would be taken for it in silence.

    Raises:
        ValueError: they bring none.
    """
    if has_offset is False and "offset" in (getattr(like, "brought", None) or ()):
        raise ValueError(
            'offset: the rows of the optimum brought one, these bring none; zeros say "none", offset=numpy.zeros(N)'
        )


def brought_by(data: Any) -> Brought | None:
    """What of a source, or of moments, an optimum has to remember: its offset.

    Of moments with trials an entry nobody knows whether an offset was in them too: None.
    """
    if isinstance(data, Source):
        return OFFSET if data.has_offset else None
    family = getattr(data, "family", None)
    plain = data.at_offset is None or family is None or family.needs_trials
    return None if plain else OFFSET


def concrete(source: Source) -> bool:
    """Whether the rows can be looked at: no transformation is tracing them."""
    return source.rows is None or _checks.concrete(source.rows)
