"""The loop over rows: every row once, padding for nothing, stores that roll back, and no program twice."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import counted
from memory import Measured, peak

from glmvae import Rows
from glmvae.blocks import Block, Store, _add, per_row, sweep
from glmvae.cuts import LADDER, block_size, cut_rows, layout
from glmvae.families import Bernoulli, Binomial, Poisson
from glmvae.sources import as_source

D = 3
# One block short of a rung, a rung, a block and most of one, with size 32
SHORT, EXACT, LONG = 5, 32, 60
SIZE = 32


def data(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, D)).astype("float32")


def _sums(rows, _, factor=1.0):
    """Count, sum and Gram of the rows, masked by where: padding repeats a row."""
    x = jnp.where(rows.weight[:, None] > 0, rows.x, 0.0)
    return (jnp.sum(rows.weight), rows.weight @ x, factor * (x * rows.weight[:, None]).T @ x), None


def _each(rows, old, shift=0.0):
    """A result a row, one that the rows share, and nothing to add."""
    kept = 0.0 if old is None else old
    return None, (rows.x.sum(axis=1) + shift + kept, jnp.ones((1, 2)))


# Blocks -----------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_the_layout_has_every_row_once_in_the_largest_blocks_that_take_no_longer():
    for size in LADDER:
        for n in [*range(1, 200), 511, 512, 513, 1198, 2048, 5000, 60_000]:
            blocks = list(layout(n, size))
            starts, counts, padded = (np.array(part) for part in zip(*blocks, strict=True))
            np.testing.assert_array_equal(starts, np.cumsum([0, *counts[:-1]]))
            assert counts.sum() == n
            assert np.all(counts >= 1)
            assert np.all(counts <= padded)
            assert set(padded) <= {rung for rung in LADDER if rung <= size}
            times = {rung: math.ceil(n / rung) * (rung + size / 64) for rung in LADDER if rung <= size}
            near = [rung for rung in times if times[rung] <= 1.05 * min(times.values())]
            assert padded[0] == max(near), (n, size)
            assert padded.sum() - n < padded[0]
    assert len({rung for n in range(1, 5000) for *_, rung in layout(n, 512)}) == 4  # so many programs for all of these
    assert next(layout(777, 2048))[2] == next(layout(1198, 2048))[2]  # the two of the page "first-call"


@pytest.mark.any_precision
def test_a_block_has_about_as_many_entries_whatever_the_columns():
    assert block_size(1) == LADDER[-1]
    assert block_size(10**9) == LADDER[0]
    for columns in (64, 200, 784, 20_000):
        assert block_size(columns) * columns <= 420_000
        assert block_size(columns) in LADDER


@pytest.mark.any_precision
def test_padding_repeats_a_row_at_weight_0():
    x = data(LONG)
    rows = Rows(x, offset=np.arange(LONG), trials=np.ones((1, D)), weight=np.arange(1.0, LONG + 1))
    cut = cut_rows(rows, 49, 11, 32)
    np.testing.assert_array_equal(cut.x[:11], x[49:])
    np.testing.assert_array_equal(cut.x[11:], np.repeat(x[49:50], 21, axis=0))
    np.testing.assert_array_equal(cut.offset[11:, 0], 49)
    np.testing.assert_array_equal(cut.weight, np.r_[np.arange(50, 61), np.zeros(21)])
    assert cut.trials.shape == (1, D)
    whole = cut_rows(Rows(x), 32, 32, 32)
    assert np.shares_memory(whole.x, x)  # a full block is a view
    one = cut_rows(Rows(x[:1], offset=[3.0]), 0, 1, 8)
    assert one.x.shape == (8, D)
    assert one.offset.shape == (8, 1)


# Sums -------------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
@pytest.mark.parametrize("n", [1, SHORT, EXACT, LONG])
def test_sums_are_those_of_numpy_for_any_number_of_rows(n):
    x, weight = data(n), np.arange(n) % 3 + 0.5
    for w in (None, weight):
        count, sums, gram = sweep(_sums, as_source(Rows(x, weight=w)), 2.0, size=SIZE)
        w = np.ones(n) if w is None else w
        np.testing.assert_allclose(count, w.sum(), rtol=1e-6)
        np.testing.assert_allclose(sums, w @ x, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(gram, 2 * (x * w[:, None]).T @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.any_precision
def test_another_way_to_add_and_the_order_of_the_blocks():
    def larger(a, b):
        return jax.tree.map(jnp.maximum, a, b)

    most = sweep(_most, as_source(data(LONG)), add=larger, size=SIZE)
    np.testing.assert_array_equal(most, data(LONG).max(axis=0))
    first = sweep(_most, as_source(data(LONG)), add=lambda a, b: a, size=SIZE)
    np.testing.assert_array_equal(first, data(LONG)[: next(layout(LONG, SIZE))[1]].max(axis=0))


def _most(rows, _):
    return jnp.max(jnp.where(rows.weight[:, None] > 0, rows.x, -jnp.inf), axis=0), None


def test_a_sum_out_of_range_is_silent_as_under_jit():
    ends = np.array([np.inf, 3e38], "float32"), np.array([-np.inf, 3e38], "float32")
    np.testing.assert_array_equal(_add(*ends), [np.nan, np.inf])
    with pytest.raises(RuntimeWarning):  # the control
        np.add(*ends)


def test_everything_is_in_the_widest_precision_that_meets(dtype):
    source = as_source(data(SHORT))
    assert all(leaf.dtype == np.float32 for leaf in sweep(_sums, source))
    assert all(leaf.dtype == np.float32 for leaf in sweep(_sums, source, np.float32(2)))
    assert all(leaf.dtype == dtype for leaf in sweep(_sums, source, np.asarray(2.0, dtype)))
    assert all(leaf.dtype == dtype for leaf in sweep(_sums, as_source(data(SHORT) > 0)))
    weight = np.ones(SHORT)  # of the rows: no reason for another precision
    assert all(leaf.dtype == np.float32 for leaf in sweep(_sums, as_source(Rows(data(SHORT), weight=weight))))


# Results a row ----------------------------------------------------------------------------------------------


@pytest.mark.any_precision
@pytest.mark.parametrize("n", [1, SHORT, EXACT, LONG])
def test_results_a_row_are_those_of_the_rows_in_order_without_the_padding(n):
    x = data(n)
    each, shared = per_row(_each, as_source(x), 1.0, size=SIZE)
    np.testing.assert_allclose(each, x.sum(axis=1) + 1, rtol=1e-4, atol=1e-5)
    assert shared.shape == (1, 2)
    # A weight never changes a row's own result, 0 neither
    weighted, _ = per_row(_each, as_source(Rows(x, weight=np.arange(n) + (n == 1))), 1.0, size=SIZE)
    np.testing.assert_array_equal(weighted, each)
    # What is given is cut as the rows are, or shared by them
    given, _ = per_row(_each, as_source(x), 1.0, given=np.arange(n, dtype="float32"), size=SIZE)
    np.testing.assert_allclose(given, x.sum(axis=1) + 1 + np.arange(n), rtol=1e-4, atol=1e-5)
    same, _ = per_row(_each, as_source(x), 1.0, given=np.float32([2.0]), size=SIZE)
    np.testing.assert_allclose(same, x.sum(axis=1) + 3, rtol=1e-4, atol=1e-5)


def _trials(rows, _):
    return None, rows.trials


@pytest.mark.any_precision
def test_what_the_rows_of_a_batch_share_is_not_that_of_other_batches():
    x, few, more = np.abs(data(LONG)).round(), np.float32([[5, 6, 7]]), np.float32([[9, 6, np.nan]])
    for first, second in ((few, more), (few, few), (more, more)):
        parts = [(x[:40], first), (x[40:], second)]
        rows = [Rows(part).replace(trials=trials) for part, trials in parts]
        found = per_row(_trials, as_source(lambda rows=rows: iter(rows)), size=SIZE)
        each = np.concatenate([np.broadcast_to(trials, part.shape) for part, trials in parts])
        np.testing.assert_array_equal(found, first if first is second else each)


@pytest.mark.any_precision
def test_another_number_of_rows_than_was_given_is_an_error():
    x = data(LONG)
    for source in (as_source(x), as_source(lambda: iter([x[:40], x[40:]]))):
        for length in (LONG - 1, LONG + 1, 40):
            with pytest.raises(ValueError, match=f"posterior: expected .*60 rows, as many as x has, got {length}"):
                per_row(_each, source, given=np.ones(length, "float32"), size=SIZE)


@pytest.mark.any_precision
def test_a_bad_value_is_told_with_its_row_in_the_whole():
    x = np.abs(data(LONG)).round()
    x[55, 1] = -3
    for rows in (x, Rows(x, weight=np.arange(LONG)), lambda: iter([x[:50], x[50:]])):
        with pytest.raises(ValueError, match=r"x: expected values in the support.*-3.*at \[55, 1\]"):
            sweep(_sums, as_source(rows), family=Poisson(), size=SIZE)
    sweep(_sums, as_source(x), family=Poisson(), check=False, size=SIZE)  # a later pass does not look
    hidden = np.zeros(x.shape, bool)
    hidden[55, 1] = True
    sweep(_sums, as_source(Rows(x, missing=hidden)), family=Poisson(), size=SIZE)
    trials = np.full(x.shape, 3.0)
    x[55, 1], trials[51, 2] = 1, 0.5
    x[51, 2] = 1
    with pytest.raises(ValueError, match=r"at \[51, 2\]"):
        sweep(_sums, as_source(Rows(np.minimum(x, 3), trials=trials)), family=Binomial(None), size=SIZE)


# Stores -----------------------------------------------------------------------------------------------------


def _grown(rows, old):
    new = rows.x[:, 0] if old is None else old + 1
    return jnp.sum(jnp.where(rows.weight > 0, new, 0.0)), new


@pytest.mark.any_precision
def test_a_store_keeps_what_was_committed_and_nothing_else():
    x, store = data(LONG), Store()
    source, run = as_source(x), functools.partial(sweep, size=SIZE)
    run(_grown, source, store=store)
    store.commit()
    np.testing.assert_array_equal(store.gathered(), x[:, 0])
    once = run(_grown, source, store=store)  # in the shadow: nobody sees it
    np.testing.assert_array_equal(store.gathered(), x[:, 0])
    np.testing.assert_allclose(once, x[:, 0].sum() + LONG, rtol=1e-5)
    again = run(_grown, source, store=store)  # rolled back: it begins where the first did
    assert float(again) == float(once)
    store.commit()
    np.testing.assert_allclose(store.gathered(), x[:, 0] + 1, rtol=1e-6)
    store.replace(lambda value: 2 * value)
    np.testing.assert_allclose(store.gathered(), 2 * (x[:, 0] + 1), rtol=1e-6)


@pytest.mark.any_precision
def test_a_store_has_no_more_than_two_copies():
    store, block = Store(), Block(0, 0, 3, 8)
    assert store.read(block) is None
    store.write(block, "first")
    assert store.read(block) is None
    store.commit()
    store.write(block, "second")
    store.write(block, "third")
    assert store.read(block) == "first"
    store.commit()
    assert store.read(block) == "third"


# Under a transformation -------------------------------------------------------------------------------------


@pytest.mark.any_precision
@pytest.mark.parametrize("n", [SHORT, EXACT, LONG])
def test_the_scan_is_the_loop(n):
    x, weight = data(n), np.arange(1.0, n + 1).astype("float32")

    def both(x, weight, factor):
        source = as_source(Rows(x, weight=weight))
        return sweep(_sums, source, factor, size=SIZE), per_row(_each, source, factor, size=SIZE)[0]

    there, here = jax.jit(both)(x, weight, 2.0), both(x, weight, 2.0)
    for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(here), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    slope = jax.grad(lambda factor: jnp.trace(both(x, weight, factor)[0][2]))(2.0)
    np.testing.assert_allclose(slope, np.sum(weight[:, None] * x**2), rtol=1e-4)
    batched = jax.vmap(lambda factor: both(x, weight, factor)[1])(jnp.arange(2.0))
    np.testing.assert_allclose(batched[1] - batched[0], 1.0, rtol=1e-4, atol=1e-4)


@pytest.mark.any_precision
def test_under_a_transformation_a_value_out_of_the_support_is_nan():
    x = np.abs(data(LONG)).round()
    x[55, 1] = -3
    each = jax.jit(lambda x: per_row(_each, as_source(x), family=Poisson(), size=SIZE)[0])(x)
    assert np.flatnonzero(np.isnan(each)).tolist() == [55]
    with pytest.raises(ValueError, match=r"at \[55, 1\]"):  # what can be looked at is, inside somebody's jit too
        jax.jit(lambda a: sweep(_sums, as_source(x), a, family=Poisson(), size=SIZE))(1.0)


# Cost -------------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_another_number_of_rows_compiles_nothing():
    f = chex.assert_max_traces(_sums, n=2)  # 32 and 8 rows
    for n in (LONG, SHORT, EXACT):
        sweep(f, as_source(data(n)), size=SIZE)
    with counted() as new:
        for n in (75, 2 * EXACT, 3, 7, 40):
            sweep(f, as_source(Rows(data(n), weight=np.ones(n))), size=SIZE)
    assert new.number == 0
    # Control: a block of another size is one trace too many
    with pytest.raises(AssertionError, match="traced > 2 times"):
        sweep(f, as_source(data(120)), size=128)
    with counted() as new:
        sweep(_sums, as_source(data(120)), 3.0, size=128)
    assert new.number > 0


@pytest.mark.any_precision
def test_a_program_bears_the_name_of_what_it_computes(caplog):
    with jax.log_compiles():
        sweep(_sums, as_source(np.ones((9, 13), "float32")), size=SIZE)
    assert "jit(_sums)" in caplog.text
    assert "jit(program)" not in caplog.text


@pytest.mark.any_precision
def test_memory_does_not_grow_with_the_rows():
    def run(source):
        return sweep(_sums, source, family=Bernoulli(), size=512)

    run(Measured(2))
    few, many = peak(run, Measured(4)), peak(run, Measured(40))
    more = 36 * 512 * 200  # bytes of data
    assert many[0] - few[0] < 0.1 * more
    assert many[1] - few[1] < 0.1 * more
    # Control: what is kept is seen
    kept = peak(lambda source: per_row(_wide, source, size=512), Measured(40))
    assert kept[1] > 4 * more / 2


def _wide(rows, _):
    return None, rows.x
