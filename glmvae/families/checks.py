"""Checks of families: what :mod:`glmvae._checks` is for arrays."""

from __future__ import annotations

from typing import Any

from glmvae.families.base import Family


def check_family(value: Any, name: str = "family") -> None:
    """An observation model, made (``Bernoulli()``) and not only named (``Bernoulli``)."""
    if not isinstance(value, Family):
        got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        advice = "; pass its .family" if isinstance(getattr(value, "family", None), Family) else ""
        raise TypeError(f"{name}: expected a family such as Bernoulli(), got {got}{advice}")


def check_columns(columns: int, family: Family, name: str) -> None:
    """The family is for that number of columns."""
    if family.columns not in (None, columns):
        raise ValueError(f"{name}: expected {family.columns} columns, the number {family!r} is for, got {columns}")
