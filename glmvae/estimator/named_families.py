"""Families as a user of a table names them: by a word, or by the columns that each is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from glmvae.families import Bernoulli, Binomial, Exponential, Family, Gamma, Gaussian, Mixed, Poisson

FAMILIES: dict[str, Family] = {
    "bernoulli": Bernoulli(),
    "binomial": Binomial(None),
    "exponential": Exponential(),
    "gamma": Gamma(),
    "gaussian": Gaussian(),
    "poisson": Poisson(),
}


def family_of(value: Any, columns: int, names: tuple[str, ...] | None) -> Family:
    """The family that a word, an object, or a family for each group of columns stands for.

    Args:
        value: a word of :data:`FAMILIES`, a family, or ``{family: columns}`` or pairs ``(family, columns)``, whose
            columns are names or indices, one or a list of them; together every column once.
        columns: d.
        names: of the columns.

    Raises:
        TypeError: something else.
        ValueError: an unknown word; a column that is not there, without a family or with several; it names it.
    """
    pairs = _pairs(value)
    if pairs is None:
        return _member(value)
    of_column: dict[int, int] = {}
    for group, (_, members) in enumerate(pairs):
        for member in _each(members):
            column = _index(member, columns, names)
            if column in of_column:
                raise ValueError(f"family: expected every column once, got {_shown(column, names)} more than once")
            of_column[column] = group
    none = [column for column in range(columns) if column not in of_column]
    if none:
        raise ValueError(f"family: expected every column once, got none for {_shown(none[0], names)}")
    groups = [sorted(column for column, of in of_column.items() if of == group) for group in range(len(pairs))]
    return Mixed([(_member(family), group) for (family, _), group in zip(pairs, groups, strict=True)])


def dispersion_of(family: Family, dispersion: Any, columns: int, names: tuple[str, ...] | None) -> ArrayLike | None:
    """A scalar, where only some columns leave their dispersion open, is for these alone; ``{column: value}``, of names
    or indices, is for the columns it names; all else as it is.

    One to be estimated starts as ``fit`` has it, or at 1.

    Raises:
        ValueError: a column that is not there, or there twice; one that leaves its dispersion open and gets none. It
            names it.
        TypeError: a value that is no number.
    """
    if isinstance(dispersion, Mapping):
        return _of_columns(family, dispersion, columns, names)
    if isinstance(dispersion, str):
        dispersion = None if family.has_joint_dispersion else 1.0
    if dispersion is None or np.ndim(dispersion) or family.columns is None:
        return dispersion
    fixed = np.array([family.of_column(column).fixed_dispersion is not None for column in range(family.columns)])
    return dispersion if fixed.all() else np.where(fixed, 1.0, dispersion)


def _of_columns(
    family: Family, dispersion: Mapping[Any, Any], columns: int, names: tuple[str, ...] | None
) -> np.ndarray:
    """One value a column, 1 where the family fixes it and none is given."""
    given: dict[int, float] = {}
    for column, value in dispersion.items():
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise TypeError(f"dispersion: expected a number for each column, got {value!r} for {column!r}")
        index = _index(column, columns, names, "dispersion")
        if index in given:
            raise ValueError(f"dispersion: expected a column once, got {_shown(index, names)} more than once")
        given[index] = float(value)
    for column in range(columns):
        if column not in given and family.of_column(column).fixed_dispersion is None:
            raise ValueError(
                f"dispersion: expected a value for every column that leaves it open, got none for "
                f"{_shown(column, names)} of {family.of_column(column)!r}"
            )
    return np.array([given.get(column, 1.0) for column in range(columns)])


def is_never_negative(value: Any) -> bool:
    """Whether no column of that family may be below 0; False of what is no family."""
    pairs = _pairs(value)
    try:
        members = [_member(value)] if pairs is None else [_member(family) for family, _ in pairs]
    except (TypeError, ValueError):
        return False
    each = [member.of_column(column) for member in members for column in range(member.columns or 1)]
    return all(member.needs_trials or bool(np.all(np.asarray(member.support[0]) >= 0)) for member in each)


def _pairs(value: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(value, Mapping):
        return list(value.items())
    is_list = isinstance(value, list | tuple) and all(isinstance(v, list | tuple) and len(v) == 2 for v in value)
    return list(value) if is_list else None


def _member(value: Any) -> Family:
    if isinstance(value, Family):
        return value
    words = ", ".join(f'"{name}"' for name in FAMILIES)
    if not isinstance(value, str):
        got = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
        raise TypeError(f"family: expected one of {words}, a family, or families with their columns, got {got}")
    if value not in FAMILIES:
        raise ValueError(f"family: expected one of {words}, got {value!r}")
    return FAMILIES[value]


def _each(columns: Any) -> list[Any]:
    if isinstance(columns, str) or not isinstance(columns, Iterable):
        return [columns]
    return list(columns)


def _index(column: Any, columns: int, names: tuple[str, ...] | None, what: str = "family") -> int:
    if isinstance(column, str):
        if names is None:
            raise ValueError(f'{what}: expected indices, X has no column names to look "{column}" up in')
        found = [j for j, name in enumerate(names) if name == column]
        if len(found) != 1:
            raise ValueError(f'{what}: expected names of columns of X, got "{column}", of which there are {len(found)}')
        return found[0]
    if isinstance(column, bool | np.bool_) or not isinstance(column, int | np.integer):
        raise TypeError(f"{what}: expected names or indices of columns, got {column!r}")
    if not 0 <= column < columns:
        raise ValueError(f"{what}: expected indices from 0 to {columns - 1}, got {column}")
    return int(column)


def _shown(column: int, names: tuple[str, ...] | None) -> str:
    return f"column {column}" if names is None else f'column "{names[column]}"'
