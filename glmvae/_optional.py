"""Packages that are optional, imported where they are needed, with one advice where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

# By its top-level name: the extra that installs a package, and what the package is called there.
_PACKAGES = {
    "matplotlib": ("plots", "matplotlib"),
    "pooch": ("data", "pooch"),
    "sklearn": ("data", "scikit-learn"),
    "tqdm": ("data", "tqdm"),
}


def optional(module: str, needed_by: str, extra: str | None = None) -> Any:
    """A module of an optional package.

    Args:
        module: its name, such as ``"matplotlib.pyplot"``.
        needed_by: who needs it, the beginning of the advice.
        extra: the extra to advise, where it is not the usual one of the package.

    Raises:
        ImportError: it is not installed; the error says which extra has it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        usual, package = _PACKAGES[module.partition(".")[0]]
        advice = f'{needed_by} needs {package}, which is optional: pip install "glmvae[{extra or usual}]"'
        raise ImportError(advice) from error
