"""A model in a file: arrays, and a header one can read; no pickle, and nothing in a file names code to run.

The file is a NumPy ``.npz``, so other programs read it too: ``numpy.load(path)["header"]`` is JSON with the version,
the kind of object, its family and settings, and the tree of its parts, whose arrays stand beside it by number. The
classes of parts are looked up in one table of this module: what is not in it is refused. A family of the user's own is
only named; :func:`load` is given it again.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glmvae import _checks, _files, families
from glmvae._frames import ColumnNames
from glmvae.families import Family
from glmvae.families.checks import check_family
from glmvae.families.trees import is_same
from glmvae.model import Affine, AffineModel, Objective, as_model, unchecked
from glmvae.optimum import AffineOptimum, Encoder
from glmvae.refined import RefinedOptimum
from glmvae.rows import Brought
from glmvae.variational import Posterior

_FORMAT = 1
_CONTENT = "model"
_SAVED: tuple[type, ...] = (AffineOptimum, RefinedOptimum, AffineModel)
_PARTS: tuple[type, ...] = (*_SAVED, Encoder, Posterior, Affine, Objective)
_FAMILIES: tuple[type, ...] = (
    families.Gaussian,
    families.Bernoulli,
    families.Binomial,
    families.Poisson,
    families.Gamma,
    families.Exponential,
    families.NegativeBinomial,
    families.Mixed,
)
_CLASSES = {cls.__name__: cls for cls in (*_PARTS, *_FAMILIES)}


def save(path: str | os.PathLike[str], optimum: Any) -> None:
    """Keep a model in one file, which :func:`load` reads, here or elsewhere.

    Args:
        path: where; the name is taken as it is (``.npz`` tells others what it is), ``~`` is the home folder. A file
            there is replaced as a whole: who reads meanwhile finds the old or the new one.
        optimum: from :func:`~glmvae.optimum.fit`, :func:`~glmvae.jaakkola.tighten` or :func:`~glmvae.ascent.refine`,
            or an :class:`~glmvae.model.AffineModel`.

    Returns:
        Nothing.

    Raises:
        TypeError: no model; one that a transformation traces; arrays of a dtype that NumPy does not know.
        OSError: the file cannot be written; what was there stays.

    Exactness: every array is kept bit for bit, in its dtype.

    Example:
        >>> import tempfile
        >>> from glmvae import fit, load, save
        >>> from glmvae.families import Gaussian
        >>> optimum = fit([[2.0, 1.0], [-2.0, -1.0], [2.0, -1.0], [-2.0, 1.0]], Gaussian(), 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/model.npz", optimum)
        ...     print(load(f"{folder}/model.npz"))
        AffineOptimum: 2 columns, 1 latent unit, 1 active at beta = 1
          L-hat        -3.53102 nats per row, the ELBO itself
          dispersion   1
          eigenvalues  4, ... (cut-off 1)
    """
    if not isinstance(optimum, _SAVED):
        as_model(optimum, "optimum")
        raise TypeError(f"optimum: expected {', '.join(c.__name__ for c in _SAVED)}, got {type(optimum).__name__}")
    if not _checks.concrete(optimum):
        raise TypeError("optimum: save runs on the host, not under a transformation such as jit")
    target = _files.located(path, "path")
    arrays: dict[str, np.ndarray] = {}
    header = {"content": _CONTENT, "format": _FORMAT, **_summary(optimum), "tree": _described(optimum, arrays)}
    content = _files.pack(header, arrays)
    try:
        _files.rehearse(target, b"")
        _files.write(target, content)
    except OSError as error:
        raise type(error)(error.errno, f"path: cannot be written ({error.strerror})", str(target)) from error


def load(path: str | os.PathLike[str], *, family: Family | None = None) -> Any:
    """A model from the file that :func:`save` wrote.

    Args:
        path: the file.
        family: needed where the model has a family of your own, itself or as a member of ``Mixed``: the same as it was.
            Elsewhere the file knows it, and another one is refused.

    Returns:
        What was saved: an :class:`~glmvae.optimum.AffineOptimum`, :class:`~glmvae.refined.RefinedOptimum` or
        :class:`~glmvae.model.AffineModel`.

    Raises:
        FileNotFoundError, OSError: there is no such file, or it cannot be read.
        ValueError: not a file of ``save``, a damaged one, or one of a newer version; a family that is wanting, or not
            that of the file; float64 arrays while JAX is set to float32. Each names the path.
        TypeError: no path; no family.

    Exactness: every array is what was saved, bit for bit, in its dtype. A number that had none of its own, such as a
        beta of 0.1, has that of the process.

    Example:
        >>> import tempfile
        >>> from glmvae import Affine, AffineModel, load, save
        >>> from glmvae.families import Poisson
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/model.npz", AffineModel(Affine([[1.0]], [0.5]), Poisson()))
        ...     print(load(f"{folder}/model.npz").intercept)
        [0.5]
    """
    source = _files.located(path, "path")
    if family is not None:
        check_family(family)
    header, arrays = _read(source)
    try:
        if family is not None:
            _compare(source, header, arrays, family)
        elif custom := _custom(header["tree"]):
            raise ValueError(
                f"path: {source} has a family of the user's own, {header['family']}: load(path, family=...) needs it, "
                f"as a file never names code to run ({custom} is none of glmvae's)"
            )
        return _built(header["tree"], arrays, family)
    except _Wide as error:
        raise ValueError(
            f"path: {source} has {error} arrays, which JAX does not hold as it is set; nothing is cast: "
            'jax.config.update("jax_enable_x64", True) first'
        ) from None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"path: {source} has parts that glmvae {_version()} does not know: {error}") from error


# The file ---------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # reading a pipe would wait for ever
            raise OSError(errno.EINVAL, "not a regular file")
        content = path.read_bytes()
    except OSError as error:
        raise type(error)(error.errno, f"path: cannot be read ({error.strerror})", str(path)) from error
    try:
        header, arrays = _files.unpack(content)
    except ValueError as error:
        raise ValueError(f"path: {path} is no model that glmvae.save wrote: {error}") from error
    if header.get("content") != _CONTENT:
        kind = "a checkpoint of a training run" if "settings" in header else "another file of glmvae"
        raise ValueError(f"path: {path} is no model that glmvae.save wrote: it is {kind}")
    if header.get("format") != _FORMAT:
        raise ValueError(
            f"path: {path} was written by glmvae {header.get('glmvae')}, in a form that {_version()} cannot read; "
            "update glmvae"
        )
    return header, arrays


def _version() -> str:
    from glmvae import __version__

    return __version__


def _summary(optimum: Any) -> dict[str, Any]:
    """What a reader of the header wants to know."""
    model = optimum.model
    return {
        "glmvae": _version(),
        "kind": type(optimum).__name__,
        "family": repr(model.family),
        "columns": np.shape(model.loadings)[-2],
        "latent_dim": np.shape(model.loadings)[-1],
        "beta": np.asarray(model.beta, float).tolist(),
    }


# The tree ---------------------------------------------------------------------------------------------------


def _described(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The value in what JSON has, its arrays put aside."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _put_aside(value, arrays)
    if isinstance(value, ColumnNames):
        return {"names": [*value]}
    if isinstance(value, Brought):
        return {"brought": [*value]}
    if type(value) is tuple or isinstance(value, list):
        return [_described(part, arrays) for part in value]
    if isinstance(value, Family) and type(value) not in _FAMILIES:
        leaves = {jax.tree_util.keystr(at): leaf for at, leaf in jax.tree_util.tree_leaves_with_path(value)}
        return {"family": type(value).__name__, "leaves": {k: _described(v, arrays) for k, v in leaves.items()}}
    if type(value) not in _CLASSES.values():
        raise TypeError(f"optimum: expected arrays and the objects of glmvae, got a {type(value).__name__} in it")
    return {"class": type(value).__name__, "fields": {n: _described(v, arrays) for n, v in _fields(value).items()}}


def _fields(value: Any) -> dict[str, Any]:
    if isinstance(value, tuple):
        return value._asdict()  # type: ignore[attr-defined]
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _put_aside(value: Any, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"optimum: expected arrays of numbers that NumPy knows, got dtype {array.dtype}")
    name = f"array{len(arrays)}"
    arrays[name] = array
    # A weak scalar takes the precision of what it meets, and must go on to.
    kind = "numpy" if not isinstance(value, jax.Array) else "weak" if value.weak_type and not array.ndim else "jax"
    return {"array": name, "kind": kind}


class _Wide(Exception):
    """Arrays of a precision that JAX is not set to; the dtype is the message."""


def _built(tree: Any, arrays: dict[str, np.ndarray], family: Family | None) -> Any:
    """The value of a description."""
    if isinstance(tree, list):
        return tuple(_built(part, arrays, family) for part in tree)
    if not isinstance(tree, dict):
        return tree
    if "names" in tree:
        return ColumnNames(tree["names"])
    if "brought" in tree:
        return Brought(tree["brought"])
    if "array" in tree:
        return _restored(arrays[tree["array"]], tree["kind"])
    if family is not None and ("family" in tree or _CLASSES[tree["class"]] in _FAMILIES):
        return family
    cls: Callable[..., Any] = _CLASSES[tree["class"]]
    fields = {name: _built(part, arrays, family) for name, part in tree["fields"].items()}
    return cls(**fields) if cls in (AffineOptimum, RefinedOptimum, Encoder, Posterior) else unchecked(cls, **fields)  # type: ignore[arg-type]


def _restored(array: np.ndarray, kind: str) -> Any:
    if kind == "numpy":
        return array
    if kind == "weak":
        return jnp.asarray(array.item())
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise _Wide(str(array.dtype))
    return jax.device_put(array)


def _custom(tree: Any) -> str | None:
    """The name of the first class of the user's own."""
    if isinstance(tree, list):
        return next((found for part in tree if (found := _custom(part))), None)
    if not isinstance(tree, dict) or {"array", "names", "brought"} & {*tree}:
        return None
    return tree["family"] if "family" in tree else _custom([*tree["fields"].values()])


def _family_of(tree: Any) -> Any:
    """The description of the family in that of a model or an optimum."""
    fields = tree["fields"]
    return _family_of(fields["model"]) if "model" in fields else fields["objective"]["fields"]["family"]


def _compare(path: Path, header: dict[str, Any], arrays: dict[str, np.ndarray], family: Family) -> None:
    """The family given is that of the file, as far as a file can tell.

    Raises:
        ValueError: it is another.
    """
    there: dict[str, np.ndarray] = {}
    if not _agree(_family_of(header["tree"]), arrays, _described(family, there), there):
        raise ValueError(f"family: expected that of {path}, {header['family']}, got {family!r}")


def _agree(a: Any, arrays_a: dict[str, np.ndarray], b: Any, arrays_b: dict[str, np.ndarray]) -> bool:
    if isinstance(a, dict) and isinstance(b, dict) and {"array"} <= set(a) & set(b):
        return is_same(arrays_a[a["array"]], arrays_b[b["array"]])
    if isinstance(a, dict) and isinstance(b, dict):
        return set(a) == set(b) and all(_agree(a[name], arrays_a, b[name], arrays_b) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_agree(x, arrays_a, y, arrays_b) for x, y in zip(a, b, strict=True))
    return bool(a == b)
