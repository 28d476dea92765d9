"""A training run in a file: what it is, and where it stands.

What it is: settings as they are, and hashes of what is computed with. A program (the loss, the optimizer, the schedule)
can only be compared under the versions of JAX, Flax and optax that it was hashed under; under others a warning says so.
"""

from __future__ import annotations

import errno
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from glmvae import _files, _fingerprint

_FORMAT = 1


class Identity(NamedTuple):
    """What a run is.

    Fields:
        settings: numbers and hashes of arrays, by name.
        programs: hashes of programs, by what they are called in an error.
        versions: of the packages that the programs were made with.
    """

    settings: dict[str, Any]
    programs: dict[str, str]
    versions: dict[str, str]


def pack(identity: Identity, tree: Any) -> bytes:
    """The content of a checkpoint."""
    arrays = {jax.tree_util.keystr(at): leaf for at, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    header = {"format": _FORMAT, **identity._asdict()}
    return _files.pack(header, {name: _fingerprint.to_host(leaf) for name, leaf in arrays.items()})


def load(path: Path, identity: Identity, like: Any) -> Any:
    """The pytree that was saved, with ``like``'s structure; ``like`` itself where there is no file.

    Raises:
        ValueError: not a checkpoint, or one of another run; it names the first difference.
        OSError: the file cannot be read.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # reading a pipe would wait for ever
            raise OSError(errno.EINVAL, "not a regular file")
        content = path.read_bytes()
    except FileNotFoundError:
        return like
    except OSError as error:
        raise type(error)(error.errno, f"checkpoint: cannot be read ({error.strerror})", str(path)) from error
    try:
        header, arrays = _files.unpack(content)
    except ValueError as error:
        raise ValueError(f"checkpoint: {path} is not a checkpoint of a training run: {error}") from error
    if header.get("format") != _FORMAT:
        raise ValueError(f"checkpoint: {path} is not a checkpoint of a training run that this version can read")
    _compare(path, Identity(*(header[name] for name in Identity._fields)), identity)
    wanted = {jax.tree_util.keystr(at): leaf for at, leaf in jax.tree_util.tree_leaves_with_path(like)}
    if different := sorted(set(wanted) ^ set(arrays)):
        raise ValueError(f"checkpoint: {path} is of another run: only one of the two has {different[0]}")
    leaves = [_as_before(arrays[name], leaf) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _compare(path: Path, saved: Identity, here: Identity) -> None:
    for name in {**here.settings, **saved.settings}:
        was, now = saved.settings.get(name), here.settings.get(name)
        if was != now:
            raise ValueError(f"checkpoint: {path} is of another run: {name} was {was!r}, is {now!r}")
    if saved.versions != here.versions:
        changed = [
            f"{name} {saved.versions.get(name)}, here {version}"
            for name, version in here.versions.items()
            if saved.versions.get(name) != version
        ]
        warnings.warn(
            f"checkpoint: {path} was written under {'; '.join(changed)}: the run goes on, but not bit for bit, and "
            f"{', '.join(here.programs)} cannot be compared with what it began with",
            stacklevel=4,
        )
        return
    for name in {**here.programs, **saved.programs}:
        was, now = (str(programs.get(name))[:8] for programs in (saved.programs, here.programs))
        if saved.programs.get(name) != here.programs.get(name):
            raise ValueError(
                f"checkpoint: {path} is of another run: {name} was another (what it computes, or a number in it; "
                f"hash {was}, is {now})"
            )


def _as_before(array: np.ndarray, like: Any) -> Any:
    if isinstance(like, np.ndarray):
        return array
    if array.dtype.kind == "V":  # of bfloat16 and its like a file keeps the bytes alone
        array = array.view(like.dtype)
    if isinstance(like, jax.Array) and jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
    weak = not array.ndim and like.weak_type  # it takes the precision of what it meets, and must go on to
    return jnp.asarray(array.item()) if weak else jax.device_put(array)
