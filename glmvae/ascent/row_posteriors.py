"""What every row keeps from pass to pass: its posterior, packed, and how careful its next step is to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from glmvae import _checks
from glmvae._numerics import upper_triangle
from glmvae._precision import in_full
from glmvae.blocks import Block, Store
from glmvae.cuts import cut_tree
from glmvae.model import Affine


class RowPosteriors(NamedTuple):
    """q of every row: mean (n, kappa), packed covariance (n, kappa (kappa + 1) / 2), log|covariance| (n,).

    ``caution`` (n, 2) is how careful a step is to be, of the mean alone and any other: 0 for a full one, c for one of
    about 2^-c. ``second`` (n,) tells where the covariance is next, of rows that move the two in turns.
    """

    mean: Float[Array, "n k"]
    covariance: Float[Array, "n p"]
    log_det: Float[Array, " n"]
    caution: Float[Array, "n 2"]
    second: Bool[Array, " n"]


class Change(NamedTuple):
    """z -> T^-1 (z - c - D covariates): ``root`` T, ``inverse`` T^-1, ``shift`` (1 + p, kappa), ``log_det`` log|T|.

    With W -> W T, b -> b + W c, B -> B + (W D)' it leaves every eta as it is.
    """

    root: Float[Array, "k k"]
    inverse: Float[Array, "k k"]
    shift: Float[Array, "q k"]
    log_det: Float[Array, ""]


def no_change(decoder: Affine) -> Change:
    """z as it is."""
    units, dtype = decoder.latent_dim, decoder.loadings.dtype
    same = np.eye(units, dtype=dtype)
    return Change(same, same, np.zeros((1 + decoder.num_covariates, units), dtype), np.zeros((), dtype))  # type: ignore[arg-type]


@in_full
def prior_like(decoder: Affine) -> RowPosteriors:
    """Where steps start, the same for all rows: mean 0 and a covariance under which no eta varies by more than 1."""
    loadings = decoder.loadings
    units, dtype = decoder.latent_dim, loadings.dtype
    if _checks.concrete(loadings):
        host = np.asarray(loadings, np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # loadings out of range are those of no start
            covariance = np.linalg.inv(np.eye(units) + host.T @ host)
            log_det: Any = np.linalg.slogdet(covariance)[1]
    else:
        covariance = jnp.linalg.inv(jnp.eye(units, dtype=dtype) + loadings.T @ loadings)
        log_det = jnp.linalg.slogdet(covariance)[1]
    first, second, _ = upper_triangle(units)
    numpy: Any = np if isinstance(covariance, np.ndarray) else jnp
    packed, log_det = numpy.asarray(covariance[first, second], dtype)[None], numpy.asarray(log_det, dtype)[None]
    return RowPosteriors(
        numpy.zeros((1, units), dtype), packed, log_det, numpy.zeros((1, 2), dtype), numpy.zeros(1, bool)
    )


def with_shared_covariance(means: Any, covariance: np.ndarray) -> RowPosteriors:
    """Means (N, kappa), and one covariance (kappa, kappa) for all rows; a singular one has no density."""
    first, second, _ = upper_triangle(len(covariance))
    sign, log_det = np.linalg.slogdet(covariance)
    dtype = means.dtype
    packed = np.asarray(covariance[first, second], dtype)[None]
    log_dets = np.full(1, log_det if sign > 0 else -np.inf, dtype)
    return RowPosteriors(means, packed, log_dets, np.zeros((1, 2), dtype), np.zeros(1, bool))  # type: ignore[arg-type]


class PosteriorStore(Store):
    """Posteriors of all rows, of those not met before as ``start`` has them: one a row, or one for all."""

    def __init__(self, start: RowPosteriors) -> None:
        super().__init__()
        self._start = start

    def read(self, block: Block) -> Any:
        kept = super().read(block)
        return kept if kept is not None else jax.tree.map(_each(block), cut_tree(self._start, block, None))


def _each(block: Block) -> Callable[[Any], Any]:
    """What all rows of a block share, a line for each."""
    return lambda leaf: np.repeat(leaf, block.size, axis=0) if leaf.shape[0] == 1 < block.size else leaf
