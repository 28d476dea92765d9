"""Arrays on disk, replaced as a whole: whoever reads finds the old file or the new one, never a part of one."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

_SETTINGS = "settings"


def save(path: Path, settings: dict[str, Any], tree: Any) -> None:
    """Write settings and the leaves of a pytree as one npz, without pickle."""
    arrays = {jax.tree_util.keystr(at): _to_host(leaf) for at, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        np.savez(file, allow_pickle=False, **{_SETTINGS: np.array(json.dumps(settings))}, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def load(path: Path, settings: dict[str, Any], like: Any) -> Any:
    """The pytree that was saved; its structure is ``like``'s, its settings must be these.

    Raises:
        ValueError: not a checkpoint, or one of other settings; it names the first that differs.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = dict(content)
        saved = json.loads(str(arrays.pop(_SETTINGS)))
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"checkpoint: {path} is not a checkpoint of a training run") from error
    for name in {**settings, **saved}:
        if settings.get(name) != saved.get(name):
            raise ValueError(
                f"checkpoint: {path} is of another run: {name} was {saved.get(name)!r}, is {settings.get(name)!r}"
            )
    return jax.tree_util.tree_map_with_path(lambda at, leaf: _to_device(arrays[jax.tree_util.keystr(at)], leaf), like)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_host(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _to_device(array: np.ndarray, like: Any) -> Any:
    if isinstance(like, np.ndarray):
        return array
    if _is_key(like):
        return jax.random.wrap_key_data(jax.numpy.asarray(array), impl=jax.random.key_impl(like))
    return jax.numpy.asarray(array)
