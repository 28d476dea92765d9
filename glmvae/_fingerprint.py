"""Hashes of what is computed with: arrays in full, and functions by the program that JAX makes of them.

A function has no name that lasts (two processes print two addresses, a closure hides its numbers), but its jaxpr has
all of it: the operations, the literals, the constants it closes over. So two functions count as one where they compute
the same, whatever they are called.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

_SIZE = 16
# What a parameter of an operation says of itself, not of what is computed.
_NAMES = {"name", "debug", "debug_info", "jaxpr_debug", "source_info"}


def of_arrays(tree: Any) -> str:
    """A hash of all arrays in a pytree: where they are, their shapes, dtypes and bytes."""
    digest = hashlib.blake2b(digest_size=_SIZE)
    for where, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(where).encode())
        _array(digest, leaf)
    return digest.hexdigest()


def of_program(f: Callable, *args: Any) -> str:
    """A hash of what ``f(*args)`` computes: its jaxpr and the constants in it; of ``args`` shapes and dtypes count."""
    digest = hashlib.blake2b(digest_size=_SIZE)
    _part(digest, jax.make_jaxpr(f)(*args))
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of the packages whose change may change a program, and where it runs."""
    packages = ("jax", "jaxlib", "flax", "optax")
    return {name: importlib.metadata.version(name) for name in packages} | {"platform": jax.default_backend()}


def to_host(leaf: Any) -> np.ndarray:
    """A leaf as a NumPy array; a PRNG key as its numbers."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _array(digest: Any, leaf: Any) -> None:
    array = to_host(leaf)
    digest.update(f"{array.shape}{array.dtype}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())


def _part(digest: Any, value: Any) -> None:
    """Feed a piece of a jaxpr, or a parameter of an operation."""
    if isinstance(value, ClosedJaxpr):
        _program(digest, value.jaxpr)
        for constant in value.consts:
            _array(digest, constant)
    elif isinstance(value, Jaxpr):
        _program(digest, value)
    elif isinstance(value, np.ndarray | jax.Array):
        _array(digest, value)
    elif isinstance(value, dict):
        _part(digest, [(name, value[name]) for name in sorted(value, key=str)])
    elif isinstance(value, tuple | list):
        digest.update(f"{len(value)}(".encode())
        for part in value:
            _part(digest, part)
    elif callable(value) and not isinstance(value, type):
        digest.update(b"a function")  # such as the derivative of what is not differentiated
    else:
        digest.update(re.sub(r" at 0x[0-9a-f]+", "", repr(value)).encode())


def _program(digest: Any, jaxpr: Jaxpr) -> None:
    """The operations in order, variables by the number of their first appearance."""
    numbers: dict[Any, int] = {}

    def variables(atoms: Any) -> None:
        for atom in atoms:
            if isinstance(atom, Literal):
                _array(digest, atom.val)
                digest.update(str(atom.aval).encode())
            else:
                digest.update(f"v{numbers.setdefault(atom, len(numbers))}:{atom.aval} ".encode())

    variables([*jaxpr.constvars, *jaxpr.invars])
    for operation in jaxpr.eqns:
        digest.update(f"\n{operation.primitive.name} ".encode())
        variables([*operation.invars, *operation.outvars])
        _part(digest, {name: value for name, value in operation.params.items() if name not in _NAMES})
    digest.update(b"\nout ")
    variables(jaxpr.outvars)
