"""Training goes where the closed form says, and what rows bring with them travels with them."""

import os
import pickle
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from run_cases import ADAM, BATCH, COLUMNS, GAUSSIAN, KEY, LATENT, ROWS, SETTINGS, SGD, STILL, data, net, run, same

from glmvae import Objective, Rows, elbo_exact, fit, initializers, nets, training
from glmvae.families import Bernoulli, Binomial, Gaussian, Mixed, Poisson


@pytest.fixture(scope="module")
def uninterrupted():
    return run()


def test_the_loss_is_minus_the_elbo_of_one_draw(dtype):
    x = data(dtype)
    optimum = fit(x, Gaussian(), LATENT, beta=0.3, dispersion=0.5)
    vae = initializers.pass_through(KEY, net(dtype, optimum.model.objective), optimum)
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(4000, ROWS, LATENT)), dtype)
    draws = np.asarray(jax.jit(jax.vmap(lambda e: training.negative_elbo(vae, x, e)))(noise))
    q = vae.encoder(x)
    exact = elbo_exact(vae, x, q).mean()
    error = float(draws.std()) / np.sqrt(len(draws))
    assert abs(float(draws.mean() + exact)) < 5 * error
    # a dropped beta, or 1 / phi for phi, is seen
    for wrong in (vae.with_beta(1.0), vae.with_dispersion(2.0)):
        assert abs(float(draws.mean() + elbo_exact(wrong, x, q).mean())) > 20 * error


def test_a_step_is_the_optimizers_update_of_the_gradient(dtype):
    """One step on all rows: their order does not matter, and with a deviation near 0 neither does the noise."""
    x, vae = data(dtype), net(dtype, GAUSSIAN.with_beta(0.3))
    vae.scale_layer.bias[...] = vae.scale_layer.bias[...] - 60.0
    after = training.train(KEY, vae, x, steps=1, batch_size=ROWS, optimizer=SGD)
    structure, params, rest = nnx.split(vae, nnx.Param, ...)

    @jax.jit
    @jax.grad
    def gradient(params):
        return training.negative_elbo(nnx.merge(structure, params, rest), x, jnp.zeros((ROWS, LATENT), dtype))

    expected = jax.tree.map(lambda p, g: np.asarray(p) - np.asarray(1e-3 * g, p.dtype), params, gradient(params))
    tolerance = {"float32": 1e-4, "float64": 1e-9}[str(dtype)]  # of means over 105 rows; deviations of e^-30
    trained = nnx.state(after.vae, nnx.Param)
    for new, old, want in zip(*map(jax.tree.leaves, (trained, params, expected)), strict=True):
        assert new.dtype == dtype
        new, old = np.asarray(new), np.asarray(old)
        np.testing.assert_allclose(new - old, want - old, rtol=tolerance, atol=tolerance * np.abs(want - old).max())
    assert after.losses.dtype == dtype


# Rows and what they bring ---------------------------------------------------------------------------------


def batches_seen(make_rows, objective, steps=40, rows=7, **net_changes):
    """Losses of batches of three rows under zero weights and no learning."""
    vae = net(None, objective, **net_changes)
    parameters = nnx.state(vae, nnx.Param)
    nnx.update(vae, jax.tree.map(jnp.zeros_like, parameters))
    return training.train(KEY, vae, make_rows(rows), steps=steps, batch_size=3, optimizer=STILL).losses


def powers(losses, constant):
    """Which of seven rows a batch has, where row i adds 2^i to the sum over three rows of minus log p."""
    sums = 3 * (losses - constant)
    np.testing.assert_allclose(sums, sums.round(), atol=3e-4)
    return (sums.round().astype(int)[:, None] >> np.arange(7)) & 1


CONSTANT = COLUMNS / 2 * np.log(2 * np.pi)  # of a standard normal row
STANDARD = Objective(Gaussian(), dispersion=1.0)


