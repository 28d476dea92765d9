"""The data sets of the benchmark, each with the family it is modelled by."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from glmvae import datasets
from glmvae.families import Family, Gaussian

#: Always there first; the last two only where their files are found.
NAMES = ("digits", "synthetic", "frey", "mnist")
QUICK_NAMES = NAMES[:2]


class Problem(NamedTuple):
    """Training rows, float32, on the device, and the observation model."""

    name: str
    family: Family
    x: Array

    @property
    def family_name(self) -> str:
        """``Bernoulli``, ``Binomial(16)``, ``Gaussian``."""
        return repr(self.family).replace("trials=", "").replace("()", "")


def load(name: str, seed: int = 0) -> list[Problem]:
    """The problems of one data set: digits as counts and, over 16 and with the dispersion estimated, as Gaussian.

    Args:
        name: one of :data:`NAMES`.
        seed: of the synthetic data.

    Raises:
        ValueError: no data set has that name.
        FileNotFoundError: Frey or MNIST are not in GLMVAE_DATA_DIR; nothing is downloaded.
    """
    key = jax.random.key(seed)
    data = datasets.synthetic(key) if name == "synthetic" else datasets.load(name, download=False)
    x = jnp.asarray(data.train, jnp.float32)
    found = [Problem(name, data.family, x)]
    if name == "digits":
        found.append(Problem(name, Gaussian(), x / 16))
    return found
