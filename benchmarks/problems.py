"""The data sets of the benchmark, each with the family it is modelled by."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from glmvae import datasets
from glmvae.families import Family, Gaussian, Poisson

#: The first two are always there, the last two only where their files are found.
NAMES = ("digits", "synthetic", "frey", "mnist")
QUICK_NAMES = NAMES[:2]
#: Made up, like a table of reads of genes in cells: columns whose means are 0.1 to 1000, with three factors.
COUNTS = "counts"


class Problem(NamedTuple):
    """Training rows, float32, on the device, and the observation model."""

    name: str
    family: Family
    x: Array

    @property
    def family_name(self) -> str:
        """``Bernoulli``, ``Binomial(16)``, ``Gaussian``."""
        return repr(self.family).replace("trials=", "").replace("()", "")

    @property
    def expand_at(self) -> str:
        """Where the closed form stands: at the paper's 0 where that is a bound or exact, else at the null model."""
        return "zero" if self.family.is_logistic or self.family.is_quadratic else "null"


def load(name: str, seed: int = 0) -> list[Problem]:
    """The problems of one data set: digits as counts and, over 16 and with the dispersion estimated, as Gaussian.

    Args:
        name: one of :data:`NAMES`, or :data:`COUNTS`.
        seed: of the data that are made up.

    Raises:
        ValueError: no data set has that name.
        FileNotFoundError: Frey or MNIST are not in GLMVAE_DATA_DIR; nothing is downloaded.
    """
    if name == COUNTS:
        return [Problem(name, Poisson(), counts(seed))]
    data = datasets.synthetic(jax.random.key(seed)) if name == "synthetic" else datasets.load(name, download=False)
    x = jnp.asarray(data.train, jnp.float32)
    found = [Problem(name, data.family, x)]
    if name == "digits":
        found.append(Problem(name, Gaussian(), x / 16))
    return found


def counts(seed: int = 0, rows: int = 1_000, columns: int = 50) -> Array:
    """The table :data:`COUNTS`: Poisson, log rates with three factors of standard deviation about 0.5."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(rows, 3)) @ (0.3 * rng.normal(size=(3, columns)))
    return jnp.asarray(rng.poisson(np.exp(factors + np.log(10.0) * np.linspace(-1.0, 3.0, columns))), jnp.float32)
