"""ELBOs, bounds and brackets under JAX's strictest settings: no rank or dtype promotion, NaNs that raise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from elbo_cases import setting

from glmvae import (
    affine_posterior,
    bracket,
    elbo_exact,
    elbo_monte_carlo,
    elbo_profile,
    elbo_quadratic,
    elbo_taylor,
    expected_remainder_bounds,
    kl_divergence,
    moments,
    optimal_posterior,
    remainder_bounds,
)
from glmvae.families import Binomial

pytestmark = pytest.mark.any_precision

CASES = {
    "binomial_columns": ("offset", "covariates", "missing", "weight"),
    "mixed": ("offset", "missing"),
    "binomial": ("trials",),
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_promoted_and_nothing_is_nan(name):
    family = Binomial(None) if "trials" in CASES[name] else None
    s = setting(name, np.float32, phi=[0.5, 1.0, 1.0, 2.0], family=family, fields=CASES[name])
    w, b, z0 = jnp.asarray(s.model.loadings), jnp.asarray(s.model.intercept), np.zeros(2, np.float32)
    plain = s.rows.replace(covariates=None)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        for at in ("zero", "null", 0.3, np.asarray(s.model.intercept)):
            elbo_quadratic(s.model, s.rows, s.q, expand_at=at)
        affine_posterior(s.model, s.rows)
        elbo_exact(s.model, s.rows, s.q)
        bracket(s.model, s.rows, s.q)
        kl_divergence(s.q)
        for decoder, rows in ((s.model.decoder, s.rows), (lambda z: w @ z + b, plain)):
            elbo_taylor(decoder, rows, s.q, s.objective, z0=z0)
            optimal_posterior(decoder, rows, s.objective, z0=z0)
            for draws in (1, 3):
                elbo_monte_carlo(jax.random.key(0), decoder, rows, s.q, s.objective, num_samples=draws)
        if family is None:
            eta, options = s.x * 0 + 0.3, {"x": s.x, "dispersion": s.model.dispersion}
            remainder_bounds(s.family, eta, s.model.intercept, **options)
            expected_remainder_bounds(s.family, eta, eta, s.model.intercept, **options)
        known = s.rows.replace(missing=None)
        model = s.model
        elbo_profile(model, moments(known.replace(offset=None), family=s.family))
        jax.jit(lambda model, rows, q: (elbo_exact(model, rows, q), bracket(model, rows, q)))(model, s.rows, s.q)
        jax.jit(jax.grad(lambda q: jnp.sum(elbo_exact(model, s.rows, q))))(jax.tree.map(jnp.asarray, s.q))


def test_the_modes_are_strict():
    one = jnp.ones(2)
    with jax.numpy_rank_promotion("raise"), pytest.raises(ValueError, match="rank_promotion"):
        one[None] + one
    with jax.numpy_dtype_promotion("strict"), pytest.raises(jax.dtypes.TypePromotionError):
        one + jnp.ones(2, int)
