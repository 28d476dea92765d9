"""The batched paths come to an end: some programs with many small solves never did on a two-core CPU.

One child process runs them all, each named before it starts, compiled as users compile: without the suite's switches.
"""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.any_precision

# Compilation and thousands of rows, on a machine that has other work to do.
SECONDS = 400

SETUP = """
import os
if hasattr(os, "sched_setaffinity"):  # two cores, where the machine has more
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
from glmvae import *
from glmvae.families import Bernoulli
rng = np.random.default_rng(0)
rows, columns, units = 5000, 12, 6
x = rng.normal(size=(rows, columns)) > 0
x = x.astype("float64")
w, z0 = 0.5 * rng.normal(size=(columns, units)), rng.normal(size=(rows, units))
affine = Affine(w, np.zeros(columns))
model, objective = AffineModel(affine, Bernoulli()), Objective(Bernoulli())
bent = jax.tree_util.Partial(lambda w, z: jnp.tanh(w @ z), jnp.asarray(w))
root = 0.3 * rng.normal(size=(rows, units, units))
q = Posterior(jnp.asarray(z0), jnp.asarray(root @ root.swapaxes(1, 2) + np.eye(units)))
small = (np.random.default_rng(0).random((3000, 30)) < 0.4).astype("float32")
start = fit(small, Bernoulli(), 6)
"""

PATHS = {
    "optimal_posterior": "optimal_posterior(affine, x, objective, z0=z0)",
    "optimal_posterior in jit": "jax.jit(lambda x, z0: optimal_posterior(affine, x, objective, z0=z0))(x, z0)",
    "elbo_taylor": "elbo_taylor(bent, x, q, objective, z0=z0)",
    "elbo_monte_carlo": "elbo_monte_carlo(jax.random.key(0), bent, x, q, objective, num_samples=20)",
    "elbo_exact": "elbo_exact(model, x, q)",
    "elbos of an optimal posterior in jit": (
        "jax.jit(lambda q, x: elbo_taylor(bent, x, q, objective, z0=z0) + elbo_quadratic(model, x, q)"
        " + kl_divergence(q))(optimal_posterior(affine, x, objective, z0=z0), x)"
    ),
    "vmap of fit": (
        "jax.vmap(lambda b, data: fit(data, Bernoulli(), units, beta=b), in_axes=(0, None))"
        "(jnp.linspace(0.1, 3.0, 500), moments(x, family=Bernoulli())).elbo_taylor"
    ),
    "vmap of posteriors": (
        "jax.vmap(lambda b: affine_posterior(model.with_beta(b), x[:500]).covariance)(jnp.linspace(0.1, 3.0, 500))"
    ),
    "affine_posterior": "affine_posterior(model, x)",
    "tighten": "tighten(start, small, max_rounds=3).loadings",
    "refine entry": "refine(start, small, method='entry', max_rounds=3).posterior",
    "refine exact": "refine(start, small, max_rounds=3).posterior",
    "best_posterior": "best_posterior(model, Rows(x, missing=rng.random(x.shape) < 0.3))",
    "bracket": "bracket(model, x, q)",
}


def come_to_an_end(setup, paths, seconds):
    """Run every path in one child process; a failure names the path it is in.

    Raises:
        AssertionError: with that name, the time or the child's own words.
    """
    code = [setup, "import sys"]
    for name, path in paths.items():
        code += [
            f"print({name!r}, flush=True)",
            f"out = {path}",
            "assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(out))",
        ]
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, "-c", "\n".join([*code, "print('done')"])]
    environment["JAX_PLATFORMS"] = "cpu"
    try:
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as expired:
        shown = (expired.stdout or b"").decode().split("\n")
        raise AssertionError(f"after {seconds} s: {[line for line in shown if line][-1:]}") from expired
    shown = run.stdout.strip().split("\n")
    assert run.returncode == 0, f"{shown[-1]}: {run.stderr}"
    assert shown == [*paths, "done"]


def test_every_path_comes_to_an_end_on_two_cores():
    come_to_an_end(SETUP, PATHS, SECONDS)


def test_a_path_that_hangs_or_fails_would_be_named():
    setup = "import time, jax, numpy as np"
    with pytest.raises(AssertionError, match=r"after 8 s: \['the second'\]"):
        come_to_an_end(setup, {"the first": "1.0", "the second": "time.sleep(60)", "the third": "1.0"}, 8)
    with pytest.raises(AssertionError, match=r"the second: [^$]*AssertionError"):
        come_to_an_end(setup, {"the first": "1.0", "the second": "np.nan"}, 60)
