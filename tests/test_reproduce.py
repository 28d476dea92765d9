"""The paper's simulations: what there is to run, and that a run which was stopped ends as one that was not."""

import json

import jax
import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks.reproduce import library, runner
from benchmarks.reproduce.runner import Folders
from benchmarks.reproduce.setups import all_setups, looks
from glmvae import datasets, monitor, posterior

# Decides its own precision, float32.
pytestmark = pytest.mark.any_precision

STEPS = 60


def named(name):
    return next(setup for setup in all_setups() if setup.name == name)


#: Like the first of the real ones, with a narrow net.
SMALL = named("starts-synthetic-2-affine-mle-b")._replace(widths=(30, 10))


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    data = datasets.synthetic(jax.random.key(0), 300)
    forget = (library.optima, library.lines)
    with jax.enable_x64(False):
        both = jax.numpy.asarray(data.train), jax.numpy.asarray(data.test)
        monkeypatch.setattr(library, "rows", lambda _: both)
        for function in forget:
            function.cache_clear()
        yield
    for function in forget:
        function.cache_clear()


@pytest.fixture
def folders(tmp_path):
    return Folders(tmp_path / "results", tmp_path / "checkpoints")


def result_of(setup, folders):
    result = json.loads((folders.results / f"{setup.name}.json").read_text())
    for name in ("seconds", "cpu_seconds"):
        assert result.pop(name) > 0
    assert len(result["curve"].pop("cpu_seconds")) == len(result["curve"]["step"])
    return result


def test_the_setups_are_those_of_the_paper_and_have_names_of_their_own():
    setups = all_setups()
    assert len({setup.name for setup in setups}) == len(setups)
    assert [setup.cost for setup in setups] == sorted(setup.cost for setup in setups)
    by_start = {start: [s for s in setups if (s.section, s.start) == ("starts", start)] for start in ("he", "mle-b")}
    assert {start: len(of) for start, of in by_start.items()} == {"he": 18, "mle-b": 18}
    assert all(s.steps == 25_000 and s.batch_size == 100 and s.learning_rate == 1e-4 for s in by_start["he"])
    # a constant beta is compared with a run of the first section: but for beta they must be the same
    for setup in (s for s in setups if s.section == "annealing"):
        constant = setup._replace(section="starts", annealed=False)
        assert constant in by_start["he"]


def test_looks_are_dense_early_and_the_last_step_is_one():
    assert looks(25_000)[:4] == [0, 10, 20, 50]
    assert looks(25_000)[-3:] == [23_000, 24_000, 25_000]
    assert looks(35) == [0, 10, 20, 35]
    assert looks(20) == [0, 10, 20]


def test_the_cost_counts_the_weights_of_the_net():
    for decoder in ("affine", "relu"):
        setup = SMALL._replace(decoder=decoder, start="he")
        weights = sum(v.size for v in jax.tree.leaves(library.start_of(setup)) if getattr(v, "ndim", 0) == 2)
        assert setup.cost == setup.steps * weights


def test_a_run_that_was_stopped_ends_as_one_that_was_not(folders, tmp_path):
    assert runner.run(SMALL, STEPS, folders) == "done"
    whole = result_of(SMALL, folders)
    assert whole["curve"]["step"] == looks(STEPS)
    assert whole["curve"]["train_elbo"][0] < whole["curve"]["train_elbo"][-1]
    assert len(whole["end"]["activity"]) == len(whole["predicted"]["tightened"]) == 2

    def stop(setup, step):
        if step == 20:
            raise KeyboardInterrupt

    other = Folders(tmp_path / "other-results", tmp_path / "other-checkpoints")
    assert runner.status(SMALL, STEPS, other) == (0, "todo")
    assert runner.run(SMALL, STEPS, other, stop) == "stopped"
    assert runner.status(SMALL, STEPS, other) == (20, "stopped")
    assert runner.run(SMALL, STEPS - 25, other) == "done"  # a short run on the way leaves no trace
    assert runner.run(SMALL, STEPS, other) == "done"
    assert result_of(SMALL, other) == whole


def test_a_setup_that_is_done_is_not_run_again(folders, monkeypatch):
    assert runner.run(SMALL, 10, folders) == "done"
    monkeypatch.setattr(library, "train_to", lambda *_: pytest.fail("trained again"))
    before = (folders.results / f"{SMALL.name}.json").read_bytes()
    assert runner.run(SMALL, 10, folders) == "done"
    assert (folders.results / f"{SMALL.name}.json").read_bytes() == before
    assert runner.status(SMALL, 10, folders) == (10, "done")
    # of other settings it says nothing
    assert runner.status(SMALL._replace(seed=1), 10, folders) == (0, "todo")


def test_one_process_works_on_a_setup(folders):
    folders.checkpoints.mkdir(parents=True)
    with runner._lock(SMALL, folders) as free:
        assert free
        assert runner.status(SMALL, 10, folders) == (0, "running")
        assert runner.run(SMALL, 10, folders) == "running"
    assert runner.status(SMALL, 10, folders) == (0, "todo")


def test_annealing_starts_at_no_weight_and_ends_at_the_whole():
    schedule = library._rising(2.0, 100)
    assert [float(schedule(step)) for step in (0, 50, 100, 1000)] == [0.0, 1.0, 2.0, 2.0]


def test_the_list_has_a_line_a_setup(folders, capsys):
    where = ["--results", str(folders.results), "--checkpoints", str(folders.checkpoints)]
    assert command.main(["reproduce", "--list", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(all_setups())
    assert lines[0].split() == [all_setups()[0].name, "0", "2000", "todo"]
    assert command.main(["reproduce", "--list", "--only", "starts-frey-2-*", "--steps", "7", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert {line.split()[2] for line in lines} == {"7"}
    with pytest.raises(SystemExit):
        command.main(["reproduce", "--only", "nothing-*"])
    assert not folders.checkpoints.exists()


@pytest.mark.parametrize("family", ["Bernoulli", "Gaussian"])
def test_the_error_of_corollary_1_is_the_fourth_moment_of_eta(family):
    best, x = library.optima("synthetic", family, 2, 1.0), library.rows("synthetic")[1]
    q = posterior(best.closed, x)
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)  # exact up to the fifth power
    noise = np.stack(np.meshgrid(nodes, nodes), -1).reshape(1, 9, 2)
    root = np.linalg.cholesky(np.asarray(q.covariance, float)).transpose(0, 2, 1)
    z = np.asarray(q.mean)[:, None, :] + noise @ root
    eta = z @ np.asarray(best.closed.loadings).T + np.asarray(best.closed.intercept)
    share = np.outer(weights, weights).ravel() / (2 * np.pi)
    expected = 0.0 if family == "Gaussian" else np.mean(np.sum(eta**4, axis=-1) @ share) / 192
    error = library.corollary_1(best.closed, x)
    assert error == pytest.approx(expected, rel=1e-5)
    at = monitor.reference(best.closed, x)
    rounding = 1e-6 * abs(float(at.elbo_exact))  # sums of float32
    assert at.elbo_taylor - rounding <= at.elbo_exact <= at.elbo_taylor + error + rounding
