"""What rows bring with them travels with them through training: offset, trials, missing entries, weight."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from run_cases import BATCH, COLUMNS, KEY, ROWS, SGD, STANDARD, STILL, data, net, run

from glmvae import Objective, Rows, fit, initializers, nets, training
from glmvae.families import Bernoulli, Binomial, Gaussian, Mixed, Poisson


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


def gradient(loss, vae):
    """Of a loss of the net, all of it in one vector."""
    structure, parameters, rest = nnx.split(vae, nnx.Param, ...)
    slope = jax.jit(jax.grad(lambda p: loss(nnx.merge(structure, p, rest))))(parameters)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(slope)])


COUNTS = np.random.default_rng(0).poisson(2.0, (40, COLUMNS)).astype(float)


def at_the_optimum(family, x):
    """A net that takes a row far out to predictors far out."""
    optimum = fit(x, family, 2, expand_at="null", dispersion=None if family == Poisson() else 1.0)
    vae = nets.canonical(KEY, COLUMNS, 2, optimum.model.objective, encoder_widths=(16,))
    return initializers.pass_through(KEY, vae, optimum)


def test_a_row_of_weight_0_that_overflows_has_no_gradient(dtype):
    x, noise = COUNTS.astype(dtype), jnp.asarray(np.random.default_rng(1).normal(size=(40, 2)), dtype)
    vae = at_the_optimum(Poisson(), x[1:])
    x[0] = 1e6
    weight = np.r_[0.0, np.ones(39)].astype(dtype)
    for fields in ({}, {"missing": np.arange(40)[:, None] * np.ones((1, COLUMNS)) == 1}, {"offset": x / 9}):
        rows = Rows(x, weight=weight, **fields)
        expected = gradient(lambda v, rows=rows: training.negative_elbo(v, rows.map(lambda a: a[1:]), noise[1:]), vae)
        found = gradient(lambda v, rows=rows: training.negative_elbo(v, rows, noise), vae)
        assert np.isfinite(expected).all()
        close = {"float32": 1e-4, "float64": 1e-12}[str(dtype)] * np.abs(expected).max()  # sums in another order
        np.testing.assert_allclose(found * 40 / 39, expected, rtol=0, atol=close)
    assert not np.isfinite(Poisson().log_prob(x[0], vae.decoder(vae.encoder(x[:1]).mean[0]))).all()  # it would be NaN
    assert np.isfinite(training.train(KEY, vae, Rows(x, weight=weight), steps=3, batch_size=40).losses).all()


def test_a_missing_entry_whose_predictor_overflows_has_no_gradient(dtype):
    """In a row of Gaussian values that are far out, the counts are missing."""
    family = Mixed([(Gaussian(), [0, 1, 2]), (Poisson(), [3, 4, 5])])
    x, noise = COUNTS.astype(dtype), jnp.asarray(np.random.default_rng(1).normal(size=(40, 2)), dtype)
    vae = at_the_optimum(family, x)
    x[0, :3] = 1e6
    missing = np.zeros(x.shape, bool)
    missing[0, 3:] = True
    rows = Rows(x, missing=missing)

    def by_hand(v):
        mean, scale = v.encode(jnp.where(missing, 0.0, x))
        eta = v.decoder(nets.reparameterise(mean, scale, noise))
        counts, row = eta[1:, 3:], x[1:, 3:]
        fit = jnp.sum((x[:, :3] - eta[:, :3]) ** 2) / 2 + jnp.sum(jnp.exp(counts) - row * counts)
        return (fit + jnp.sum(nets.kl_of_scale(mean, scale))) / 40

    assert np.isinf(jnp.exp(vae.decoder(vae.encoder(rows).mean[0]))[3:]).any()
    found = gradient(lambda v: training.negative_elbo(v, rows, noise), vae)
    expected = gradient(by_hand, vae)
    assert np.isfinite(expected).all()
    close = {"float32": 1e-4, "float64": 1e-12}[str(dtype)] * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=close)


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
