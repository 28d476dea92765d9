"""The batched paths come to an end: some programs with many small solves never did on a two-core CPU."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.any_precision

# Compilation and thousands of rows, on a machine that has other work to do.
SECONDS = 120

SETUP = """
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", {x64})
from glmvae import *
from glmvae.families import Bernoulli, Gaussian
rng = np.random.default_rng(0)
rows, columns, units = 5000, 12, 6
x = jnp.asarray((rng.normal(size=(rows, columns)) > 0).astype("{dtype}"))
w = jnp.asarray(0.5 * rng.normal(size=(columns, units)).astype("{dtype}"))
z0 = jnp.asarray(rng.normal(size=(rows, units)).astype("{dtype}"))
decoder = lambda z: jnp.tanh(w @ z)
root = 0.3 * rng.normal(size=(rows, units, units)).astype("{dtype}")
q = Posterior(z0, jnp.asarray(root @ root.swapaxes(1, 2) + np.eye(units, dtype="{dtype}")))
"""

PATHS = {
    "optimal_posterior": "out = optimal_posterior(lambda z: w @ z, x, Bernoulli(), z0=z0)",
    "optimal_posterior_jit": (
        "f = lambda x, z0: optimal_posterior(lambda z: w @ z, x, Bernoulli(), z0=z0)\nout = jax.jit(f)(x, z0)"
    ),
    "elbo_taylor": "out = elbo_taylor(decoder, x, q, Bernoulli(), z0=z0)",
    "elbo_monte_carlo": "out = elbo_monte_carlo(jax.random.key(0), decoder, x, q, Bernoulli(), num_samples=20)",
    "elbo_exact": "out = elbo_exact(w, jnp.zeros(columns), x, q, Bernoulli())",
    "chain": (
        "q = optimal_posterior(lambda z: w @ z, x, Bernoulli(), z0=z0)\n"
        "out = jax.jit(lambda q, x: elbo_taylor(decoder, x, q, Bernoulli(), z0=z0)"
        " + elbo_quadratic(w, jnp.zeros(columns), x, q, Bernoulli()) + kl_divergence(q))(q, x)"
    ),
    "vmap_of_fit": (
        "data = moments(x, family=Bernoulli())\n"
        "out = jax.vmap(lambda b: fit(data, Bernoulli(), units, beta=b))(jnp.linspace(0.1, 3.0, 500)).elbo_taylor"
    ),
    "vmap_of_posteriors": (
        "out = jax.vmap(lambda b: affine_posterior(w, jnp.zeros(columns), x, Bernoulli(), beta=b).covariance)"
        "(jnp.linspace(0.1, 3.0, 500))"
    ),
}


@pytest.mark.parametrize("path", PATHS)
def test_comes_to_an_end_on_two_cores(path, dtype):
    check = "\nassert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(out))\nprint('done')"
    code = SETUP.format(x64=dtype == "float64", dtype=dtype) + PATHS[path] + check
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    if hasattr(os, "sched_setaffinity"):  # two cores, where the machine has more
        code = f"import os\nos.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])\n{code}"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "done"


def test_the_timeout_would_be_noticed():
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", "import time; time.sleep(30)"], timeout=0.2, check=False)
