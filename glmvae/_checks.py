"""Checks of arrays at the eager boundary: an error names the argument, what was expected, what came, the first index.

Values are looked at only when they are concrete; under ``jit``, ``vmap`` and ``grad`` a check of values is
silent and a bad value shows as a documented NaN. Shapes and types are always checked.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from glmvae import _frames

# Rows.
_BLOCK = 1000


def counted(number: Any, noun: str) -> str:
    """So many of a noun: 1 column, 2 columns."""
    text = f"{float(number):g}" if isinstance(number, float | jax.Array | np.ndarray) else str(number)
    return f"{text} {noun}{'' if text == '1' else 's'}"


def concrete(value: Any) -> bool:
    """Whether the value can be looked at, that is, no part of it is a tracer."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def on_host(function: str, **arguments: Any) -> None:
    """Refuse what a transformation traces, of a function whose loops look at values."""
    for name, value in arguments.items():
        if not isinstance(value, Iterator) and not concrete(value):
            raise TypeError(f"{name}: {function} runs on the host, not under a transformation such as jit")


def not_forked() -> None:
    """Refuse to go on in a fork of a process that has computed: its threads are gone, and JAX would wait for them.

    Raises:
        RuntimeError: this is such a fork.
    """
    if os.getpid() != _first_process():
        raise RuntimeError(
            "this process was forked from one that had computed with JAX, which would wait for ever here; start worker "
            'processes with "spawn" (multiprocessing.get_context("spawn"), joblib\'s loky)'
        )


@functools.cache
def _first_process() -> int:
    """The process of the first call; a fork inherits the answer."""
    return os.getpid()


def at_once() -> contextlib.AbstractContextManager:
    """A context in which what is done to concrete values is done now, inside somebody's jit too.

    Elsewhere it is none at all: in it a program that is traced would compile its constants one by one.
    """
    inside = isinstance(jax.lax.stop_gradient(0.0), jax.core.Tracer)
    return jax.ensure_compile_time_eval() if inside else contextlib.nullcontext()


def compute_dtype(dtype: Any) -> np.dtype:
    """The precision that data of a dtype are computed in: their own if they float, else JAX's default."""
    wide = jax.dtypes.canonicalize_dtype(dtype)
    return np.dtype(
        wide if wide in (np.dtype("float32"), np.dtype("float64")) else jax.dtypes.canonicalize_dtype(float)
    )


def array(value: Any, name: str, kinds: str = "fiub") -> Any:
    """A NumPy or JAX array of real numbers as it is: no copy, no cast. Of a table the values of its columns."""
    if isinstance(value, jax.Array):
        kind = "b" if value.dtype == bool else "f" if jnp.issubdtype(value.dtype, jnp.floating) else value.dtype.kind
    else:
        _refuse_foreign(value, name)
        try:
            value = _frames.values_of(value, name) if _frames.is_table(value) else np.asarray(value)
        except ValueError as error:
            what = type(value).__name__ if hasattr(value, "_fields") else "rows of unequal length"
            raise TypeError(f"{name}: expected an array of numbers, got {what}") from error
        if value.dtype.kind == "O" and not value.ndim:  # one object of some other kind, a loader of batches perhaps
            what, is_loader = type(value.item()).__name__, hasattr(value.item(), "__iter__")
            batches = "; batches go in as an iterator, or as a function that returns one" if is_loader else ""
            raise TypeError(f"{name}: expected an array of numbers, got {what}{batches}")
        kind = value.dtype.kind
    if kind not in kinds:
        what = "booleans" if kinds == "b" else "numbers"
        raise TypeError(f"{name}: expected an array of {what}, got dtype {value.dtype}")
    return value


def _refuse_foreign(value: Any, name: str) -> None:
    if hasattr(value, "tocsr") and not _frames.is_table(value):  # a table may call its columns anything
        raise TypeError(
            f"{name}: expected a dense array, got {type(value).__name__}; pass {name}.toarray(), or blocks of it"
        )
    refuse_annotated(value, name)
    if value is None or isinstance(value, str | bytes | dict | set) or callable(value):
        raise TypeError(f"{name}: expected an array of numbers, got {type(value).__name__}")
    refuse_masked(value, name)


def refuse_annotated(value: Any, name: str) -> None:
    """An AnnData, or the like, has several arrays."""
    if hasattr(value, "obsm") and hasattr(value, "X") and not _frames.is_table(value):
        raise TypeError(
            f"{name}: expected an array, got {type(value).__name__}; pass its .X or one of its .layers, dense"
        )


