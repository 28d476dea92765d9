"""One place decides precision: GLMVAE_TEST_PRECISION, "float64" (the default) or "float32".

Tests take the fixture ``dtype``. A test marked ``float64`` states a claim that only double precision can show; in
float32 it is not collected, so nothing is skipped; nor is one marked ``any_precision``, which decides its own or needs
none, so once is enough. GLMVAE_TEST_TYPES=1 checks every jaxtyping annotation at run time.
"""

import os

import jax
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, settings

PRECISION = os.environ.get("GLMVAE_TEST_PRECISION", "float64")
if PRECISION not in ("float32", "float64"):
    raise ValueError(f"GLMVAE_TEST_PRECISION: expected float32 or float64, got {PRECISION!r}")
jax.config.update("jax_enable_x64", PRECISION == "float64")
os.environ.setdefault("MPLBACKEND", "Agg")

if os.environ.get("GLMVAE_TEST_TYPES") == "1":
    from jaxtyping import install_import_hook

    install_import_hook("glmvae", "beartype.beartype")

# Every new shape compiles, so no deadline; a fixed seed, so that a failure can be seen again.
settings.register_profile(
    "glmvae",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("glmvae")


@pytest.fixture
def dtype():
    return jnp.dtype(PRECISION)


def pytest_collection_modifyitems(config, items):
    if PRECISION == "float32":
        dropped = [i for i in items if i.get_closest_marker("float64") or i.get_closest_marker("any_precision")]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]
