"""Sources: rows from memory, a memmap, batches, or anything that gives pieces."""

import gzip

import jax
import numpy as np
import pytest
from tables import all_refused

from glmvae import Rows, best_posterior, elbo_exact, fit, moments, refine
from glmvae.blocks import total
from glmvae.families import Bernoulli, Poisson
from glmvae.sources import BatchSource, RowsSource, Source, as_source, concrete

N, D, K = 60, 5, 2
BATCH = 13  # not a rung, and 60 is no multiple of it


@pytest.fixture
def x():
    rng = np.random.default_rng(0)
    return rng.poisson(np.exp(rng.normal(size=(N, 1)) * [1.0, 0.8, -1.0, 0.5, 0.0])).astype("float32")


def batches(x, size=BATCH):
    return (x[i : i + size] for i in range(0, len(x), size))


class ZippedRows(Source):
    """Rows of single bytes in a compressed file, a block at a time: as a user would write it."""

    def __init__(self, path, columns):
        self.path, self.num_columns, self.dtype = path, columns, np.dtype("float32")
        self.passed = 0

    def pieces(self):
        self.passed += 1
        with gzip.open(self.path) as file:
            while block := file.read(BATCH * self.num_columns):
                yield Rows(np.frombuffer(block, np.uint8).reshape(-1, self.num_columns))


def _count(rows, _):
    return (rows.weight @ rows.x, rows.weight.sum()), None


def counted(source):
    sums, count = total(_count, as_source(source))
    return np.asarray(sums), float(count)


@pytest.mark.any_precision
def test_rows_come_in_order_and_once_from_every_kind(x, tmp_path):
    file = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=(N, D))
    file[:] = x
    for source in (x, file, jax.numpy.asarray(x), Rows(x), batches(x), lambda: batches(x), lambda: list(batches(x))):
        source = as_source(source)
        assert source.num_columns == D
        assert source.num_rows in (N, None)
        pieces = [np.asarray(piece.x) for piece in source.pieces()]
        np.testing.assert_array_equal(np.concatenate(pieces), x)
    sums, count = counted(lambda: batches(x))
    np.testing.assert_array_equal(sums, x.sum(axis=0))
    assert count == N


@pytest.mark.any_precision
def test_what_a_source_says_of_itself(x):
    memory, function, iterator = as_source(x), as_source(lambda: batches(x)), as_source(batches(x))
    assert (type(memory), type(function), type(iterator)) == (RowsSource, BatchSource, BatchSource)
    assert (memory.passes, function.passes, iterator.passes) == (None, None, 1)
    assert memory.rows is not None
    assert function.rows is iterator.rows is None
    assert as_source(memory) is memory
    assert function.dtype == iterator.dtype == np.float32
    assert concrete(function)


@pytest.mark.any_precision
def test_batches_may_be_rows_with_all_they_bring(x):
    weight = np.linspace(0, 2, N)
    weighted = Rows(x, weight=weight)
    parts = [Rows(x[i : i + BATCH], weight=weight[i : i + BATCH]) for i in range(0, N, BATCH)]
    there, here = counted(lambda: iter(parts)), counted(weighted)
    np.testing.assert_allclose(there[0], here[0], rtol=1e-5)
    assert abs(there[1] - counted(x)[1]) < 1e-4  # they sum up to N
    assert np.abs(there[0] - counted(x)[0]).max() > 1


@pytest.mark.any_precision
def test_one_pass_where_one_is_enough_and_an_error_where_it_is_not(x):
    once = as_source(batches(x))
    np.testing.assert_array_equal(counted(once)[0], x.sum(axis=0))
    with pytest.raises(
        ValueError, match=r"x: this needs several passes over the rows, an iterator gives one.*function"
    ):
        counted(once)
    np.testing.assert_allclose(moments(batches(x)).mean, x.mean(axis=0), rtol=1e-6)
    again = as_source(lambda: batches(x))
    assert counted(again)[1] == counted(again)[1] == N
    with pytest.raises(ValueError, match="x: refine passes over the rows many times, an iterator gives one pass"):
        refine(fit(x, Poisson(), K, expand_at="null"), batches(x))


