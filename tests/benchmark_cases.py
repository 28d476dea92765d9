"""Small data for the pages of the benchmark, and what every figure of theirs must have."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from benchmarks.problems import Problem
from glmvae.families import Bernoulli, Binomial, Family, Gaussian

ROWS, COLUMNS, UNITS = 40, 6, 2


def data_of(family: Family, dtype: DTypeLike) -> Array:
    """Data of one latent dimension that suit the family."""
    rng = np.random.default_rng(0)
    if isinstance(family, Gaussian):
        x = rng.normal(3.0, 2.0, (ROWS, COLUMNS))
    else:
        x = rng.binomial(1 if isinstance(family, Bernoulli) else 16, rng.uniform(size=(ROWS, 1)), (ROWS, COLUMNS))
    return jnp.asarray(x, dtype)


def tiny_problem() -> Problem:
    """Small data under the name of digits."""
    return Problem("digits", Binomial(16), data_of(Binomial(16), jnp.float32))


def faults(figure: Any) -> list[str]:
    """Texts that reach beyond the figure, and panels in which nothing is drawn."""
    renderer = figure.canvas.get_renderer()
    figure.draw(renderer)
    texts, found = list(figure.texts), []
    if figure._suptitle is not None:
        texts.append(figure._suptitle)
    for axis in figure.axes:
        texts += [axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts]
        texts += [] if axis.get_legend() is None else axis.get_legend().get_texts()
        if not (axis.lines or axis.patches or axis.collections or axis.images):
            found.append(f"empty: {axis.get_title()!r}")
    room = figure.bbox
    for text in texts:
        box = text.get_window_extent(renderer)
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= room.x1 + 1 and box.y1 <= room.y1 + 1
        if text.get_text().strip() and not inside:
            found.append(f"cut: {text.get_text()!r}")
    return found
