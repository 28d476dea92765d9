"""What training is given is looked at first, and an error says which argument, what was expected and what came."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from run_cases import ADAM, BATCH, KEY, data, net, run

from glmvae import training
from glmvae.families import Bernoulli


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps: expected an integer of at least 1, got 0"),
        ({"steps": 1.5}, TypeError, "steps: expected an integer"),
        ({"batch_size": 106}, ValueError, "batch_size: .*106"),
        ({"chunk_size": 0}, ValueError, "chunk_size: expected an integer of at least 1"),
        ({"evaluate_every": 0}, ValueError, "evaluate_every: expected an integer of at least 1"),
        ({"num_samples": 0}, ValueError, "num_samples: expected an integer of at least 1"),
        ({"optimizer": "adam"}, TypeError, "optimizer: expected an optax transformation, got str"),
        ({"optimizer": optax.adam}, TypeError, "optimizer: .*, got function; call it"),
        (
            {"optimizer": optax.contrib.reduce_on_plateau()},
            TypeError,
            "optimizer: expected one whose update takes gradient, state and parameters, got .*value",
        ),
        ({"test": np.ones((2, 5))}, ValueError, "test: expected 6 columns"),
        ({"test": "x"}, TypeError, "test: expected an array of numbers, got str"),
        ({"test": np.ones(6)}, ValueError, "test: expected 2 dimensions"),
        ({"test": np.full((2, 6), np.nan)}, ValueError, r"test: expected finite numbers, got nan at \[0, 0\]"),
        ({"vae": net(None, Bernoulli())}, ValueError, "x: expected values in the support"),
        ({"vae": data()}, TypeError, "vae: expected a net from glmvae.nets, got ArrayImpl"),
        ({"callbacks": print}, TypeError, "callbacks: expected a list of functions, got builtin_function"),
        ({"callbacks": (f for f in [print])}, TypeError, "callbacks: expected a list of functions, got generator"),
        ({"callbacks": [print, 3]}, TypeError, r"callbacks: expected functions, got int at \[1\]"),
        ({"callbacks": [print, lambda: 3]}, TypeError, r"callbacks\[1\]: expected a function of the run, got one"),
        ({"beta": lambda: 1.0}, TypeError, "beta: expected a function of the step, got one"),
        ({"beta": lambda step: 1j}, TypeError, "beta: expected a schedule that returns a number, got 1j"),
        ({"beta": lambda step: step > 3}, TypeError, "beta: expected a schedule that returns a number"),
        ({"beta": 2.0}, TypeError, r"beta: expected a function of the step or None, got float; .*with_beta"),
        ({"beta": lambda step: -1.0}, ValueError, "beta: expected a schedule of finite numbers .* got -1 at step 0"),
        ({"beta": lambda step: 1.0 - step / 20}, ValueError, "beta: .* got -0.0.* at step 21"),
        ({"beta": lambda step: jnp.log(step)}, ValueError, "beta: .* got -inf at step 0"),
        ({"beta": lambda step: "1"}, TypeError, "beta: expected a schedule that returns a number, got '1'"),
        ({"beta": lambda step: None}, TypeError, "beta: expected a schedule that returns a number, got None"),
        ({"beta": lambda step: jnp.ones(2)}, ValueError, r"beta: .* returns a scalar, got shape \(2,\)"),
        ({"beta": lambda step: min(step, 1)}, TypeError, r"beta: expected a schedule in jax.numpy"),
        ({"beta": lambda step: np.minimum(step, 1)}, TypeError, r"beta: expected a schedule in jax.numpy"),
        ({"checkpoint": 3}, TypeError, "checkpoint: expected a path, got int"),
    ],
)
def test_wrong_arguments_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        run(**changes)


@pytest.mark.any_precision
def test_a_key_is_a_key_and_a_dispersion_of_0_is_named():
    for key in (0, None, "0"):
        with pytest.raises(TypeError, match=r"key: expected .*jax.random.key\(0\)"):
            training.train(key, net(), data(), steps=1)
    perfect = jax.tree.map(lambda leaf: leaf, net())
    leaves, structure = jax.tree.flatten(perfect.objective)
    perfect.objective = nnx.data(jax.tree.unflatten(structure, [*leaves[:-1], jnp.zeros(())]))  # as a fit may end
    with pytest.raises(ValueError, match="dispersion: expected a positive"):
        training.train(KEY, perfect, data(), steps=1)


@pytest.mark.any_precision
def test_a_fixed_dispersion_is_not_learned():
    x = (data() > 1).astype(float)
    vae = net(None, Bernoulli())
    with pytest.raises(ValueError, match=r"learn_dispersion: Bernoulli\(\) fixes it at 1"):
        training.train(KEY, vae, x, steps=1, learn_dispersion=True)
    run = training.train(KEY, vae, x, steps=1, batch_size=BATCH, optimizer=ADAM, chunk_size=500)
    assert float(run.dispersion) == 1
