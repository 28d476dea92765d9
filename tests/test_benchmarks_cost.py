"""Pages "first-call", "under-load", "full-size" and "comparison"."""

import functools
import json
import os
import pickle
import subprocess
import sys

import jax
import numpy as np
import pandas
import pytest
from benchmark_cases import UNITS, faults, tiny_problem
from scipy import stats

from benchmarks import __main__ as command
from benchmarks import comparison, first_call, fresh, from_table, full_size, problems, under_load
from glmvae.families import Gaussian, Poisson

# The pages decide their own precision, float32.
pytestmark = pytest.mark.any_precision


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(problems, "load", lambda name, seed=0: [tiny_problem()])


def result_of(page, folder):
    return json.loads((folder / f"{page}.json").read_text())


def test_a_fresh_process_says_what_a_task_costs(tmp_path):
    problem = tiny_problem()
    file = tmp_path / "data.pickle"
    file.write_bytes(pickle.dumps((np.asarray(problem.x), problem.family)))
    steps = first_call._child("fit", file, UNITS, {})
    assert [step["step"] for step in steps] == ["import", "start of JAX", "fit"]
    imports, _, fit = steps
    assert imports["programs"] == 0
    assert fit["programs"] > 0
    assert fit["llvm_seconds"] > 0
    assert all(step["cpu_seconds"] >= 0 and step["seconds"] > 0 for step in steps)
    with pytest.raises(ChildProcessError, match="failed in a fresh process"):
        first_call._child("fit", tmp_path / "nothing", UNITS, {})


def steps_of(task, *, cached):
    """What a process might say."""
    names = {"fit": ["fit"], "exact": ["fit", "exact", fresh.OTHER, fresh.AGAIN, *first_call.WARM]}[task]
    found = []
    for name in ("import", "start of JAX", *names):
        cpu = {"exact": 3.0, fresh.OTHER: 0.9, fresh.AGAIN: 0.5}.get(name, 0.5) * (0.1 if cached else 1.0)
        times = {"trace_seconds": 0.1, "lower_seconds": 0.1, "llvm_seconds": 0.2}
        found.append({"step": name, "cpu_seconds": cpu, "seconds": cpu, "programs": name == "exact", **times})
    return found


def test_a_step_is_held_against_what_it_may_take(tiny, tmp_path, monkeypatch, capsys):
    environments = []

    def child(task, file, latent_dim, environment):
        assert len(pickle.loads(file.read_bytes())) == 2
        environments.append(environment)
        return steps_of(task, cached=bool(environment))

    monkeypatch.setattr(first_call, "_child", child)
    options = ["first-call", "--quick", "--latent-dims", "2", "--output", str(tmp_path)]
    assert command.main(options) == 0
    assert "6/6" in capsys.readouterr().err
    # without a cache, then one process that fills a cache of its own, then one that finds it
    assert [bool(e) for e in environments] == [False, True, True] * 2
    assert environments[1] == environments[2] != environments[4]
    result = result_of("first-call", tmp_path)
    rows = {row["step"]: row for row in result["rows"] if row["task"] == "exact"}
    judge = functools.partial(first_call.within, rows=result["rows"])
    assert rows["exact"]["cached_cpu_seconds"] == pytest.approx(0.3)
    assert judge(rows["exact"]) == judge(rows["fit"]) == judge(rows[first_call.WARM[0]]) == "yes"
    assert judge(rows["import"]) == ""
    # another N took 0.4 s more than the same again, and may take 0.3
    assert judge(rows[fresh.OTHER]) == "no"
    assert judge(rows["exact"] | {"cpu_seconds": 4.1}) == "no"
    assert judge(rows[first_call.WARM[0]] | {"programs": 1}) == "no"
    assert faults(first_call.draw(result)) == []
    assert "nan" not in first_call.table(result)


def test_busy_processes_end_with_the_block_and_with_their_parent(monkeypatch):
    monkeypatch.setattr(under_load, "SETTLE", 0.0)
    loops = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: loops.append(popen(*a, **k)) or loops[-1])

    def interrupted():
        with under_load.busy(2):
            assert [loop.poll() for loop in loops] == [None, None]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(loop.poll() is not None for loop in loops)
    # one whose parent is another process ends by itself
    alone = popen([sys.executable, "-c", under_load._LOOP, str(os.getpid() + 1)])
    try:
        assert alone.wait(timeout=30) == 0
    finally:
        alone.kill()


