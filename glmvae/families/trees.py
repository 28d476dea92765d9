"""Families as objects: pytrees rebuilt without the checks of their making, compared by value."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from glmvae import _checks


def register(cls: type) -> None:
    """Make a dataclass a pytree; its fields named in ``cls.static`` are part of the structure.

    Rebuilding goes round ``__init__``, so that its checks see what users pass and never a tracer's stand-in.
    """

    def split(value: Any) -> tuple[list[str], tuple]:
        names = [f.name for f in dataclasses.fields(value)]
        return [n for n in names if n not in cls.static], tuple((n, getattr(value, n)) for n in cls.static)  # type: ignore[attr-defined]

    def flatten_with_keys(value: Any) -> tuple[list, tuple]:
        names, static = split(value)
        return [(jax.tree_util.GetAttrKey(n), getattr(value, n)) for n in names], (tuple(names), static)

    def flatten(value: Any) -> tuple[list, tuple]:
        names, static = split(value)
        return [getattr(value, n) for n in names], (tuple(names), static)

    def unflatten(structure: tuple, leaves: Iterable) -> Any:
        names, static = structure
        value: Any = object.__new__(cls)
        for name, leaf in (*zip(names, leaves, strict=True), *static):
            object.__setattr__(value, name, leaf)
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)


def replaced(value: Any, **fields: Any) -> Any:
    """A copy of a frozen object with other fields, without the checks of its making."""
    result = copy.copy(value)
    for name, field in fields.items():
        object.__setattr__(result, name, field)
    return result


def hashable(value: Any) -> Any:
    """Tuples of numbers in place of an array, so that it can be part of a pytree's structure; else the value itself."""
    return _tuples(np.asarray(value).tolist()) if isinstance(value, jax.Array | np.ndarray | list) else value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def is_same(a: Any, b: Any) -> bool:
    """Whether two fields have one value; arrays entry by entry, tracers only if they are one object."""
    if a is b:
        return True
    if not _checks.concrete((a, b)):
        return False
    if isinstance(a, jax.Array | np.ndarray) or isinstance(b, jax.Array | np.ndarray):
        return bool(np.shape(a) == np.shape(b) and np.all(np.asarray(a) == np.asarray(b)))
    return bool(a == b)
