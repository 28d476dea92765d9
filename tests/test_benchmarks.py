"""The benchmark's command: its options, its files, what every page writes, and its clocks."""

import importlib.util
import json
import math
import time

import jax.numpy as jnp
import pytest
from benchmark_cases import faults

from benchmarks import __main__ as command
from benchmarks import packages, problems, report, timing

# The pages decide their own precision, float32.
pytestmark = pytest.mark.any_precision


@pytest.mark.parametrize("name", ["optimum.json", "optimum.png"])
def test_files_of_others_are_refused_and_kept(name, tmp_path, capsys):
    (tmp_path / name).write_text("mine")
    assert command.main(["--quick", "--output", str(tmp_path)]) == 2
    assert name in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"


def test_own_files_are_replaced_and_others_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for round_ in range(2):
        report.prepare(tmp_path, "optimum")
        report.write_json(tmp_path, "optimum", {"round": round_, "gap": math.nan})
        report.write_png(tmp_path, "optimum", report.panels(1, "a title")[0])
    written = json.loads((tmp_path / "optimum.json").read_text())
    assert written == {"made_by": report.MARK, "round": 1, "gap": None}
    assert (tmp_path / "optimum.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "optimum.json", "optimum.png"]


def test_unknown_data_sets_are_named(tmp_path, capsys):
    with pytest.raises(ValueError, match="'iris'"):
        problems.load("iris")
    with pytest.raises(SystemExit):
        command.main(["--data", "iris", "--output", str(tmp_path)])
    assert "'iris'" in capsys.readouterr().err


@pytest.mark.parametrize("values", [["0"], ["-1"], ["two"]])
def test_latent_dims_are_positive_integers(values, capsys):
    with pytest.raises(SystemExit):
        command.main(["--latent-dims", *values])
    assert f"--latent-dims: expected an integer, 1 or more, got '{values[0]}'" in capsys.readouterr().err


def test_more_units_than_columns_are_refused(tmp_path, capsys):
    assert command.main(["--data", "digits", "--latent-dims", "65", "--output", str(tmp_path)]) == 2
    assert "digits has 64 columns, got 65" in capsys.readouterr().err


def test_a_page_without_a_quick_form_says_so(capsys):
    with pytest.raises(SystemExit):
        command.main(["full-size", "--quick"])
    assert "full-size has no quick form" in capsys.readouterr().err


def test_a_missing_data_set_is_left_out_unless_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GLMVAE_DATA_DIR", str(tmp_path))
    assert command.main(["--data", "frey", "--output", str(tmp_path / "out")]) == 2
    assert "frey_rawface.mat" in capsys.readouterr().err
    found, missing = command.load(command.parse([]))
    assert [p.name for p in found] == ["digits", "digits", "synthetic"]
    assert sorted(missing) == ["frey", "mnist"]


def test_the_counts_have_the_means_that_nets_must_bear():
    (counts,) = problems.load(problems.COUNTS)
    means = jnp.mean(counts.x, axis=0)
    assert 0.05 < float(means.min()) < 0.2
    assert 700 < float(means.max()) < 1500
    assert counts.expand_at == "null"


def test_titles_are_kept_inside_the_figure_and_nothing_else_is_drawn_beside_panels():
    title = "a title with very many words " * 8
    figure, axes = report.panels(4, title)
    for axis in axes:
        axis.plot([1, 2])
    assert len(figure.axes) == 4
    assert faults(figure) == []
    # the same tells a title that is cut and a panel that is empty
    figure.suptitle(title)
    axes[0].lines[0].remove()
    assert {fault.split(":")[0] for fault in faults(figure)} == {"empty", "cut"}


def test_what_is_not_known_is_a_dash():
    assert [report.number(v) for v in (1.25, None, math.nan, math.inf)] == ["1.250", "-", "-", "-"]
    assert [report.duration(v) for v in (0.25, 2.5, None, math.nan)] == ["250 ms", "2.50 s", "-", "-"]


def test_a_busy_machine_is_told_of():
    machine = {"machine": {"load": 3.0, "cpu_count": 2}}
    assert "load 3.0" in report.busy(machine)
    assert report.busy({"machine": {"load": 0.2, "cpu_count": 2}}) == ""
    assert report.environment()["machine"]["load"] >= 0


def test_contestants_take_turns_and_are_compared_within_a_round():
    order = []
    fast, slow = iter(range(1, 100)), iter(range(2, 200, 2))
    runs = {"fast": lambda: order.append("fast") or next(fast), "slow": lambda: order.append("slow") or next(slow)}
    times = timing.in_turn(runs, seconds=20.0)
    assert order == ["fast", "slow"] * 10
    assert timing.ratio(times["slow"], times["fast"]) == 2.0
    assert len(timing.in_turn(runs, seconds=0.0)["fast"]) == timing.MIN_ROUNDS
    assert len(timing.in_turn(runs, rounds=3)["fast"]) == 3


def test_a_clock_tells_working_from_waiting():
    waited = timing.timed(lambda: time.sleep(0.2))
    assert waited.seconds >= 0.2
    assert waited.cpu_seconds < 0.1
    worked = timing.timed(lambda: sum(range(3_000_000)))
    assert worked.cpu_seconds > 0.2 * waited.cpu_seconds
    assert worked.value == sum(range(3_000_000))
    clock = timing.Clock()
    first, second = clock.lap(), clock.lap()
    assert min(*first, *second) >= 0


def test_what_is_not_installed_is_none_or_an_advice(monkeypatch):
    assert packages.peer("json") is json
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert packages.peer("json") is None
    with pytest.raises(ImportError, match=r'pip install -e "\.\[benchmarks\]"'):
        packages.needed("no_such_package.of_ours")