def test_the_closed_form_is_timed_quietly_and_under_load(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(under_load, "SETTLE", 0.0)
    monkeypatch.setattr(under_load, "QUICK_SECONDS", 0.0)
    options = ["under-load", "--quick", "--data", "digits", "--latent-dims", "2", "--output", str(tmp_path)]
    assert command.main(options) == 0
    assert "2/2" in capsys.readouterr().err
    result = result_of("under-load", tmp_path)
    (row,) = result["rows"]
    for name in under_load.CONTESTANTS:
        assert row[name]["ratio"] == pytest.approx(row[name]["loaded"] / row[name]["quiet"])
        assert row[name]["loaded_worst"] >= row[name]["loaded"]
    row["ours"]["ratio"] = 2.0
    assert "does not take more" in under_load.table(result)
    row["ours"]["ratio"] = 2.6
    assert "takes more on digits (2.60)" in under_load.table(result)
    assert faults(under_load.draw(result)) == []


def test_the_ascent_at_full_size_is_told_round_by_round(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(full_size, "FIRST_ROWS", 20)
    assert command.main(["full-size", "--latent-dims", "2", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().err
    assert "2/2" in printed
    assert "refine exact" not in printed  # the library's own bar is not shown, its rounds are
    result = result_of("full-size", tmp_path)
    (row,) = result["rows"]
    assert row["history"] == sorted(row["history"])
    assert len(row["round_ends"]) == row["rounds"] == len(row["history"]) - 1
    assert row["elbo_at"]["100"] == row["elbo"] == row["history"][-1]
    assert row["round_ends"][-1] <= row["seconds"]
    assert row["posterior_bytes"] == 4 * 40 * (2 + 3)
    assert row["peak_bytes"] >= row["peak_bytes_before"] > row["x_bytes"]
    assert faults(full_size.draw(result)) == []
    # what was not there yet at a mark is a dash
    course = full_size._course(_Found(), _Ends())
    assert course["elbo_at"] == {"30": None, "60": -2.0, "100": -1.0}
    assert course["round_cpu_seconds"] == 4.0
    assert " - " in full_size.table({"rows": [row | course]})


class _Found:
    history = np.array([-3.0, -2.0, -1.0])
    converged = True


class _Ends:
    seconds = (40.0, 70.0)
    cpu_seconds = (8.0, 12.0)


@pytest.fixture
def frames():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(60, UNITS))
    eta = z @ rng.normal(size=(UNITS, 5))
    return pandas.DataFrame(eta + 0.3 * rng.normal(size=eta.shape)), pandas.DataFrame(
        rng.poisson(np.exp(1 + 0.5 * eta))
    )


def tables_of(frames):
    real, counts = (comparison._split(frame) for frame in frames)
    installed = tuple(route for route in comparison.COUNTS if route.name != "PlnPCA")
    return [
        comparison.Table("real", *real, Gaussian(), comparison.REAL[:2]),
        comparison.Table("counts", *counts, Poisson(), installed),
    ]


def test_every_route_is_scored_by_one_formula(frames, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "tables", lambda: tables_of(frames))
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    options = ["comparison", "--quick", "--latent-dims", "2", "--output", str(tmp_path)]
    assert command.main(options) == 0
    assert "7/7" in capsys.readouterr().err
    result = result_of("comparison", tmp_path)
    rows = {row["route"]: row for row in result["rows"]}
    # what scikit-learn says of its own Gaussian models is what the formula says, to the precision of its iterations
    for name in ("PCA", "FactorAnalysis"):
        assert rows[name]["elbo_per_entry"] == pytest.approx(rows[name]["own_score"] / 5, rel=1e-6)
    ours = rows["ours, exact ascent"]
    assert ours["elbo_per_entry"] == pytest.approx(ours["own_score"] / 5, rel=1e-5)
    assert ours["elbo_per_entry"] > rows["PCA of log(1 + x)"]["elbo_per_entry"]
    # a model without units has the means of the columns, and no posterior
    none, counts = {row["data"]: row["elbo"] for row in result["no_unit"]}, tables_of(frames)[1]
    log_prob = stats.poisson.logpmf(counts.test.to_numpy(), counts.train.mean().to_numpy())
    assert none["counts"] == pytest.approx(log_prob.mean(), rel=1e-6)
    assert none["counts"] < ours["elbo_per_entry"]
    assert faults(comparison.draw(result)) == []
    assert "nan" not in comparison.table(result)


def test_lines_of_code_are_counted_without_docstring_and_return():
    assert {route.name: from_table.lines(route.run) for route in comparison.REAL} == {
        "PCA": 5, "FactorAnalysis": 5, "ours, closed form": 6,
    }  # fmt: skip


def test_tables_are_real_and_their_routes_those_whose_library_is_there(monkeypatch):
    found = comparison.tables()
    assert [table.name for table in found[:2]] == ["breast cancer", "digits"]
    cells = found[0]
    assert cells.train.shape[1] == cells.test.shape[1] == 30
    np.testing.assert_allclose(cells.train.std(ddof=0), 1.0)
    assert (found[1].train.mean() > 0).all()
    monkeypatch.setattr(comparison.packages, "peer", lambda name, *needs: None if name == "pyPLNmodels" else 1)
    assert "PlnPCA" not in [route.name for route in comparison.routes(found[1])]


def test_data_of_a_page_are_its_own():
    assert command.parse(["full-size"]).data == ["mnist"]
    assert command.parse(["comparison"]).data == []
    assert command.parse(["nets", "--quick"]).data == ["digits", "counts"]
