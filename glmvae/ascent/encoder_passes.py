"""What the loop over rows calls for :mod:`glmvae.ascent.encoder`: a look at an encoder, and the products of a step."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from glmvae.ascent.terms import exact_terms
from glmvae.model import Affine, Objective, fixed_predictor
from glmvae.rows import Rows
from glmvae.variational import Spread, gaussian_kl, hidden_if_none, packed_curvature


class EncoderSums(NamedTuple):
    """Of rows: the ELBO, their pull on the means against x_i - mean x (kappa, d) and summed (kappa,), and the weights
    by column (d,)."""

    elbo: Array
    pull: tuple[Array, Array]
    weight: Array


def encoded(
    rows: Rows,
    means: Array,
    slopes: Array,
    bias: Array,
    shared: Spread,
    share: Array,
    centre: Array,
    decoder: Affine,
    objective: Objective,
) -> tuple[EncoderSums, Array]:
    """Sums, and W' diag(w_i) W of every row, for means (x - centre) A' + a beyond those given.

    The pull is r_i, and that share of H_i mu_i.
    """
    centred = rows.x - centre[None]
    mean = means + centred @ slopes.T + bias[None]
    loadings, beta = decoder.loadings, objective.beta
    linear = mean @ loadings.T
    m = linear + fixed_predictor(decoder, rows)
    value, gradient, weight = exact_terms(objective, rows, m, hidden_if_none(shared.variance[None], decoder))
    each = jnp.where(rows.weight > 0, rows.weight, 0.0)[:, None]
    elbo = jnp.sum(value, axis=1) - beta * gaussian_kl(mean, shared.trace, shared.log_det)
    weight = jnp.where(each > 0, each * weight, 0.0)
    pull = (each * gradient + share * weight * linear) @ loadings + (share - 1) * beta * each * mean
    sums = EncoderSums(
        jnp.sum(jnp.where(rows.weight > 0, rows.weight * elbo, 0.0)), _against(pull, centred), jnp.sum(weight, axis=0)
    )
    return sums, packed_curvature(loadings, weight)


def curved(
    rows: Rows, curvature: Array, centre: Array, common: Array, slopes: Array, intercept: Array
) -> tuple[tuple[Array, Array], None]:
    """What W' diag(w_i) W of every row, and what they have in common beside it, make of a step, against x and summed.

    Of NumPy's arrays as of JAX's.
    """
    centred = (rows.x - centre[None]).astype(curvature.dtype, copy=False)
    moved = centred @ slopes.T + intercept[None]
    pulled = (curvature @ moved[:, :, None])[:, :, 0] + rows.weight[:, None] * (moved @ common)
    return _against(pulled, centred), None


def _against(pulled: Array, centred: Array) -> tuple[Array, Array]:
    return pulled.T @ centred, pulled.sum(axis=0)