def marked(rows):
    """Row i has x^2 / 2 = 2^i."""
    return jnp.zeros((rows, COLUMNS)).at[:, 0].set(jnp.sqrt(2 * 2.0 ** jnp.arange(rows)))


@pytest.mark.any_precision
def test_an_epoch_visits_no_row_twice_and_each_its_rows_in_another_order():
    batches = powers(batches_seen(marked, STANDARD), CONSTANT)
    assert (batches.sum(1) == 3).all()
    epochs = batches.reshape(20, 2, 7)
    assert (epochs.sum(1) <= 1).all()
    assert not (epochs[0] == epochs[1]).all()
    # batches of 3 leave one of the seven rows out of an epoch, not always the same
    assert len(np.unique(epochs.sum(1).argmin(1))) > 1
    # and two orders that alternate would be seen
    assert len(np.unique(epochs, axis=0)) > 10


def offsets(rows):
    """The same numbers as an offset of data that are 0."""
    return Rows(np.zeros((rows, COLUMNS)), offset=marked(rows))


def with_missing(rows):
    x = np.asarray(marked(rows)).copy()
    x[:, 1] = np.nan  # nobody looks there
    return Rows(x, missing=np.arange(COLUMNS)[None] == 1)


def trials(rows):
    """x = n / 2 of n = 2^(i + 1) trials."""
    n = np.repeat(2.0 ** np.arange(1, rows + 1)[:, None], COLUMNS, axis=1)
    return Rows(n / 2, trials=n)


@pytest.mark.any_precision
def test_offset_missing_and_trials_travel_with_their_rows():
    plain = powers(batches_seen(marked, STANDARD), CONSTANT)
    np.testing.assert_array_equal(powers(batches_seen(offsets, STANDARD), CONSTANT), plain)
    missing = batches_seen(with_missing, STANDARD)
    np.testing.assert_array_equal(powers(missing, CONSTANT * (COLUMNS - 1) / COLUMNS), plain)

    # With trials the loss of a row is known, and every batch has to be one of rows with their own trials.
    losses = batches_seen(trials, Binomial(None))
    own = np.asarray(trials(7).trials)[:, 0]
    alone = -COLUMNS * np.asarray(Binomial(own).log_prob(own / 2, np.zeros(7)))
    np.testing.assert_allclose(3 * losses, plain @ alone, rtol=1e-5)
    # were the trials those of other rows, the sums would not be these
    assert np.abs(3 * losses - plain @ alone[::-1]).max() > 0.1


@pytest.mark.any_precision
def test_trials_an_entry_start_at_the_loss_of_the_rows():
    """Three rows of 1, 2 and 4 trials, x of ones, at eta 0."""
    x, n = np.ones((3, 2)), np.array([[1.0, 1], [2, 2], [4, 4]])
    vae = nets.canonical(KEY, 2, 1, Binomial(None), encoder_widths=(4,))
    nnx.update(vae, jax.tree.map(jnp.zeros_like, nnx.state(vae, nnx.Param)))
    first = training.train(KEY, vae, Rows(x, trials=n), steps=1, batch_size=3, optimizer=STILL).losses[0]
    by_hand = -2 * np.mean([np.log(1 / 2), np.log(2 / 4), np.log(4 / 16)])  # C(n, 1) / 2^n
    np.testing.assert_allclose(first, by_hand, rtol=1e-6)


@pytest.mark.any_precision
def test_weights_scale_the_loss_of_their_rows_and_their_mean_is_one():
    weight = np.array([1.0, 2, 0, 1, 1, 3, 6])
    batches = powers(batches_seen(marked, STANDARD), CONSTANT)
    losses = batches_seen(lambda rows: Rows(marked(rows), weight=weight), STANDARD)
    expected = batches @ (weight / weight.mean() * (2.0 ** np.arange(7) + CONSTANT)) / 3
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    # the mean over all batches is the weighted mean of the rows
    assert np.abs(losses - batches @ (2.0 ** np.arange(7) + CONSTANT) / 3).max() > 1


