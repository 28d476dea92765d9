"""One place decides precision: GLMVAE_TEST_PRECISION, "float64" (the default) or "float32".

Tests that are sensitive to it take the fixture ``dtype``, and only these are collected in float32. A test marked
``float64`` states a claim that only double precision can show; in float32 it is not collected, so nothing is skipped;
nor is one marked ``any_precision``, which decides its own or needs none, so once is enough. GLMVAE_TEST_TYPES=1
checks every jaxtyping annotation at run time.

Nearly all of the suite's time is compilation, so XLA compiles quickly, to slower programs, and keeps them for the next
run beside pytest's own cache. XLA_FLAGS and JAX_COMPILATION_CACHE_DIR set by hand, if only to nothing, are left alone.
"""

import gc
import importlib.metadata
import os
import pathlib

PRECISION = os.environ.get("GLMVAE_TEST_PRECISION", "float64")
if PRECISION not in ("float32", "float64"):
    raise ValueError(f"GLMVAE_TEST_PRECISION: expected float32 or float64, got {PRECISION!r}")

QUICK_COMPILATION = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later versions refuse the switch
    QUICK_COMPILATION.append("--xla_cpu_use_fusion_emitters=false")
# Before jax and NumPy are imported: beside other processes of the suite a thread each, since threads that wait for each
# other cost more than they give
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("NPROC", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", " ".join(QUICK_COMPILATION))
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
programs = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "programs"
if not os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(programs)):
    del os.environ["JAX_COMPILATION_CACHE_DIR"]
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# ruff: noqa: E402
import jax
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, settings

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
settings.register_profile("thorough", settings.get_profile("glmvae"), max_examples=300)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "glmvae"))


MODULES = pytest.StashKey[list]()


@pytest.fixture(scope="module", autouse=True)
def programs_are_let_go(request):
    """Every tenth module: those of the whole suite take 9 GB, and what they share is soon compiled again."""
    yield
    modules = request.session.stash.setdefault(MODULES, [])
    modules.append(request.module.__name__)
    if len(modules) % 10 == 0:
        jax.clear_caches()


@pytest.fixture
def dtype():
    return jnp.dtype(PRECISION)


def pytest_collection_finish():
    gc.freeze()  # what was imported stays: no collection need look at it again
    gc.set_threshold(700, 10, 1000)  # nor at all programs, which live until they are let go


def pytest_collection_modifyitems(config, items):
    if PRECISION == "float32":
        sensitive = [i for i in items if "dtype" in i.fixturenames]
        dropped = [i for i in items if i.get_closest_marker("float64") or i.get_closest_marker("any_precision")]
        dropped += [i for i in items if i not in sensitive and i not in dropped]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]
