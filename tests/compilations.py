"""How many programs JAX compiles while a test looks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

_seen = 0


def _listen(event: str, duration: float, **_: object) -> None:
    global _seen
    _seen += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_listen)


class Compilations:
    """``number`` of programs compiled in the block it is given to."""

    number = 0


@contextlib.contextmanager
def counted() -> Iterator[Compilations]:
    """Count the programs that are compiled inside."""
    found, before = Compilations(), _seen
    yield found
    found.number = _seen - before