class Loader:
    """What can be iterated over and is neither an iterator nor an array, as PyTorch's DataLoader."""

    def __iter__(self):
        return iter([np.ones((2, D))])


@pytest.mark.any_precision
def test_a_bad_batch_is_named(x):
    nan, wide = x.copy(), np.ones((4, D + 1))
    nan[30, 2] = np.nan
    model = fit(x, Poisson(), K, expand_at="null")

    def posteriors_of(*parts):
        return lambda: best_posterior(model, lambda: iter(parts))

    all_refused(
        [
            (lambda: as_source(iter(())), ValueError, "x: expected at least one batch of rows, got none"),
            (lambda: as_source(lambda: None), TypeError, "x: expected the function to return batches, got NoneType"),
            (lambda: as_source(iter([x[0]])), ValueError, r"x: in batch 0: x: expected 2 dimensions"),
            (lambda: counted(iter([x, "rows"])), TypeError, "x: in batch 1: x: expected an array of numbers, got str"),
            (lambda: counted(iter([x, x, wide])), ValueError, "x: expected 5 columns as in batch 0, got 6 in batch 2"),
            (lambda: counted(x[:0]), ValueError, "x: expected at least one row"),
            # where in the whole, not where in its batch
            (lambda: counted(lambda: batches(nan)), ValueError, r"x: expected finite numbers, got nan at \[30, 2\]"),
            (posteriors_of(x, -x), ValueError, r"x: expected values in the support.*at \[60, "),
            (lambda: as_source(x, columns=4), ValueError, r"x: expected 4 columns, got 5 \(shape \(60, 5\)\)"),
            (lambda: as_source(iter([x]), columns=4), ValueError, "x: expected 4 columns, got 5"),
            (
                lambda: as_source(Loader()),
                TypeError,
                "x: expected .* got Loader; batches go in as an iterator, or as a",
            ),
            (lambda: as_source([x, x]), ValueError, r"x: expected 2 dimensions"),
            (lambda: as_source([x, wide]), TypeError, "x: expected an array of numbers, got rows of unequal length"),
        ]
    )


@pytest.mark.any_precision
def test_under_a_transformation_rows_have_to_be_in_memory(x):
    source = as_source(lambda: batches(x))
    with pytest.raises(TypeError, match="x: under a transformation the rows have to be in memory"):
        jax.jit(lambda a: total(_weighted, source, a))(1.0)
    held = jax.jit(lambda a: total(_weighted, as_source(x), a))(2.0)
    np.testing.assert_allclose(held, 2 * x.sum(), rtol=1e-6)


def _weighted(rows, _, a):
    return a * (rows.weight @ rows.x).sum(), None


def test_a_source_of_ones_own_runs_everything(x, tmp_path, dtype):
    """Moments, the closed form, the ascent, the posteriors, the ELBO: from a compressed file, as from an array."""
    path = tmp_path / "rows.gz"
    path.write_bytes(gzip.compress((x > 1).astype(np.uint8).tobytes()))
    zipped, held = ZippedRows(path, D), (x > 1).astype("float32")

    def run(rows):
        start = fit(rows, Bernoulli(), K, expand_at="null")
        best = refine(start, rows, tolerance=1e-4, max_rounds=5)
        q = best_posterior(best, rows)
        return moments(rows).covariance, start.elbo_taylor, best.elbo, q.mean, q.covariance, elbo_exact(best, rows, q)

    there, here = run(zipped), run(held)
    for a, b in zip(there, here, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)  # other blocks, so other roundings in float32
    assert zipped.passed > 10
    # Control: rows in another order have the same sums and other posteriors
    other = run(held[::-1])
    np.testing.assert_allclose(other[2], here[2], rtol=2e-3)
    assert np.abs(other[3] - here[3]).max() > 0.1
