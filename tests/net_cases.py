"""Nets small enough to be followed by hand, of both architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from glmvae import nets
from glmvae.families import Bernoulli

COLUMNS, LATENT, ROWS = 6, 2, 5
KINDS = ("deep", "canonical")
# Matrix products of at most 8 terms of order 1: a few tens of rounding units.
ROUNDING = {"float32": 1e-5, "float64": 1e-13}


def builder(kind: str) -> Callable[..., Any]:
    """Makes nets of one kind."""

    def build(objective: Any = None, seed: int = 0, latent_dim: int = LATENT, **more: Any) -> nets.VAE:
        key, objective = jax.random.key(seed), Bernoulli() if objective is None else objective
        if kind == "deep":
            widths = {"encoder_widths": (8, 7), "decoder_widths": (7, 8)}
            return nets.deep(key, COLUMNS, latent_dim, objective, **widths, **more)
        return nets.canonical(key, COLUMNS, latent_dim, objective, encoder_widths=(8, 6), **more)

    return build
