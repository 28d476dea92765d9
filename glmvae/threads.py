"""Work side by side in threads, its results in order: parts of a product in BLAS, blocks of rows in a compiled program.

XLA's CPU client runs what one thread calls one program after the other, and spreads over the cores only the larger
operations of each: a program of many small ones leaves cores idle that another block could use.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import jax

Job = TypeVar("Job")

# Threads at most: each has the temporaries of a block.
_THREADS = 8


def workers() -> int:
    """Threads that have a core each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_THREADS, cores)


def side_by_side(f: Callable[[Job], Any], jobs: Iterable[Job], ahead: int) -> Iterator[tuple[Job, Any]]:
    """Each job with f of it, in order; so many are started before the result of the first is asked for.

    What holds in the caller's context (``np.errstate``) holds for f. Where one fails, or the caller goes no further,
    what has not begun is given up and what has is waited for.
    """
    coming = ((job, _pool().submit(contextvars.copy_context().run, f, job)) for job in jobs)
    started: deque[tuple[Job, Future]] = deque()
    try:
        started.extend(itertools.islice(coming, ahead))
        while started:
            job, result = started[0]
            yield job, result.result()
            started.popleft()
            started.extend(itertools.islice(coming, 1))
    finally:
        wait([result for _, result in started if not result.cancel()])


def programs_side_by_side(f: Callable[[Job], Any], jobs: Iterable[Job]) -> Iterator[tuple[Job, Any]]:
    """Each job with f of it, which may run a compiled program, in order: the first in this thread, which compiles it.

    Settings of JAX that hold in this thread alone (``with jax.default_matmul_precision(...)``) would be lost in others,
    and the program compiled again: but for the precision all is then done here.
    """
    todo = iter(jobs)
    for first in itertools.islice(todo, 1):
        yield first, f(first)
    others = list(todo)
    if not others or workers() == 1 or jax.default_backend() != "cpu":
        yield from ((job, f(job)) for job in others)
        return
    settings: dict[str, Any] = jax.config.values

    def there(job: Job) -> tuple[bool, Any]:
        with _precision(settings["jax_enable_x64"]):
            same = jax.config.values == settings
            return same, jax.block_until_ready(f(job)) if same else None

    for job, (done, result) in side_by_side(there, others, 2 * workers()):
        yield job, result if done else f(job)


def _precision(double: bool) -> contextlib.AbstractContextManager:
    """A context of that precision, none where it is so."""
    return contextlib.nullcontext() if jax.config.values["jax_enable_x64"] == double else jax.enable_x64(double)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers(), thread_name_prefix="glmvae")
