"""Training goes where the closed form says, and a run that was stopped is the run that was not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from glmvae import elbo_exact, fit, initializers, nets, training
from glmvae.families import Bernoulli, Gaussian

COLUMNS, LATENT, ROWS, BATCH = 6, 3, 105, 20
KEY = jax.random.key(0)
# One of each, so that runs share their compiled programs.
SGD = optax.sgd(1e-3)
ADAM = optax.adam(1e-3)
STILL = optax.sgd(0.0)


def data(dtype=None):
    rng = np.random.default_rng(0)
    spread = np.array([3.0, 2.0, 0.5, 0.5, 0.5, 0.5])
    rotation = np.linalg.qr(rng.normal(size=(COLUMNS, COLUMNS)))[0]
    return jnp.asarray(rng.normal(size=(ROWS, COLUMNS)) * spread @ rotation + 1, dtype or jnp.result_type(float))


def net(dtype=None, family=None):
    return nets.canonical(KEY, COLUMNS, LATENT, family or Gaussian(), encoder_widths=(16,), dtype=dtype)


def anneal(step):
    return jnp.minimum(step / 20.0, 1.0)


SETTINGS = {
    "test": 0.9 * data(),
    "batch_size": BATCH,
    "beta": anneal,
    "dispersion": 0.5,
    "learn_dispersion": True,
    "evaluate_every": 15,
    "chunk_size": 10,
}


def run(steps=40, vae=None, **changes):
    return training.train(jax.random.key(3), vae or net(), data(), steps=steps, **(SETTINGS | changes))


@pytest.fixture(scope="module")
def uninterrupted():
    return run()


def same(a, b):
    def leaves(run):
        return [*jax.tree.leaves(nnx.state(run.vae)), run.dispersion, run.losses, *run.evaluations]

    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(leaves(a), leaves(b), strict=True))


def test_the_loss_is_minus_the_elbo_of_one_draw(dtype):
    x, vae = data(dtype), initializers.pass_through(KEY, net(dtype), fit(data(dtype), Gaussian(), LATENT))
    beta, phi = 0.3, 0.5
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(4000, ROWS, LATENT)), dtype)
    draws = np.asarray(jax.jit(jax.vmap(lambda e: training.negative_elbo(vae, x, e, beta, phi)))(noise))
    decoder, q = (vae.loadings, vae.intercept), vae.encoder(x)
    exact = elbo_exact(*decoder, x, q, Gaussian(), beta=beta, dispersion=phi).mean()
    error = float(draws.std()) / np.sqrt(len(draws))
    assert abs(float(draws.mean() + exact)) < 5 * error
    # a dropped beta, or 1 / phi for phi, is seen
    for wrong in ((1.0, phi), (beta, 1 / phi)):
        value = elbo_exact(*decoder, x, q, Gaussian(), beta=wrong[0], dispersion=wrong[1]).mean()
        assert abs(float(draws.mean() + value)) > 20 * error


def test_a_step_is_the_optimizers_update_of_the_gradient(dtype):
    """One step on all rows: their order does not matter, and with a deviation near 0 neither does the noise."""
    x, vae = data(dtype), net(dtype)
    vae.scale_layer.bias[...] = vae.scale_layer.bias[...] - 60.0
    after = training.train(KEY, vae, x, steps=1, batch_size=ROWS, optimizer=SGD, dispersion=0.5, beta=0.3)
    structure, params = nnx.split(vae)

    @jax.jit
    @jax.grad
    def gradient(params):
        return training.negative_elbo(nnx.merge(structure, params), x, jnp.zeros((ROWS, LATENT), dtype), 0.3, 0.5)

    expected = jax.tree.map(lambda p, g: np.asarray(p) - np.asarray(1e-3 * g, p.dtype), params, gradient(params))
    tolerance = {"float32": 1e-4, "float64": 1e-9}[str(dtype)]  # of means over 105 rows; deviations of e^-30
    for new, old, want in zip(*map(jax.tree.leaves, (nnx.state(after.vae), params, expected)), strict=True):
        assert new.dtype == dtype
        new, old = np.asarray(new), np.asarray(old)
        np.testing.assert_allclose(new - old, want - old, rtol=tolerance, atol=tolerance * np.abs(want - old).max())
    assert after.losses.dtype == dtype


@pytest.mark.any_precision
def test_an_epoch_visits_no_row_twice_and_each_its_rows_in_another_order():
    # With zero weights, no learning and x^2 / 2 of row i being 3 * 2^i, the loss of a batch of three says which it has.
    x = jnp.zeros((7, COLUMNS)).at[:, 0].set(jnp.sqrt(6 * 2.0 ** jnp.arange(7)))
    structure, params = nnx.split(net())
    vae = nnx.merge(structure, jax.tree.map(jnp.zeros_like, params))
    losses = training.train(KEY, vae, x, steps=40, batch_size=3, optimizer=STILL, dispersion=1.0).losses
    sums = losses - COLUMNS / 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(sums, sums.round(), atol=1e-4)
    batches = (sums.round().astype(int)[:, None] >> np.arange(7)) & 1
    assert (batches.sum(1) == 3).all()
    epochs = batches.reshape(20, 2, 7)
    assert (epochs.sum(1) <= 1).all()
    assert not (epochs[0] == epochs[1]).all()
    # batches of 3 leave one of the seven rows out of an epoch, not always the same
    assert len(np.unique(epochs.sum(1).argmin(1))) > 1
    # and two orders that alternate would be seen
    assert len(np.unique(epochs, axis=0)) > 10


@pytest.mark.any_precision
@pytest.mark.parametrize("chunk_size", [1, 7, 101])
def test_the_size_of_a_chunk_changes_nothing(uninterrupted, chunk_size):
    assert same(run(chunk_size=chunk_size), uninterrupted)


@pytest.mark.any_precision
def test_another_key_is_another_run(uninterrupted):
    other = training.train(jax.random.key(4), net(), data(), steps=40, **SETTINGS)
    assert not same(other, uninterrupted)
    assert uninterrupted.evaluations.step.tolist() == [0, 15, 30]
    np.testing.assert_allclose(uninterrupted.evaluations.beta, [0, 0.75, 1], rtol=1e-6)


def test_a_run_that_is_resumed_is_the_run_that_never_stopped(uninterrupted, tmp_path):
    file = tmp_path / "run.npz"
    first = run(callbacks=[lambda run: run.step >= 20], checkpoint=file)
    assert first.step == 25  # chunks end at 10, 15 (an evaluation), 25
    assert first.stopped == "callback"
    assert not same(first._replace(losses=uninterrupted.losses), uninterrupted)
    seen = []
    resumed = run(callbacks=[lambda run: seen.append(run.step)], checkpoint=file, chunk_size=3)
    assert min(seen) == 28
    assert same(resumed, uninterrupted)
    assert same(run(checkpoint=file), uninterrupted)  # nothing left to do
    assert os.listdir(tmp_path) == ["run.npz"]


@pytest.mark.any_precision
def test_an_optimizer_with_a_key_in_its_state_resumes(tmp_path):
    """It makes steps of random length, as optax.add_noise makes steps in random directions."""

    def update(gradient, key, _):
        key, now = jax.random.split(key)
        length = 1e-3 * jax.random.uniform(now)
        return jax.tree.map(lambda g: (-length * g).astype(g.dtype), gradient), key

    noisy = optax.GradientTransformation(lambda _: jax.random.key(0), update)
    whole = run(optimizer=noisy, evaluate_every=None)
    half = run(steps=20, optimizer=noisy, evaluate_every=None, checkpoint=tmp_path / "run")
    assert not same(half._replace(losses=whole.losses), whole)
    assert same(run(optimizer=noisy, evaluate_every=None, checkpoint=tmp_path / "run"), whole)


CHILD = """
import sys, time
sys.path.insert(0, {tests!r})
import conftest, test_training
test_training.run(callbacks=[lambda run: time.sleep(0.3)], checkpoint={file!r}, chunk_size=5)
"""


@pytest.mark.any_precision
def test_a_killed_process_loses_at_most_a_chunk(uninterrupted, tmp_path):
    file = tmp_path / "run.npz"
    (tmp_path / "run.npz.part").write_bytes(b"what a process killed while writing leaves")
    child = subprocess.Popen([sys.executable, "-c", CHILD.format(tests=str(Path(__file__).parent), file=str(file))])
    give_up = time.monotonic() + 300
    while not file.exists() and child.poll() is None and time.monotonic() < give_up:
        time.sleep(0.02)
    child.kill()  # SIGKILL
    assert child.wait() == -signal.SIGKILL
    steps = []
    resumed = run(callbacks=[lambda run: steps.append(run.step)], checkpoint=file)
    assert 5 < steps[0] < 40  # it went on from where the process was, and had work left
    assert same(resumed, uninterrupted)


@pytest.mark.any_precision
def test_ctrl_c_returns_the_last_chunk(uninterrupted):
    def interrupt(run):
        if run.step == 25:
            os.kill(os.getpid(), signal.SIGINT)

    # a process started in the background ignores the signal, as its children do
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stopped = run(callbacks=[interrupt])
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.stopped == "interrupt"
    assert stopped.step in (25, 30)  # the signal arrives when Python next looks
    np.testing.assert_array_equal(stopped.losses, uninterrupted.losses[: stopped.step])


BAD = optax.sgd(lambda step: jnp.where(step == 7, jnp.nan, 1e-4))


@pytest.mark.any_precision
@pytest.mark.parametrize(("chunk_size", "seen", "kept"), [(5, 8, 5), (8, 7, 0)])
def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_good_state(chunk_size, seen, kept, tmp_path):
    """Step 7 makes the parameters NaN: the loss of step 8 shows it, or the check of the state after a chunk."""
    settings = {"optimizer": BAD, "evaluate_every": None, "chunk_size": chunk_size}
    with pytest.raises(training.NonFiniteLoss, match=f"step {seen} is not finite; the state of step {kept} ") as error:
        run(**settings, checkpoint=tmp_path / "run")
    assert error.value.step == seen
    good = error.value.run
    assert good.step == kept
    expected = run(steps=kept, **settings) if kept else good
    assert same(good, expected)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(nnx.state(good.vae)))
    assert (tmp_path / "run").exists() == (kept > 0)


@pytest.mark.any_precision
def test_what_the_caller_holds_survives(uninterrupted):
    vae, x = net(), data()
    before = jax.tree.map(np.array, (nnx.state(vae), x))
    training.train(KEY, vae, x, steps=10, **SETTINGS)
    after = jax.tree.map(np.array, (nnx.state(vae), x))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, after)))
    assert not np.array_equal(uninterrupted.vae.loadings, vae.loadings)


@pytest.mark.parametrize("start", ["constant", pytest.param("annealed", marks=pytest.mark.float64)])
def test_trained_to_convergence_it_ends_at_the_closed_form(start, dtype):
    """Gaussian data, He start: the closed form is the global optimum, and training finds it (the paper's claim)."""
    x, beta, steps = data(dtype), 1.5, 8000
    optimum = fit(x, Gaussian(), LATENT, beta=beta, dispersion=0.25)
    active = int((optimum.eigenvalues[:LATENT] > beta).sum())
    assert active == 2  # one of three units is pruned
    result = training.train(
        KEY,
        nets.canonical(KEY, COLUMNS, LATENT, Gaussian(), encoder_widths=(64,), dtype=dtype),
        x,
        steps=steps,
        batch_size=ROWS,
        chunk_size=2000,
        optimizer=optax.adam(optax.cosine_decay_schedule(3e-2, steps)),
        beta=beta if start == "constant" else lambda step: beta * jnp.minimum(step / 2000.0, 1.0),
        dispersion=0.25,
        evaluate_every=2000,
    )
    assert float(result.dispersion) == 0.25  # not learned unless asked to
    result = result.evaluations
    # its own gap to the closed form, in parts of it: 3e-4 at the end, 0.001 is the claim
    gap = (float(optimum.elbo_taylor) - result.train_elbo) / abs(float(optimum.elbo_taylor))
    rounding = {"float32": 1e-6, "float64": 1e-12}[str(dtype)]
    assert -rounding < gap[-1] < 1e-3
    assert gap[1] > 1e-3  # after a quarter of the steps it is not there yet
    assert result.active_units[-1] == active
    assert result.active_units[0] == LATENT


@pytest.mark.any_precision
def test_a_learned_dispersion_ends_at_the_closed_forms():
    x = data()
    optimum = fit(x, Gaussian(), 2)
    vae = nets.canonical(KEY, COLUMNS, 2, Gaussian(), encoder_widths=(16,))
    vae = initializers.pass_through(KEY, vae, optimum)
    settings = {"steps": 2000, "batch_size": ROWS, "chunk_size": 1000, "dispersion": 1.0}
    adam = optax.adam(optax.cosine_decay_schedule(1e-2, 2000))
    learned = training.train(KEY, vae, x, optimizer=adam, learn_dispersion=True, **settings)
    assert abs(float(learned.dispersion / optimum.dispersion) - 1) < 0.03  # the noise of single draws


@pytest.mark.parametrize("architecture", ["canonical", pytest.param("deep", marks=pytest.mark.float64)])
def test_from_pass_through_training_does_not_fall(architecture, dtype):
    rng = np.random.default_rng(0)
    eta = rng.normal(size=(ROWS, 2)) @ rng.normal(size=(2, COLUMNS)) * 2
    x = jnp.asarray(rng.random((ROWS, COLUMNS)) < 1 / (1 + np.exp(-eta)), dtype)
    if architecture == "canonical":
        vae = net(dtype, Bernoulli())
    else:
        widths = {"encoder_widths": (16, 16), "decoder_widths": (16, 16)}
        vae = nets.deep(KEY, COLUMNS, LATENT, Bernoulli(), **widths, dtype=dtype)
    vae = initializers.pass_through(KEY, vae, fit(x, Bernoulli(), LATENT))
    settings = {"steps": 500, "batch_size": BATCH, "evaluate_every": 500, "num_samples": 200, "chunk_size": 500}
    result = training.train(KEY, vae, x, optimizer=ADAM, **settings).evaluations
    assert result.train_elbo[1] > result.train_elbo[0] + 5 * np.hypot(*result.train_error)


@pytest.mark.any_precision
def test_early_stop_waits_for_patience():
    def stops(values, test=False, patience=2):
        nan = np.full(len(values), np.nan)
        record = training._no_evaluations(net())._replace(
            train_elbo=nan if test else np.array(values), test_elbo=np.array(values) if test else nan
        )
        return training.early_stop(patience)(training.Run(None, None, 0, np.zeros(0), record))

    for test in (False, True):
        assert not stops([], test)
        assert not stops([1.0, 3.0, 2.0], test)
        assert stops([1.0, 3.0, 2.0, 2.5], test)
        assert not stops([1.0, 3.0, 2.0, 3.5], test)
    # with beta annealed from 0 the first evaluation is the best
    stopped = run(steps=100, callbacks=[training.early_stop(2)])
    assert stopped.stopped == "callback"
    assert stopped.step == 30
    assert run(callbacks=[training.early_stop(3)]).stopped is None


@pytest.mark.any_precision
def test_the_progress_bar_counts_steps(capsys):
    run(callbacks=[training.progress_bar(40)])
    shown = capsys.readouterr().err
    assert "40/40" in shown
    assert "loss" in shown
    assert "ELBO" in shown


@pytest.mark.any_precision
def test_without_tqdm_the_progress_bar_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match="pip install"):
        training.progress_bar(10)


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 10}, "batch_size was 20, is 10"),
        ({"beta": 1.0}, "beta was "),
        ({"beta": lambda step: anneal(step) * 2}, "beta was "),
        ({"dispersion": 0.6}, "dispersion was|start was"),
        ({"learn_dispersion": False}, "start was"),
        ({"optimizer": optax.adam(2e-4)}, "optimizer was"),
        ({"evaluate_every": 5}, "evaluate_every was 15, is 5"),
        ({"test": None}, "data was"),
        ({"num_samples": 3}, "num_samples was 16, is 3"),
        ({"vae": lambda: net(family=Gaussian(activation_scale=2.0))}, "net was"),
        ({"vae": lambda: initializers.he(jax.random.key(9), net())}, "start was"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(changes, named, finished):
    with pytest.raises(ValueError, match=f"checkpoint: .* is of another run: ({named})"):
        run(checkpoint=finished, **{k: v() if k == "vae" else v for k, v in changes.items()})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    file = tmp_path_factory.mktemp("checkpoint") / "run.npz"
    run(steps=10, checkpoint=file)
    return file


@pytest.mark.any_precision
def test_a_checkpoint_is_plain_arrays_and_a_damaged_one_is_refused(finished, tmp_path):
    with np.load(finished, allow_pickle=False) as file:
        assert all(array.dtype != object for array in file.values())
    content = finished.read_bytes()
    for name, part in (("cut", content[: len(content) // 2]), ("empty", b""), ("other", b"something else")):
        (tmp_path / name).write_bytes(part)
        with pytest.raises(ValueError, match="is not a checkpoint of a training run"):
            run(checkpoint=tmp_path / name)


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps: expected an integer of at least 1, got 0"),
        ({"steps": 1.5}, TypeError, "steps: expected an integer"),
        ({"batch_size": 106}, ValueError, "batch_size: .*106"),
        ({"chunk_size": 0}, ValueError, "chunk_size: expected an integer of at least 1"),
        ({"evaluate_every": 0}, ValueError, "evaluate_every: expected an integer of at least 1"),
        ({"beta": -1.0}, ValueError, "beta: expected a positive"),
        ({"dispersion": 0.0}, ValueError, "dispersion: expected a positive"),
        ({"dispersion": None}, ValueError, r"dispersion: Gaussian\(\) needs one"),
        ({"optimizer": "adam"}, TypeError, "optimizer: expected an optax transformation, got str"),
        ({"test": np.ones((2, 5))}, ValueError, "test: expected 6 columns"),
        (
            {"vae": lambda: net(family=Bernoulli())},
            ValueError,
            "x: expected values in the support",
        ),
    ],
)
def test_wrong_arguments_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        run(**{k: v() if k == "vae" else v for k, v in changes.items()})


@pytest.mark.any_precision
def test_a_fixed_dispersion_is_not_learned():
    x = (data() > 1).astype(float)
    vae = net(family=Bernoulli())
    with pytest.raises(ValueError, match=r"learn_dispersion: Bernoulli\(\) fixes it at 1"):
        training.train(KEY, vae, x, steps=1, learn_dispersion=True)
    run = training.train(KEY, vae, x, steps=1, batch_size=BATCH, optimizer=ADAM, chunk_size=500)
    assert float(run.dispersion) == 1
    with pytest.raises(ValueError, match="patience: expected an integer of at least 1"):
        training.early_stop(0)
