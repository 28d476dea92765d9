"""Packages that are not needed by :mod:`glmvae`: the benchmark's own, and other libraries to compare with."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import warnings
from collections.abc import Iterator
from typing import Any

ADVICE = 'the benchmark needs {}: pip install -e ".[benchmarks]"'


def needed(name: str) -> Any:
    """A module of the extra ``benchmarks``.

    Raises:
        ImportError: it is not installed; the error says how to.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(ADVICE.format(name.partition(".")[0])) from error


def peer(name: str, *needs: str) -> Any | None:
    """A module of another library, or None where it, or what it fails to require, is not installed."""
    if any(importlib.util.find_spec(part) is None for part in (name.partition(".")[0], *needs)):
        return None
    with quiet():
        return importlib.import_module(name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what others print and warn of."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
