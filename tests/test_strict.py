"""The closed form under JAX's strictest settings: no rank promotion, no dtype promotion, NaNs that raise."""

import jax
import numpy as np
import pytest
from dense_reference import MODELS, draw

from glmvae import (
    Rows,
    activity,
    activity_path,
    beta_for_active_units,
    collapse_onset,
    expand,
    fit,
    merge,
    moments,
    posterior,
)

pytestmark = pytest.mark.any_precision


@pytest.fixture
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        yield


@pytest.mark.parametrize("name", ["gaussian", "binomial_columns"])
def test_nothing_is_promoted_and_nothing_is_nan(strict, name):
    x, family = draw(name).astype("float32"), MODELS[name].family
    rng = np.random.default_rng(0)
    data = moments(x, family=family)
    merge(data, data)
    for at in ("zero", "null", 0.3):
        o = fit(data, family, 2, expand_at=at, dispersion=[0.5, 1.0, 1.0, 2.0])
    posterior(o, x)
    activity(o)
    activity_path(data, family, [0.5, 1.0], 2)
    beta_for_active_units(data, family, 1)
    collapse_onset(data, family)
    expand(x, family, expand_at="null", dispersion=[0.5, 1.0, 1.0, 2.0])
    rows = Rows(x, offset=rng.normal(size=(40, 4)), covariates=rng.normal(size=(40, 2)), weight=rng.random(40))
    posterior(fit(rows, family, 2), rows)
    jax.jit(lambda x: fit(x, family, 2).elbo_taylor)(x)
    jax.jit(jax.grad(lambda x: fit(x, family, 2, dispersion=1.0).elbo_taylor))(x)
