"""What is said of the reproduced runs: numbers from made-up results whose answers are known, verdicts, figures."""

import json
import math

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks.reproduce import claims, figures, measures, page, runner, tables
from benchmarks.reproduce.setups import BETAS, UNITS, all_setups, looks

pytestmark = pytest.mark.any_precision

NO_UNIT, L_HAT, TOP = -110.0, -104.0, -100.0
BATCHES = {"he": 3_000, "mle-b": 100, "closed-form": 50, "tightened": 20}


def rising(steps, batches):
    """From -150 to -100; within 0.2 of the top, what AT allows of a gain of 10, after 5.52 times as many batches."""
    return TOP - 50 * np.exp(-np.asarray(steps, float) / batches)


def result(setup, *, elbo=None, test=None, units=None):
    """As the runner writes it; units: how many are active at the end, predicted ones with activity 0.5."""
    steps = looks(setup.steps)
    train = rising(steps, BATCHES[setup.start]) if elbo is None else elbo
    test = train - 1 if test is None else test
    units = max(1, setup.latent_dim // 2) if units is None else units
    predicted = [0.5] * max(1, setup.latent_dim // 2) + [0.0] * (setup.latent_dim - max(1, setup.latent_dim // 2))
    activity = [0.5] * units + [0.001] * (setup.latent_dim - units)
    rules = ["closed", "null"] + ["tightened"] * (setup.family == "Bernoulli")
    line = {"elbo_taylor": L_HAT, "corollary_1": TOP + 2, "elbo_exact": -103.0, "no_unit": NO_UNIT}
    of_test = {name: value - 1 for name, value in line.items()}
    zeros = [0.0] * len(steps)
    made = {
        "settings": setup.settings(),
        "lines": {"train": line, "seen_train": line, "test": of_test, "seen_test": of_test},
        "predicted": dict.fromkeys(rules, predicted),
        "end": {"train_elbo": train[-1], "test_elbo": test[-1], "activity": activity},
        "cpu_seconds": 36.0,
        "diverged": None,
        "made_on": [{"versions": {"jax": "1", "python": "3"}, "cpu_model": "a", "cpu_count": 2, "device": "cpu"}],
        "curve": {"step": steps, "train_elbo": list(train), "test_elbo": list(test), "active": [units] * len(steps)}
        | {"train_error": zeros, "test_error": zeros},
    }
    return json.loads(json.dumps(made))


@pytest.fixture(scope="module")
def results():
    return [result(setup) for setup in all_setups()]


def named(results, name):
    settings = next(s for s in all_setups() if s.name == name).settings()
    return next(r for r in results if r["settings"] == settings)


def changed(results, name, **changes):
    """The results with one run replaced."""
    setup = next(s for s in all_setups() if s.name == name)
    return [result(setup, **changes) if r["settings"] == setup.settings() else r for r in results]


def holds(results):
    return [claim.holds for claim in claims.all_claims(results)]


def test_numbers_of_a_curve(results):
    bench, ours = (named(results, f"starts-frey-5-affine-{start}") for start in ("he", "mle-b"))
    # -150 rises to -104 at 2.53 time constants
    assert measures.burn_in(ours, "train") == measures.burn_in(ours, "test") == 300
    assert measures.burn_in(bench, "train") == 8_000
    assert measures.steps_to(ours, bench) == 750
    assert measures.steps_to(bench, bench) == 17_000
    assert math.isnan(measures.steps_to(None, bench))
    assert measures.lead(ours, bench, 100) == pytest.approx(50 * (math.exp(-1 / 30) - math.exp(-1)))
    assert measures.active(ours) == 2
    assert measures.fall(ours) == (pytest.approx(0.0), False)
    assert measures.distance([0.1, 0.9], [0.9, 0.3]) == pytest.approx(0.1)


def test_a_curve_that_ends_below_the_line_is_never_above_it_for_good(results):
    ours = named(results, "starts-frey-5-affine-mle-b")
    ours = {**ours, "curve": {**ours["curve"], "train_elbo": [*ours["curve"]["train_elbo"][:-1], L_HAT - 1]}}
    assert measures.burn_in(ours, "train") == math.inf
    assert measures.burn_in(ours, "test") == 300


def test_a_unit_that_wakes_in_the_last_fifth_is_not_still(results):
    ours = named(results, "activities-gaussian-8-relu")
    counts = list(ours["curve"]["active"])
    assert measures.still(ours)
    for back, still in ((10, True), (3, False)):
        other = counts.copy()
        other[-back] += 1
        assert measures.still({**ours, "curve": {**ours["curve"], "active": other}}) is still


def test_every_claim_holds_of_results_made_so(results):
    assert holds(results) == [True] * len(holds(results))
    assert all(claim.verdict == "holds" for claim in claims.all_claims(results))
    assert all(claim.verdict == "not measured yet" for claim in claims.all_claims([]))


FLAT = np.full(len(looks(25_000)), TOP)
FALLS = TOP - np.linspace(0, 2, len(looks(25_000)))


@pytest.mark.parametrize(
    ("number", "name", "change"),
    [
        (0, "starts-mnist-2-relu-mle-b", {"elbo": FLAT - 10}),
        (0, "starts-mnist-2-relu-mle-b", {"elbo": rising(looks(25_000), 1_000)}),
        (1, "starts-mnist-2-relu-he", {"elbo": FLAT + 3}),
        (1, "starts-mnist-2-relu-he", {"elbo": FLAT + L_HAT - TOP - 1}),  # below L-hat is not within its error
        (2, "starts-mnist-2-relu-he", {"elbo": FLAT + 1.1}),
        (3, "starts-frey-2-affine-mle-b", {"elbo": rising(looks(25_000), 1_000)}),
        (5, "starts-frey-2-affine-closed-form", {"elbo": np.full(len(looks(5_000)), TOP - 1)}),
        (6, "starts-frey-2-relu-tightened", {"elbo": np.full(len(looks(2_000)), TOP - 1)}),
        (7, "starts-synthetic-2-affine-he", {"elbo": FLAT, "test": FALLS}),
        (7, "starts-synthetic-20-affine-he", {"elbo": FLAT, "test": FLAT - 1.2}),
        (8, "starts-synthetic-20-affine-he", {"units": 20}),
        (9, "activities-gaussian-8-affine", {"units": 25}),
        (12, "activities-bernoulli-16-relu", {"units": 15}),
        (13, "annealing-frey-20-relu", {"units": 9}),
    ],
)
def test_a_claim_falls_with_a_run_that_speaks_against_it(results, number, name, change):
    assert not holds(changed(results, name, **change))[number]


def test_what_is_worse_on_train_too_does_not_over_fit(results):
    name, test = "starts-synthetic-20-affine-he", FLAT - 1.2
    assert not holds(changed(results, name, elbo=FLAT, test=test))[7]
    assert holds(changed(results, name, elbo=FLAT - 0.1, test=test))[7]


def test_a_claim_says_how_much_of_it_was_measured(results):
    some = [r for r in results if r["settings"]["data"] == "frey"]
    assert claims.all_claims(some)[0].verdict == "holds so far (12 of 36)"
    assert claims.all_claims(some)[9].verdict == "not measured yet"


def test_tables_have_a_line_for_every_setup_and_blanks_where_there_is_none(results):
    text = page.plain(results)
    for title in tables.TABLES:
        assert title in text
    assert len([row for row in tables.starts(results).splitlines() if row.startswith("frey")]) == 6
    assert len(tables.activities(results).splitlines()) == 3 + len(BETAS["Gaussian"]) + len(BETAS["Bernoulli"])
    some = [r for r in results if r["settings"]["section"] == "starts" and r["settings"]["start"] == "closed-form"]
    for table in tables.TABLES.values():
        assert len(table(some).splitlines()) == len(table(results).splitlines())


def test_only_whole_runs_count(results, tmp_path):
    whole = named(results, "starts-frey-2-relu-he")
    setup = next(s for s in all_setups() if s.name == "starts-frey-2-relu-he")
    runner.write(tmp_path / f"{setup.name}.json", whole)
    assert len(measures.load(tmp_path)) == 1
    runner.write(tmp_path / f"{setup.name}.json", {**whole, "settings": {**whole["settings"], "steps": 10}})
    assert measures.load(tmp_path) == []
    assert len(measures.load(tmp_path, short=True)) == 1


def test_figures_and_claims_are_made_from_what_is_there(results, tmp_path, capsys):
    for name in ("starts-frey-2-relu-he", "activities-bernoulli-2-affine", "annealing-synthetic-20-affine"):
        runner.write(tmp_path / f"{name}.json", named(results, name))
    assert command.main(["reproduce", "--figures", "--claims", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert {p.name for p in (tmp_path / "figures").glob("*.png")} == {
        "figure-01.png", "figure-03.png", "figure-10.png", "annealing.png",
    }  # fmt: skip
    assert "figure-10.png" in printed
    assert "holds so far (1 of 36)" in printed


def test_a_heat_map_shows_units_in_order_of_activity(results):
    figure = figures.activities([named(results, "activities-gaussian-8-relu")], "Gaussian")
    image = np.asarray(figure.axes[-2].images[0].get_array())  # the last axes are those of the colour scale
    assert image.shape == (len(BETAS["Gaussian"]), UNITS)
    assert (np.diff(image[0]) <= 0).all()
    assert np.ma.masked_invalid(image[1:]).mask.all()
