"""Page "selection": what it counts, what it says where logisticpca is not installed, and that it is shown."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from benchmark_cases import faults

from benchmarks import __main__ as command
from benchmarks import packages, selection
from glmvae.families import Bernoulli, Gaussian, Poisson

pytestmark = pytest.mark.any_precision


def row(best, fewest, way="rows, exact"):
    seconds = [float(i) for i in range(1, len(best) + 1)]
    return {
        "family": "Bernoulli",
        "latent_dim": 3,
        "way": way,
        "best": best,
        "one_standard_error": fewest,
        "seconds": seconds,
    }


SETTINGS = {**selection.FULL._asdict(), "folds": 5, "beyond": 3, "latent_dims": [3]}


def test_the_page_runs_and_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(selection, "QUICK", selection.Size(2, 60, 6))
    quick = {"rows, closed form": selection.ways(Gaussian())["rows, closed form"]}
    monkeypatch.setattr(selection, "ways", lambda family: quick)
    options = ["selection", "--quick", "--latent-dims", "1", "--families", "Gaussian", "--output", str(tmp_path)]
    assert command.main(options) == 0
    result = json.loads((tmp_path / "selection.json").read_text())
    (found,) = result["rows"]
    assert (found["family"], found["way"], found["latent_dim"]) == ("Gaussian", "rows, closed form", 1)
    assert len(found["best"]) == len(found["seconds"]) == 2
    assert selection.hits(found, "best") <= 2
    printed = capsys.readouterr().out
    assert 'logisticpca is left out: it is not installed (pip install -e ".[peers]").' in printed
    assert "every number to 3 beyond the planted one tried" in printed
    assert faults(selection.draw(result)) == []


def test_hits_are_draws_whose_planted_number_was_found():
    found = row([3, 4, 3], [3, 3, 3])
    assert [selection.hits(found, rule) for rule in ("best", "one_standard_error")] == [2, 3]
    peer = row([3, 2], [None, None], selection.PEER)
    assert [selection.hits(peer, rule) for rule in ("best", "one_standard_error")] == [1, None]
    text = selection.table({"rows": [found, peer, row([], [])], "settings": SETTINGS})
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "Bernoulli rows, exact 3 3 2 3 | 1.00 s 2.50 s" in lines
    assert "Bernoulli logisticpca, entries 3 2 1 - | 1.00 s 2.00 s" in lines
    assert "left out" not in text
    assert faults(selection.draw({"rows": [found, peer, row([], [])], "settings": SETTINGS})) == []


def test_the_peer_is_asked_where_it_is_installed(monkeypatch):
    class Found:
        best_n_components_ = 2

        def __init__(self, component_grid, cv, random_state):
            assert (component_grid, cv, random_state) == ([1, 2, 3], selection.FOLDS, 7)

        def fit(self, x):
            assert x.dtype == np.float64
            return self

    monkeypatch.setattr(packages, "peer", lambda *names: None)
    assert selection.PEER not in selection.ways(Bernoulli())
    monkeypatch.setattr(packages, "peer", lambda *names: SimpleNamespace())
    assert selection.PEER in selection.ways(Bernoulli())
    assert selection.PEER not in selection.ways(Poisson())
    monkeypatch.setattr(packages, "needed", lambda name: SimpleNamespace(CVLogisticPCA=Found))
    assert selection.logistic_pca(np.ones((4, 3), np.float32), range(1, 4), 7) == (2, None)


def test_draws_have_the_planted_units():
    size = selection.Size(1, 3000, 8)
    x = selection.drawn(Gaussian(), 0, size, 2)
    values = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    assert values[1] > 2
    assert abs(values[2:].mean() - 1) < 0.1  # noise of variance 1, and no third factor
    assert set(np.unique(selection.drawn(Bernoulli(), 0, size, 2))) == {0.0, 1.0}
    assert selection.drawn(Poisson(), 1, size, 2).dtype == np.float32
    assert not np.array_equal(selection.drawn(Poisson(), 1, size, 2), selection.drawn(Poisson(), 2, size, 2))


def test_what_the_tables_have_no_room_for_is_refused(tmp_path, capsys):
    options = ["selection", "--quick", "--output", str(tmp_path), "--latent-dims"]
    assert command.main([*options, "10"]) == 2
    assert "--latent-dims: expected at most 9, since 3 more are tried in tables of 12" in capsys.readouterr().err
    assert command.parse([*options, "9"]).latent_dims == [9]
    with pytest.raises(SystemExit):
        command.main(["selection", "--seed", "-1"])
    assert "--seed: expected an integer, 0 or more, got '-1'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["optimum", "--families", "Poisson"])
    assert "--families: of selection alone" in capsys.readouterr().err
