"""What the ascent costs: no program for another number of rows, memory beside the rows and their posteriors flat."""

import jax
import numpy as np
import pytest
from ascent_cases import D, K, case
from compilations import counted
from memory import Measured, peak

from glmvae import Affine, AffineModel, Rows, best_posterior, elbo_exact, fit, refine
from glmvae.ascent import climb
from glmvae.ascent.climb import Problem, at_decoder
from glmvae.ascent.passes import exact_pass
from glmvae.ascent.row_posteriors import PosteriorStore, prior_like
from glmvae.cuts import block_size
from glmvae.families import Bernoulli, Poisson
from glmvae.sources import as_source

pytestmark = pytest.mark.any_precision


def rows(n, columns=D, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.random((n, columns)) < 1 / (1 + np.exp(-2 * rng.normal(size=(n, 1))))).astype("float32")


def test_another_number_of_rows_compiles_nothing_new():
    """60 rows and 30 have no shape in common but that of a block."""
    options = {"tolerance": 1e-4, "max_rounds": 20}
    for n in (60, 30):  # blocks of 128 and of 32 rows
        start = fit(rows(n), Bernoulli(), K)
        refine(start, rows(n), **options)
    with counted() as new:
        for n in (62, 64, 44, 39, 22):
            start = fit(rows(n, seed=n), Bernoulli(), K)
            best = refine(start, rows(n, seed=n), **options)
            assert best.posterior.mean.shape == (n, K)
    assert new.number == 0


def test_one_row_and_seven_after_the_first_without_a_compilation():
    c = case("poisson", "float32")
    model = c.start.model
    best_posterior(model, c.x[:5])
    with counted() as new:
        for n in (1, 7, 3, 8):
            q = best_posterior(model, c.x[:n])
            assert q.mean.shape == (n, K)
    assert new.number == 0
    with counted() as new:  # Control: rows of another kind, which no other test has
        best_posterior(model, Rows(c.x[:5], offset=np.zeros(5, "int8")))
    assert new.number > 0


def test_a_run_over_more_rows_holds_no_more_than_their_posteriors():
    """From batches that nobody keeps: two copies of mean, covariance, log-determinant and cautions, in single."""
    columns = Measured.num_columns
    model = AffineModel(Affine(0.1 * np.ones((columns, K), "float32"), np.zeros(columns, "float32")), Poisson())

    def run(source):
        store = PosteriorStore(prior_like(model.decoder))
        for _ in range(2):
            at_decoder(Problem(source, exact_pass, False), store, model.decoder, model.objective)
            store.commit()

    run(Measured(2))
    few, many = peak(run, Measured(4)), peak(run, Measured(24))
    posteriors = 20 * 512 * ((K + K * (K + 1) // 2 + 3) * 4 + 1)
    data = 20 * 512 * columns
    assert many[0] - few[0] < 0.1 * data
    assert many[1] - few[1] < 2.2 * posteriors < 0.5 * data


def test_scores_of_more_rows_hold_no_more_than_themselves():
    columns = Measured.num_columns
    model = AffineModel(Affine(0.1 * np.ones((columns, K), "float32"), np.zeros(columns, "float32")), Poisson())

    def run(source):
        return elbo_exact(model, source, best_posterior(model, source, max_steps=1))

    run(Measured(2))
    few, many = peak(run, Measured(4)), peak(run, Measured(24))
    assert many[0] - few[0] + many[1] - few[1] < 0.3 * 20 * 512 * columns


def test_a_pass_sees_a_block_of_the_store_and_no_more():
    """So nothing in the compiled program can copy the whole of it, whatever the number of rows."""
    seen = set()

    def looking(rows, old, *args):
        seen.update(leaf.shape[0] for leaf in jax.tree.leaves((rows, old)))
        return exact_pass(rows, old, *args)

    columns = 700
    model = AffineModel(Affine(0.1 * np.ones((columns, K), "float32"), np.zeros(columns, "float32")), Bernoulli())
    store = PosteriorStore(prior_like(model.decoder))
    source = as_source(np.zeros((1000, columns), "uint8"))
    at_decoder(Problem(source, looking, False), store, model.decoder, model.objective)
    store.commit()
    assert seen == {block_size(columns)} == {512}
    assert store.gathered().mean.shape == (1000, K)


def large_counts():
    rng = np.random.default_rng(0)
    eta = 3 + rng.normal(size=(60, 1)) + 1.5 * rng.normal(size=(60, 3)) @ rng.normal(size=(3, 12)) / np.sqrt(3)
    return rng.poisson(np.exp(eta)).astype(float)


def test_large_counts_take_fewer_rounds_where_posteriors_that_lag_take_two_steps(monkeypatch):
    x = large_counts()
    start = fit(x, Poisson(), 3)
    with_two = refine(start, x)
    monkeypatch.setattr(climb, "_HELD", 0)  # one step, whatever has failed
    with_one = refine(start, x)
    assert with_two.converged
    assert with_one.converged
    np.testing.assert_allclose(with_two.elbo, with_one.elbo, atol=1e-4)  # nats: the tolerance of the ascent
    assert len(with_two.history) < 0.8 * len(with_one.history)


def test_posteriors_that_are_found_take_no_more_steps():
    """In single precision gains below the rounding of a row's ELBO kept them going to the last step allowed."""
    x = large_counts().astype("float32")
    best = refine(fit(x, Poisson(), 3), x, tolerance=1e-3)
    few, many, none = (best_posterior(best, x, max_steps=steps) for steps in (40, 20000, 3))
    np.testing.assert_array_equal(many.mean, few.mean)  # another step would move the last digits
    assert np.any(np.asarray(none.mean) != few.mean)