@pytest.mark.any_precision
@pytest.mark.parametrize("shared", ["offset", "missing", "trials"])
def test_what_the_rows_share_is_not_cut(shared):
    x = np.zeros((ROWS, COLUMNS))
    ones = {"offset": np.arange(6.0), "missing": np.arange(6) > 3, "trials": np.arange(1.0, 7.0)}
    one = ones[shared][None]
    objective = Binomial(None) if shared == "trials" else STANDARD
    vae = net(None, objective)
    once = training.train(KEY, vae, Rows(x, **{shared: one}), steps=2, batch_size=BATCH, optimizer=SGD)
    each = np.repeat(one, ROWS, axis=0)
    apart = training.train(KEY, vae, Rows(x, **{shared: each}), steps=2, batch_size=BATCH, optimizer=SGD)
    np.testing.assert_allclose(once.losses, apart.losses, rtol=1e-6)


@pytest.mark.any_precision
def test_a_batch_of_generated_rows_and_covariates_are_refused():
    with pytest.raises(TypeError, match=r"x: training visits .* takes an array or Rows in memory, got generator"):
        run(x=(data() for _ in range(2)))
    with pytest.raises(ValueError, match="covariates: the decoder has coefficients for 0, the rows bring 2"):
        run(x=Rows(data(), covariates=np.ones((ROWS, 2))))
    with pytest.raises(ValueError, match=r"x: Binomial\(trials=None\) has its trials from the rows"):
        run(vae=net(None, Binomial(None)), x=np.ones((ROWS, COLUMNS)), learn_dispersion=False)


# The loop -------------------------------------------------------------------------------------------------


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
    assert float(uninterrupted.vae.beta) == 1
    assert float(run(steps=10, evaluate_every=None).vae.beta) == 0.5  # that of its step


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
    # it passes through a process pool, as errors of workers do
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.step) == (str(error.value), seen)
    assert same(again.run, good)


@pytest.mark.any_precision
def test_what_the_caller_holds_survives(uninterrupted):
    vae, x = net(), data()
    before = jax.tree.map(np.array, (nnx.state(vae), x))
    training.train(KEY, vae, x, steps=10, **SETTINGS)
    after = jax.tree.map(np.array, (nnx.state(vae), x))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, after)))
    assert not np.array_equal(uninterrupted.vae.loadings, vae.loadings)


def vandal(vae, arrays):
    """A callback that changes all it can reach."""

    def callback(run):
        for theirs in (run.vae, vae):
            for layer in (theirs.mean_layer, theirs.output_layer, theirs.encoder_layers[0]):
                layer.kernel[...] = 0 * layer.kernel[...] + 7
            theirs.objective = nnx.data(Objective(Gaussian(), beta=100.0, dispersion=3.0))
            theirs.scale_layer = theirs.mean_layer
        for array in (run.losses, *run.evaluations, *arrays):
            array[...] = 5

    return callback


@pytest.mark.any_precision
def test_callbacks_only_look(uninterrupted):
    vae, x, test = net(), np.array(data()), np.array(0.9 * data())
    result = run(vae=vae, x=x, test=test, callbacks=[vandal(vae, (x, test))])
    assert (x == 5).all()  # it did what it could
    assert (np.asarray(vae.loadings) == 7).all()
    # the run handed out last is that of a copy too: what it was before the callback saw it
    assert same(result, uninterrupted)


