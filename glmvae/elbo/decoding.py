"""Where a decoder meets rows: which kinds are compiled, the offset and covariates of the rows, the checks.

A decoder that is a pytree of arrays (an :class:`~glmvae.model.Affine`, ``jax.tree_util.Partial``, a Flax module) is an
argument of a compiled program. A plain Python function cannot be compiled once, since each new lambda would compile
again: it runs eagerly, block by block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from glmvae import _checks
from glmvae._precision import in_full
from glmvae.blocks import common_dtype, per_row
from glmvae.cuts import block_size
from glmvae.families.checks import check_columns
from glmvae.model import Affine, Objective, as_objective
from glmvae.rows import Rows
from glmvae.sources import Source, as_source
from glmvae.statistics.moment_checks import in_precision

Decoder = Callable[[Array], Array]

# Entries (rows times columns times width) of a block that runs eagerly: every operation costs its own time.
_ENTRIES = 3_400_000


def decoded(decoder: Decoder, z: Array, rows: Rows) -> Array:
    """eta, (m, d), without the offset: of z (m, kappa), those of all rows or of several draws one after the other."""
    if isinstance(decoder, Affine):
        covariates = rows.covariates
        if covariates is not None and covariates.shape[0] not in (1, z.shape[0]):
            covariates = jnp.tile(covariates, (z.shape[0] // covariates.shape[0], 1))
        return decoder(z, covariates)
    eta = jax.vmap(decoder)(z)
    _check_width(eta, 1, rows.num_columns)
    return eta.astype(z.dtype)


def _check_width(eta: Any, leading: int, columns: int) -> None:
    if not isinstance(eta, Array):
        raise TypeError(f"decoder: expected it to return a JAX array of shape ({columns},), got {type(eta).__name__}")
    if eta.shape[leading:] != (columns,):
        raise ValueError(f"decoder: expected it to return shape ({columns},), got shape {eta.shape[leading:]}")


def _is_argument(decoder: Decoder) -> bool:
    """Whether a compiled program can take the decoder as an argument: a pytree of arrays."""
    leaves = jax.tree.leaves(decoder)
    return not jax.tree_util.all_leaves([decoder]) and all(
        isinstance(leaf, Array | np.ndarray | np.generic | int | float) for leaf in leaves
    )


@in_full
def _tried(decoder: Decoder, z: Array) -> Array:
    """eta of one latent vector."""
    return decoder(z)


def per_row_of(
    f: Callable, decoder: Decoder, source: Source, objective: Objective, z: Array, given: Any, *args: Any, width: int
) -> Any:
    """``f(rows, given, decoder, objective, *args)`` of every block; it sees ``width`` predictors an entry at once.

    ``z`` are rows of latent vectors, the first of which a plain function is tried at.
    """
    covariates = decoder.num_covariates if isinstance(decoder, Affine) else 0
    compiled = _is_argument(decoder)
    size = block_size(source.num_columns * width, *(() if compiled else (_ENTRIES,)))
    options = {"family": objective.family, "given": given, "num_covariates": covariates, "size": size}
    dtype = common_dtype(source, decoder) if compiled else source.dtype
    objective = in_precision(objective, dtype)
    if compiled:
        return per_row(f, source, decoder, objective, *args, **options)
    # What it returns shows whether a transformation traces what the function holds, which the loop has to know
    tried = _tried(decoder, jnp.asarray(z[0], dtype))
    _check_width(tried, 0, source.num_columns)
    tried = tried.astype(dtype)

    def eager(rows: Rows, old: Any, objective: Objective, _: Array, *args: Any) -> tuple[None, Any]:
        return f(rows, old, decoder, objective, *args)

    return per_row(eager, source, objective, tried, *args, compiled=False, **options)


# The eager boundary ---------------------------------------------------------------------------------------


def decoder_arguments(decoder: Any, x: Any, objective: Any) -> tuple[Source, Objective, int | None]:
    """The rows, what they are for, and the decoder's latent dimension where it says it."""
    if not callable(decoder):
        advice = "; pass its .decoder" if hasattr(decoder, "decoder") else ""
        raise TypeError(f"decoder: expected a function of z, got {type(decoder).__name__}{advice}")
    objective, source = as_objective(objective), as_source(x)
    check_columns(source.num_columns, objective.family, "x")
    shape = np.shape(objective.dispersion)
    if _checks.concrete(objective.dispersion) and np.any(np.asarray(objective.dispersion) == 0):
        raise ValueError("objective: its dispersion is 0, and there is no density to take the ELBO of; give it one")
    if shape not in ((), (source.num_columns,)):
        raise ValueError(f"dispersion: expected a scalar or shape ({source.num_columns},), got shape {shape}")
    if not isinstance(decoder, Affine):
        return source, objective, None
    _check_width(decoder.intercept, 0, source.num_columns)
    return source, objective, decoder.latent_dim


def expansion_point_in_z(z0: Any, num_rows: int | None, units: int | None = None) -> Array:
    """z0 as (N, kappa), or (1, kappa) for one that the rows share."""
    z0 = _checks.finite(_checks.numeric(z0, "z0"), "z0")
    rows, width = "N" if num_rows is None else num_rows, "kappa" if units is None else units
    shared = z0[None] if z0.ndim == 1 else z0
    fits = shared.ndim == 2 and shared.shape[0] in (1, num_rows or shared.shape[0])
    if not fits or units not in (None, shared.shape[1]):
        raise ValueError(f"z0: expected shape ({width},) or ({rows}, {width}), got shape {z0.shape}")
    return shared
