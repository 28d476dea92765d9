"""Nets, data of every family and closed-form optima, for the tests of where training starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glmvae import Affine, AffineModel, fit, nets
from glmvae.families import (
    Bernoulli,
    Binomial,
    CustomFamily,
    Exponential,
    Gamma,
    Gaussian,
    Mixed,
    NegativeBinomial,
    Poisson,
    Support,
)

COLUMNS, LATENT, ROWS = 6, 2, 60


def _gamma_normalizer(theta):
    return -jnp.log(-theta)


def _negative_exp(eta):
    return -jnp.exp(-eta)


FAMILIES = {
    "gaussian": Gaussian(),
    "bernoulli": Bernoulli(),
    "bernoulli, rho = 2": Bernoulli(activation_scale=2.0),
    "binomial": Binomial(5),
    "binomial, trials a column": Binomial(np.arange(1.0, 7.0)),
    "poisson": Poisson(),
    "gamma": Gamma(),
    "exponential": Exponential(),
    "negative binomial": NegativeBinomial(3.0),
    "mixed": Mixed([(Bernoulli(), [0, 3]), (Poisson(), [1, 2]), (Gaussian(), [4, 5])]),
    "custom, not canonical": CustomFamily(
        _gamma_normalizer, activation=_negative_exp, limits=Support(0.0, open_lower=True)
    ),
}
# The same map through other matrix products.
ROUNDING = {"float32": 1e-5, "float64": 1e-13}


def draw(family, dtype):
    """Data of two strong latent units."""
    rng = np.random.default_rng(0)
    eta = rng.normal(size=(ROWS, 2)) @ rng.normal(size=(2, COLUMNS))
    return jnp.asarray(_draw(family, rng, eta), dtype)


def _draw(family, rng, eta):
    if isinstance(family, Mixed):
        x = np.zeros_like(eta)
        for member, group in zip(family.families, family.groups, strict=True):
            x[:, list(group)] = _draw(member, rng, eta[:, list(group)])
        return x
    if isinstance(family, CustomFamily | Gamma):
        return rng.exponential(np.exp((0.3 if isinstance(family, CustomFamily) else 1.0) * eta)) + 0.05
    if isinstance(family, Binomial):
        return rng.binomial(np.asarray(family.trials, int), 1 / (1 + np.exp(-2 * eta)))
    if isinstance(family, Poisson | NegativeBinomial):
        return rng.poisson(np.exp((0.5 if isinstance(family, Poisson) else 1.5) * eta))
    return eta


def net(architecture, objective, latent_dim=LATENT, **options):
    make, widths = {
        "deep": (nets.deep, {"encoder_widths": (9, 8), "decoder_widths": (7, 9)}),
        "canonical": (nets.canonical, {"encoder_widths": (9, 6)}),
        "skip": (nets.deep, {"encoder_widths": (3, 2), "decoder_widths": (3,), "skip": True}),  # too narrow to carry
    }[architecture]
    return make(jax.random.key(0), COLUMNS, latent_dim, objective, **(widths | options))


# Far from 0 and from 1, so that an encoder that forgot them would be seen.
STANDARDISE = (np.linspace(-1.0, 3.0, COLUMNS), np.linspace(0.5, 4.0, COLUMNS))


def changed(optimum, loadings=None, intercept=None, **encoder):
    """The optimum with other parts."""
    decoder = Affine(
        optimum.loadings if loadings is None else loadings, optimum.intercept if intercept is None else intercept
    )
    model = AffineModel(decoder, optimum.model.objective)
    return optimum._replace(model=model, encoder=optimum.encoder._replace(**encoder))


def closed_form(family, x, latent_dim=LATENT):
    dispersion = None if family.fixed_dispersion is not None else 0.7
    if isinstance(family, Mixed):
        dispersion = np.where(np.isin(np.arange(COLUMNS), family.groups[-1]), 0.7, 1.0)
    return fit(x, family, latent_dim, dispersion=dispersion)


ARCHITECTURES = pytest.mark.parametrize("architecture", ["deep", "canonical", "skip"])
INPUTS = pytest.mark.parametrize("standardise", [None, STANDARDISE], ids=["plain", "standardised"])
