"""A small run that the tests of training, checkpoints and callbacks share, so that they share its compiled programs."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from glmvae import Objective, nets, training
from glmvae.families import Gaussian

COLUMNS, LATENT, ROWS, BATCH = 6, 3, 105, 20
KEY = jax.random.key(0)
GAUSSIAN, STANDARD = (Objective(Gaussian(), dispersion=phi) for phi in (0.5, 1.0))
# One of each, so that runs share their compiled programs.
SGD = optax.sgd(1e-3)
ADAM = optax.adam(1e-3)
STILL = optax.sgd(0.0)


def data(dtype=None):
    rng = np.random.default_rng(0)
    spread = np.array([3.0, 2.0, 0.5, 0.5, 0.5, 0.5])
    rotation = np.linalg.qr(rng.normal(size=(COLUMNS, COLUMNS)))[0]
    return jnp.asarray(rng.normal(size=(ROWS, COLUMNS)) * spread @ rotation + 1, dtype or jnp.result_type(float))


def net(dtype=None, objective=GAUSSIAN, **changes):
    return nets.canonical(KEY, COLUMNS, LATENT, objective, **({"encoder_widths": (16,), "dtype": dtype} | changes))


def anneal(step):
    return jnp.minimum(step / 20.0, 1.0)


SETTINGS = {
    "test": 0.9 * data(),
    "batch_size": BATCH,
    "optimizer": ADAM,
    "beta": anneal,
    "learn_dispersion": True,
    "evaluate_every": 15,
    "chunk_size": 10,
}


def run(steps=40, vae=None, x=None, **changes):
    vae, x = net() if vae is None else vae, data() if x is None else x
    return training.train(jax.random.key(3), vae, x, steps=steps, **(SETTINGS | changes))


def same(a, b):
    def leaves(run):
        return [*jax.tree.leaves(nnx.state(run.vae)), run.dispersion, run.losses, *run.evaluations]

    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(leaves(a), leaves(b), strict=True))


def child(code, *arguments, **options):
    """A new process that can import what the tests import."""
    start = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import conftest\n"
    return subprocess.Popen([sys.executable, "-c", start + code, *map(str, arguments)], **options)
