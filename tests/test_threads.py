"""Work side by side: the results of one thread, in order, under the settings of the caller; nothing is left running."""

import functools
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import counted

from glmvae import best_posterior, fit, refine, threads
from glmvae.blocks import Store, per_row, sweep
from glmvae.families import Poisson
from glmvae.sources import as_source
from glmvae.threads import programs_side_by_side, side_by_side

pytestmark = pytest.mark.any_precision

ROWS, SIZE = 300, 32
PATIENCE = 30  # seconds


@pytest.fixture(autouse=True)
def three(monkeypatch):
    """Three workers, whatever the machine has."""
    with ThreadPoolExecutor(3) as pool:
        monkeypatch.setattr(threads, "workers", lambda: 3)
        monkeypatch.setattr(threads, "_pool", lambda: pool)
        yield


def data(n=ROWS, columns=3):
    return np.random.default_rng(0).normal(size=(n, columns)).astype("float32")


def _grown(rows, old, factor):
    new = factor * jnp.sin(rows.x) + (0.0 if old is None else old)
    return jnp.sum(jnp.where(rows.weight[:, None] > 0, new, 0.0), axis=0), new


def test_as_many_run_at_once_as_there_are_workers():
    meet = threading.Barrier(3, timeout=PATIENCE)  # which one alone would wait at until it breaks

    def job(number):
        meet.wait()
        return number**2

    assert list(side_by_side(job, range(6), 3)) == [(i, i**2) for i in range(6)]


@pytest.mark.filterwarnings("error")
def test_what_numpy_is_told_of_overflows_holds_in_threads_too():
    def job(number):
        return np.float32(1e30) * np.float32(number)

    with np.errstate(over="ignore"):
        assert list(side_by_side(job, [1e30, 0.0], 2)) == [(1e30, np.inf), (0.0, 0.0)]
    with pytest.raises(RuntimeWarning, match="overflow"):  # control
        list(side_by_side(job, [1e30], 1))


def test_results_come_in_order_and_no_more_are_started_than_was_said():
    started, last = [], threading.Event()

    def job(number):
        started.append(number)
        if number == 0:
            assert last.wait(PATIENCE)
        if number == 3:
            last.set()  # long before the first has ended
        return number

    found = []
    for number, result in side_by_side(job, range(40), 4):
        assert number == result == len(found)
        found.append(result)
        assert max(started) <= len(found) + 4
    assert len(found) == 40


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_where_one_fails_nothing_goes_on(error):
    done = []

    def job(number):
        if number == 1:
            raise error(number)
        done.append(number)

    with pytest.raises(error):
        list(side_by_side(job, range(1000), 8))
    ended = len(done)
    assert ended < 20
    assert list(side_by_side(int, [7], 3)) == [(7, 7)]  # the threads are there for others
    assert len(done) == ended


