"""Tables whose columns have names: pandas, polars, Arrow, whatever has ``columns`` and becomes an array.

Nothing of theirs is imported. Names are the host's: no compiled program depends on them.
"""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any

import jax
import numpy as np

# Names in a print.
_SHOWN = 6
# How the dtypes of dates, times and what lies between them begin.
_TIMES = ("date", "time", "duration")


@jax.tree_util.register_static
class ColumnNames(tuple[str, ...]):
    """Names of columns; without leaves, so that a result that keeps them is a pytree of arrays still."""

    __slots__ = ()


def is_table(value: Any) -> bool:
    """Whether a value has columns with names, and becomes an array."""
    return hasattr(value, "columns") and hasattr(value, "__array__")


def _names(table: Any) -> list[Any]:
    """What a table calls its columns. Arrow's ``columns`` are the columns themselves."""
    return list(table.column_names if _is_arrow(table) else table.columns)


def _dtypes(table: Any) -> list[Any]:
    """Those of its columns; empty where it does not tell."""
    return [column.type for column in table.columns] if _is_arrow(table) else list(getattr(table, "dtypes", ()))


def _is_arrow(table: Any) -> bool:
    return any(hasattr(column, "to_pylist") for column in table.columns)


def names_of(value: Any) -> ColumnNames | None:
    """The names of a table's columns; None of an array, and where they only count the columns (0, 1, 2, ...)."""
    if not is_table(value):
        return None
    names = _names(value)
    return None if names == list(range(len(names))) else ColumnNames(str(name) for name in names)


def shown(index: int, names: tuple[str, ...] | None) -> str:
    """A column's name as it stands in parentheses behind its index; nothing where it has none."""
    return "" if names is None else f' (column "{names[index]}")'


def refuse_other(rows: Any, wanted: Any, name: str, whose: str, where: str = "") -> None:
    """Where both know names, rows have those of what is wanted, for their columns and for their covariates.

    Raises:
        ValueError: they have not; it names the first.
    """
    for of, kept, what in ((name, "column_names", "the columns"), ("covariates", "covariate_names", "those")):
        refuse_names(getattr(rows, kept, None), getattr(wanted, kept, None), of, f"{what} {whose}{where}")


def refuse_names(names: Any, wanted: Any, name: str, whose: str) -> None:
    """Where both are known, names are those wanted, in their order; another number of them is judged elsewhere.

    Raises:
        ValueError: they are not; it names the first.
    """
    if names is None or wanted is None or len(names) != len(wanted):
        return
    for j, (expected, here) in enumerate(zip(wanted, names, strict=True)):
        if here != expected:
            raise ValueError(f'{name}: expected {whose}, "{expected}" at {j}, got "{here}"')


def names_for(source: Any, start: Any = None) -> dict[str, Any]:
    """Those of a source, or of what it is fitted on from, as fields of a result; None of moments."""
    fields = ("column_names", "covariate_names")
    return {field: getattr(source, field, None) or getattr(start, field, None) for field in fields}


def listed(names: tuple[str, ...] | None) -> str:
    """A line of a print, the first few of them; empty without."""
    if names is None:
        return ""
    return f"\n  columns      {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"


def values_of(table: Any, name: str) -> np.ndarray:
    """A table as an array of numbers, booleans among them; what a nullable column lacks is NaN.

    Raises:
        TypeError: a column of anything else, by its name.
    """
    columns, dtypes = _names(table), _dtypes(table)
    for column, dtype in zip(columns, dtypes, strict=False):
        if str(dtype).lower().startswith(_TIMES):  # of which polars' array counts days, and says nothing
            raise TypeError(_advice(name, str(column), str(dtype)))
    values = np.asarray(table)
    if values.dtype.kind in "fiub" or values.ndim != 2:
        return values
    if values.dtype.kind != "O":
        others = (
            column for column, dtype in zip(columns, dtypes, strict=False) if getattr(dtype, "kind", "O") not in "fiub"
        )
        raise TypeError(_advice(name, str(next(others, columns[0])), str(values.dtype)))
    kinds = [Counter(map(type, column)) for column in values.T]
    for column, found in zip(columns, kinds, strict=True):
        strange = [kind for kind in found if not (_is_number(kind) or _is_missing(kind))]
        if strange:
            raise TypeError(_advice(name, str(column), max(strange, key=found.__getitem__).__name__))
    if all(issubclass(kind, bool | np.bool_) for found in kinds for kind in found):
        return values.astype(bool)
    missing = np.vectorize(lambda entry: _is_missing(type(entry)), otypes=[bool])(values)
    return np.where(missing, np.nan, values).astype(np.float64)


def _is_number(kind: type) -> bool:
    return issubclass(kind, bool | int | float | Decimal | np.bool_ | np.integer | np.floating)


def _is_missing(kind: type) -> bool:
    return kind.__name__ in ("NoneType", "NAType")


def _advice(name: str, column: str, kind: str) -> str:
    return (
        f'{name}: expected columns of numbers, got {kind} in column "{column}"; encode it (one column of booleans a '
        "value, pandas.get_dummies, say), or leave it out"
    )
