"""Matrix products to the precision of what enters them.

A GPU or a TPU keeps 10 or 7 bits of the factors of a float32 product unless told otherwise, and an ELBO is a sum of
thousands of terms that nearly cancel. So every product of the library, and of a decoder that it evaluates, is told. A
net in training is not: its products are as ``jax.default_matmul_precision`` has them, like those of any Flax net.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


def in_full(f: Callable[P, R]) -> Callable[P, R]:
    """f with its products in full, whatever JAX's default; under ``jax.jit`` it acts while f is traced."""

    @functools.wraps(f)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return f(*args, **kwargs)

    return wrapped
