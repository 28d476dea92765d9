"""What the loop over rows calls for :mod:`glmvae.ascent.encoder`: few products, of NumPy's arrays as of JAX's.

Affine functions of the rows are of x - centre, ``slopes`` (kappa, d) and ``intercept`` (kappa,).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jax import Array

from glmvae.rows import Rows


class Equations(NamedTuple):
    """C_i mu_i = h_i of rows: h_i (n, kappa), C_i (n, kappa, kappa), None for the identity."""

    called: Any
    curvature: Any


def placed(rows: Rows, _: None, centre: Array, slopes: Array, intercept: Array) -> tuple[None, Array]:
    """The affine function of every row."""
    return None, _affine(_centred(rows, centre), slopes, intercept)


def called_for(rows: Rows, equations: Equations, centre: Array) -> tuple[tuple[Array, Array], None]:
    """h of every row against x - centre, (kappa, d), and summed, (kappa,)."""
    return _against(equations.called * rows.weight[:, None], _centred(rows, centre)), None


def curved(
    rows: Rows, equations: Equations, centre: Array, slopes: Array, intercept: Array, common: Array
) -> tuple[tuple[Array, Array], None]:
    """H of every row times an affine function, against x - centre and summed; H is C and what rows have in common."""
    centred = _centred(rows, centre)
    moved = _affine(centred, slopes, intercept)
    product = (equations.curvature @ moved[:, :, None])[:, :, 0] + moved @ common
    return _against(product * rows.weight[:, None], centred), None


def _centred(rows: Rows, centre: Array) -> Any:
    return (rows.x - centre[None]).astype(centre.dtype, copy=False)


def _affine(centred: Any, slopes: Array, intercept: Array) -> Any:
    return centred @ slopes.T + intercept[None]


def _against(values: Any, centred: Any) -> tuple[Array, Array]:
    return values.T @ centred, values.sum(axis=0)