def refuse_masked(value: Any, name: str) -> None:
    """A mask says that entries are missing, which is known of x alone."""
    if np.ma.is_masked(value):
        raise TypeError(
            f"{name}: expected numbers, got a masked array with {np.ma.count_masked(value)} entries masked; only x may "
            "have missing entries"
        )


def numeric(value: Any, name: str) -> Array:
    """A real floating array: float32 and float64 are kept, all else becomes JAX's default float.

    A Python number stays weakly typed, so that it takes the precision of the arrays it meets.
    """
    if isinstance(value, int | float) and not isinstance(value, np.generic):
        return jnp.asarray(float(value))
    value = array(value, name)
    return jnp.asarray(value, compute_dtype(value.dtype))


def refuse_first(
    x: np.ndarray, bad: np.ndarray, origin: tuple[int, ...], name: str, column_names: tuple[str, ...] | None = None
) -> None:
    """Raise for the first entry that is no finite number."""
    value, where = first_bad(x, bad, origin, column_names)
    advice = "; what is missing goes in as Rows(x, missing=...)" if column_names and np.isnan(value) else ""
    held = f" that {compute_dtype(x.dtype)} can hold" if np.isfinite(value) else ""
    raise ValueError(f"{name}: expected finite numbers{held}, got {value:g}{where}{advice}")


def first_bad(
    x: np.ndarray, bad: np.ndarray, origin: tuple[int, ...], column_names: tuple[str, ...] | None = None
) -> tuple[Any, str]:
    """The first bad value, and the words that say where it stands."""
    if not bad.ndim:
        return x[()], ""
    index = np.argwhere(bad)[0]
    where = f" at {[int(i) + o for i, o in zip(index, origin, strict=True)]}"
    return x[tuple(index)], where + _frames.shown(int(index[-1]), column_names)


def first_index(bad: Any) -> str:
    """The first true entry of a mask as ``[i, j]``."""
    return str([int(i) for i in np.argwhere(np.asarray(bad))[0]])


def finite(value: Any, name: str) -> Any:
    """The array, every entry of which is finite, in the precision in use too; looked at a block of rows at a time."""
    if not concrete(value):
        return value
    host = np.asarray(value)
    narrower = host.dtype.kind == "f" and host.dtype.itemsize > compute_dtype(host.dtype).itemsize
    for start in range(0, max(len(host) if host.ndim else 1, 1), _BLOCK):
        part = host[start : start + _BLOCK] if host.ndim else host
        bad = np.abs(part) > np.finfo(compute_dtype(host.dtype)).max if narrower else ~np.isfinite(part)
        bad |= np.isnan(part)
        if np.any(bad):
            origin = (start, *(0,) * (bad.ndim - 1)) if bad.ndim else ()
            refuse_first(part, bad, origin, name)
    return value


def columns_of_optimum(expected: int, columns: int, name: str) -> None:
    """The data have the optimum's columns."""
    if columns != expected:
        raise ValueError(f"{name}: expected {expected} columns, as the optimum has, got {columns}")


def matrix(
    value: Any, name: str, *, columns: int | None = None, rows: int | None = None, empty_columns: bool = False
) -> Array:
    """A finite matrix with at least one row and, but for ``empty_columns``, one column."""
    result = two_dimensional(numeric(value, name), name, empty_columns=empty_columns)
    if columns is not None and result.shape[1] != columns:
        raise ValueError(f"{name}: expected {columns} columns, got shape {result.shape}")
    if rows is not None and result.shape[0] != rows:
        raise ValueError(f"{name}: expected {rows} rows, got shape {result.shape}")
    return finite(result, name)


def two_dimensional(value: Any, name: str, *, empty_columns: bool = False) -> Any:
    """An array (rows, columns) that is not empty."""
    if value.ndim != 2:
        hints = {1: f"; one row goes in as {name}[None]", 3: "; a list of batches goes in as iter(list)"}
        hint = hints.get(value.ndim, "")
        raise ValueError(f"{name}: expected 2 dimensions (rows, columns), got shape {value.shape}{hint}")
    if not value.shape[0] or not (value.shape[1] or empty_columns):
        raise ValueError(f"{name}: expected at least one row and one column, got shape {value.shape}")
    return value


def vector(value: Any, name: str, length: int) -> Array:
    """A finite vector of that length."""
    array = numeric(value, name)
    if array.shape != (length,):
        raise ValueError(f"{name}: expected shape ({length},), got shape {array.shape}")
    return finite(array, name)
