"""Callbacks: when to stop, at one beta; what is shown."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
from run_cases import COLUMNS, GAUSSIAN, STILL, net, run, same

from glmvae import nets, training
from glmvae.training.preparation import no_evaluations


def record(values, beta=None, test=False, annealing=False):
    nan = np.full(len(values), np.nan)
    evaluations = no_evaluations(net())._replace(
        train_elbo=nan if test else np.array(values),
        test_elbo=np.array(values) if test else nan,
        beta=np.ones(len(values)) if beta is None else np.array(beta),
    )
    return training.Run(None, 0, np.zeros(0), evaluations, annealing)


@pytest.mark.any_precision
def test_early_stop_waits_for_patience():
    stop = training.early_stop(2)
    for test in (False, True):
        assert not stop(record([], test=test))
        assert not stop(record([1.0, 3.0, 2.0], test=test))
        assert stop(record([1.0, 3.0, 2.0, 2.5], test=test))
        assert not stop(record([1.0, 3.0, 2.0, 3.5], test=test))
        assert not stop(record([1.0, np.nan, 2.0, 3.5], test=test))  # a net that had blown up, and came back


@pytest.mark.any_precision
def test_early_stop_compares_at_one_beta():
    """Under a rising beta every ELBO falls, whatever the net learns."""
    stop, falling = training.early_stop(2), [5.0, 3.0, 2.0, 1.0, 0.0]
    assert stop(record(falling))
    assert not stop(record(falling, beta=[0, 0.5, 1, 1, 1][::-1]))  # of the last beta there is one
    assert not stop(record(falling, beta=[0, 0.25, 0.5, 1, 1]))
    assert stop(record(falling, beta=[0, 0.5, 1, 1, 1]))
    assert not stop(record(falling, beta=[0, 0.5, 1, 1, 1], annealing=True))  # a plateau before the next rise
    assert not stop(record([9.0, 1.0, 1.5, 2.0], beta=[0, 1, 1, 1]))


@pytest.mark.any_precision
def test_an_annealed_run_is_not_stopped_while_it_anneals():
    flags = []

    def look(run):
        flags.append((run.step, run.annealing))

    whole = run(steps=40, evaluate_every=5, callbacks=[look])
    assert [step for step, annealing in flags if annealing] == [5, 10, 15]  # beta is 1 from step 20 on
    assert whole.stopped is None
    stopped = run(steps=20_000, evaluate_every=200, chunk_size=200, callbacks=[training.early_stop(1)])
    assert stopped.stopped == "callback"
    assert stopped.step > 400
    # ... and it is no worse than its start, at the beta where it ends
    start = net().with_beta(1.0).with_dispersion(stopped.dispersion)
    first = run(steps=1, vae=start, beta=None, learn_dispersion=False, evaluate_every=1).evaluations.test_elbo[0]
    assert stopped.evaluations.test_elbo[-1] > first
    # a constant beta is still from the start
    assert not run(steps=5, beta=None).annealing
    assert run(steps=25, beta=lambda step: jnp.where(step < 30, 0.5, 1.0)).annealing is False
    stairs = []
    run(steps=40, beta=lambda step: jnp.where(step < 30, 0.5, 1.0), callbacks=[lambda r: stairs.append(r.annealing)])
    assert stairs == [True, True, True, False, False]  # chunks end at 10, 15, 25, 30, 40


@pytest.mark.any_precision
def test_a_run_that_goes_on_stops_where_the_run_that_was_never_stopped_does(tmp_path):
    options = {"optimizer": STILL, "beta": None, "evaluate_every": 5, "callbacks": [training.early_stop(2)]}
    whole = run(**options)
    assert (whole.step, whole.stopped) == (10, "callback")

    def dies(run):
        if run.step == 10:  # its checkpoint is written
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(**options | {"callbacks": [dies]}, checkpoint=tmp_path / "killed")
    run(**options | {"steps": 5}, checkpoint=tmp_path / "short")
    for file in ("killed", "short", "new", "new"):
        again = run(**options, checkpoint=tmp_path / file)
        assert again.stopped == "callback"
        assert same(again, whole)
    done = run(**options | {"steps": 10}, checkpoint=tmp_path / "new")  # all its steps are done
    assert done.stopped == "callback"
    shown = []
    look = options | {"callbacks": [lambda run: shown.append(run.step)]}
    for _ in range(2):  # the second has nothing left to do
        run(**look, steps=20, checkpoint=tmp_path / "new")
    assert shown == [10, 15, 20, 20]
    run(**look, steps=5)
    assert shown[4:] == [5]  # there is nothing to show of a run at its start


@pytest.mark.any_precision
def test_patience_is_a_positive_integer():
    with pytest.raises(ValueError, match="patience: expected an integer of at least 1"):
        training.early_stop(0)
    with pytest.raises(TypeError, match="patience: expected an integer"):
        training.early_stop("long")


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
    with pytest.raises(ImportError, match=r'progress_bar needs tqdm, which is optional: pip install "glmvae\[data\]"'):
        training.progress_bar(10)


@pytest.mark.any_precision
def test_what_a_run_shows_is_short():
    result = run(steps=10)
    assert len(repr(result)) < 300
    assert "10 steps" in repr(result)
    assert str(COLUMNS) in repr(result.vae)
    assert len(repr(nets.deep(jnp.zeros(2, jnp.uint32), 6, 2, GAUSSIAN))) < 300