def test_a_caller_that_is_interrupted_waits_for_what_has_begun():
    done = []

    def job(number):
        time.sleep(0.3)  # by now the caller waits for this result
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # as Ctrl-C does
        time.sleep(0.3)
        done.append(number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(side_by_side(job, [0], 1))
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == [0]


def test_a_caller_that_goes_no_further_leaves_nothing_running():
    done = []
    results = side_by_side(done.append, range(1000), 4)
    next(results)
    results.close()
    ended = len(done)
    assert ended <= 8
    assert list(side_by_side(int, [7], 3)) == [(7, 7)]
    assert len(done) == ended


def test_a_pass_is_bit_for_bit_that_of_one_thread():
    source, stores = as_source(data()), [Store(), Store()]
    for _ in range(3):
        alone = sweep(_grown, source, 1.5, size=SIZE, store=stores[0])
        together = sweep(_grown, source, 1.5, size=SIZE, store=stores[1], threads=True)
        np.testing.assert_array_equal(alone, together)
        for store in stores:
            store.commit()
        np.testing.assert_array_equal(stores[0].gathered(), stores[1].gathered())
    given = data()
    each = [per_row(_grown, source, 1.5, size=SIZE, given=given, threads=both) for both in (False, True)]
    np.testing.assert_array_equal(*each)
    batches = as_source(lambda: iter([data()[:100], data()[100:]]))
    np.testing.assert_array_equal(per_row(_grown, batches, 1.5, size=SIZE, given=given, threads=True), each[0])


def test_an_ascent_is_bit_for_bit_that_of_one_thread(monkeypatch):
    x = np.random.default_rng(0).poisson(np.exp(data(700, 6))).astype("float32")
    start = fit(x, Poisson(), 2, expand_at="null")
    together = refine(start, x, max_rounds=4), best_posterior(start, x)
    monkeypatch.setattr(threads, "workers", lambda: 1)
    chex.assert_trees_all_equal(together, (refine(start, x, max_rounds=4), best_posterior(start, x)))


def test_a_program_is_compiled_once_and_by_the_caller():
    callers = []

    def f(rows, old, factor):
        callers.append(threading.current_thread())
        return _grown(rows, old, factor)

    source = as_source(data())
    with counted() as new:
        sweep(f, source, 2.0, size=SIZE, threads=True)
    assert callers == [threading.current_thread()]
    assert new.number > 0
    with counted() as new:
        sweep(f, source, 3.0, size=SIZE, threads=True)
    assert new.number == 0


def test_a_program_of_another_precision_runs_in_threads_too():
    """A context that JAX keeps for a thread: others would compute in single precision."""
    where = []

    def f(job):
        where.append(threading.current_thread())
        return jnp.asarray(job, float)

    for double in (True, False):
        with jax.enable_x64(double):
            found = [result for _, result in programs_side_by_side(f, range(6))]
        assert {result.dtype.name for result in found} == {"float64" if double else "float32"}
        assert where[0] is threading.current_thread()
        assert all(thread is not where[0] for thread in where[1:])
        where.clear()


def test_other_settings_of_the_caller_keep_it_in_his_thread():
    where = []

    def f(job):
        where.append(threading.current_thread())
        return jnp.float32(job) / jnp.float32(0)

    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        list(programs_side_by_side(f, [1.0, 1.0, 0.0, 1.0]))
    assert set(where) == {threading.current_thread()}
    list(programs_side_by_side(f, [1.0, 1.0, 0.0, 1.0]))  # the control
    assert len(set(where)) > 1


def test_an_error_in_a_block_reaches_the_caller_and_its_store_keeps_what_it_had():
    source, store = as_source(data()), Store()
    sweep(_grown, source, 1.0, size=SIZE, store=store, threads=True)
    store.commit()
    kept = store.gathered()
    read = store.read

    def broken(block):
        if block.index == 5:
            raise OSError("gone")
        return read(block)

    store.read = broken
    with pytest.raises(OSError, match="gone"):
        sweep(_grown, source, 1.0, size=SIZE, store=store, threads=True)
    np.testing.assert_array_equal(store.gathered(), kept)


def test_inside_a_jit_of_somebody_concrete_rows_go_through_threads():
    x, found = data(), []

    @jax.jit
    def outer(y):
        found.append(sweep(_grown, as_source(x), 2.0, size=SIZE, threads=True))
        return y

    outer(1.0)
    np.testing.assert_array_equal(found[0], sweep(_grown, as_source(x), 2.0, size=SIZE))


def test_two_callers_share_the_threads():
    x = data()
    run = functools.partial(sweep, _grown, as_source(x), size=SIZE, threads=True)
    wanted = [np.asarray(run(factor)) for factor in (1.0, 2.0)]
    with ThreadPoolExecutor(2) as callers:
        for found, right in zip(callers.map(run, [1.0, 2.0] * 5), wanted * 5, strict=True):
            np.testing.assert_array_equal(found, right)