@pytest.mark.any_precision
def test_a_mixed_family_learns_the_dispersion_of_the_columns_that_do_not_fix_it():
    family = Mixed([(Bernoulli(), [0, 3]), (Gaussian(), [1, 2, 4, 5])])
    phi = np.where(np.isin(np.arange(6), [0, 3]), 1.0, 0.5)
    x = np.asarray(data()).copy()
    x[:, [0, 3]] = x[:, [0, 3]] > 1
    vae = net(None, Objective(family, dispersion=phi))
    learned = training.train(KEY, vae, x, steps=20, batch_size=BATCH, optimizer=SGD, learn_dispersion=True).dispersion
    assert (np.asarray(learned)[[0, 3]] == 1).all()
    assert (np.abs(np.asarray(learned)[[1, 2, 4, 5]] - 0.5) > 1e-4).all()


# Where it ends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["constant", pytest.param("annealed", marks=pytest.mark.float64)])
def test_trained_to_convergence_it_ends_at_the_closed_form(start, dtype):
    """Gaussian data, He start: the closed form is the global optimum, and training finds it (the paper's claim)."""
    x, beta, steps = data(dtype), 1.5, 8000
    optimum = fit(x, Gaussian(), LATENT, beta=beta, dispersion=0.25)
    active = int((optimum.eigenvalues[:LATENT] > beta).sum())
    assert active == 2  # one of three units is pruned
    result = training.train(
        KEY,
        net(dtype, optimum.model.objective, encoder_widths=(64,)),
        x,
        steps=steps,
        batch_size=ROWS,
        chunk_size=2000,
        optimizer=optax.adam(optax.cosine_decay_schedule(3e-2, steps)),
        beta=None if start == "constant" else lambda step: beta * jnp.minimum(step / 2000.0, 1.0),
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
    optimum = fit(x, Gaussian(), LATENT - 1)
    vae = nets.canonical(KEY, COLUMNS, LATENT - 1, STANDARD, encoder_widths=(16,))
    vae = initializers.pass_through(KEY, vae, optimum)
    settings = {"steps": 2000, "batch_size": ROWS, "chunk_size": 1000}
    adam = optax.adam(optax.cosine_decay_schedule(1e-2, 2000))
    learned = training.train(KEY, vae, x, optimizer=adam, learn_dispersion=True, **settings)
    assert abs(float(learned.dispersion / optimum.dispersion) - 1) < 0.03  # the noise of single draws
    assert abs(float(optimum.dispersion) - 1) > 0.1


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


# Arguments ------------------------------------------------------------------------------------------------


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


@pytest.mark.any_precision
def test_digits_lost_on_the_way_into_the_net_are_a_warning():
    x = 1e8 + np.random.default_rng(0).normal(size=(50, COLUMNS))
    vae = net("float32", STANDARD)
    with pytest.warns(UserWarning, match="x: column 0 loses its digits in float32"):
        training.train(KEY, vae, x, steps=1, batch_size=50)
    for fine in (x - 1e8, np.full((50, COLUMNS), 0.1), np.arange(300).reshape(50, COLUMNS)):  # a warning is an error
        training.train(KEY, vae, fine, steps=1, batch_size=50)


@pytest.mark.any_precision
def test_poisson_counts_with_offsets_train():
    """The offset is part of eta: with it a constant rate is learned, whatever the exposure."""
    rng = np.random.default_rng(0)
    exposure = rng.integers(1, 100, size=(ROWS, 1)).astype(float)
    x = rng.poisson(0.3 * exposure, size=(ROWS, COLUMNS)).astype(float)
    rows = Rows(x, offset=np.log(exposure))
    vae = net(None, Objective(Poisson(), beta=50.0), standardise=nets.standardisation(rows, Poisson()))
    nnx.update(vae, jax.tree.map(jnp.zeros_like, nnx.state(vae, nnx.Param)))
    options = {"steps": 400, "batch_size": ROWS, "optimizer": optax.adam(2e-2), "chunk_size": 400}
    rate = np.exp(np.asarray(training.train(KEY, vae, rows, **options).vae.intercept))
    np.testing.assert_allclose(rate, x.sum(0) / exposure.sum(), atol=0.01)
    assert (np.exp(np.asarray(training.train(KEY, vae, x, **options).vae.intercept)) > 5).all()
