"""What a figure shows is what it was given, and every figure says what it is."""

import subprocess
import sys

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from glmvae import activity_path, fit, moments, plots, posterior
from glmvae.families import Gaussian
from glmvae.monitor import Evaluation, Reference

X = np.random.default_rng(0).normal(size=(60, 6)) * np.array([3.0, 2.0, 1.0, 1.0, 1.0, 1.0])
BETAS = np.array([0.5, 1.0, 4.0])


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def evaluations(values, test=None):
    n = len(values)
    none, units = np.zeros(n), np.zeros((n, 2))
    test = np.full(n, np.nan) if test is None else np.array(test)
    return Evaluation(np.arange(n) * 10, none, np.array(values), none, test, none, units, units)


LINE = Reference(*map(jnp.asarray, (-11.0, -11.0, -9.0, -10.0)))
RUNS = {"near": evaluations([-10.0, -9.0], [-12.0, -11.5]), "far": evaluations([-500.0, -12.0, -11.0, -10.5])}


def drawings():
    optimum = fit(X, Gaussian(), 2, dispersion=1.0)
    path = activity_path(moments(X), Gaussian(), BETAS, 2, dispersion=1.0)
    images = {"data": X[:3], "net": X[3:6]}
    return {
        "elbo_curves": lambda ax: plots.elbo_curves(RUNS, LINE, ax=ax),
        "activities": lambda ax: plots.activities(BETAS, path, {"net": path}, ax=ax),
        "spectrum": lambda ax: plots.spectrum(optimum, ax=ax),
        "reconstructions": lambda ax: plots.reconstructions(images, (2, 3), ax=ax),
        "latent_scatter": lambda ax: plots.latent_scatter(X, X[:, 0] > 0, ax=ax),
    }


@pytest.mark.parametrize("name", ["elbo_curves", "activities", "spectrum", "reconstructions", "latent_scatter"])
def test_it_draws_on_the_axes_it_is_given_or_on_new_ones(name):
    draw = drawings()[name]
    ax = plt.subplots()[1]
    assert draw(ax) is ax
    new = draw(None)
    assert new is not ax
    new.figure.canvas.draw()
    if name != "reconstructions":
        assert new.get_xlabel()
        assert new.get_ylabel()


def lines(ax):
    return {line.get_label(): np.asarray(line.get_ydata(), float) for line in ax.lines}


def test_the_curves_are_the_evaluations_and_the_lines_the_reference():
    ax = plots.elbo_curves(RUNS, LINE)
    drawn = lines(ax)
    np.testing.assert_array_equal(drawn["near"], [-10.0, -9.0])
    np.testing.assert_array_equal(drawn["far"], [-500.0, -12.0, -11.0, -10.5])
    np.testing.assert_array_equal(drawn["L-hat at the optimum"], [-11.0, -11.0])
    bracket = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    np.testing.assert_allclose([bracket.y0, bracket.y1], [-11.0, -9.0])
    assert ax.get_ylim()[0] > -20
    assert ax.get_title() == "far starts at -500"
    assert plots.elbo_curves({"near": RUNS["near"]}).get_title() == ""
    for values in ([-np.inf], [-9.0, -np.inf], [-np.inf] * 5):  # a net whose ELBO is out of range
        assert np.isfinite(plots.elbo_curves({"far out": evaluations(values)}).get_ylim()).all()
    test = lines(plots.elbo_curves({"near": RUNS["near"]}, on="test"))
    np.testing.assert_array_equal(test["near"], [-12.0, -11.5])


def test_a_bracket_that_is_empty_or_unknown_is_not_drawn():
    for bracket in ((-11.0, -11.0), (np.nan, np.nan)):
        reference = LINE._replace(lower=bracket[0], upper=bracket[1])
        assert not plots.elbo_curves({"near": RUNS["near"]}, reference).patches


def test_activities_of_nets_are_sorted_and_those_of_the_closed_form_are_lines():
    path = np.array([[0.9, 0.8], [0.5, 0.1], [0.2, 0.0]])
    ax = plots.activities(BETAS, path, {"net": path[:, ::-1]})
    drawn = [np.asarray(line.get_ydata()) for line in ax.lines]
    np.testing.assert_array_equal(drawn[0], drawn[2])
    np.testing.assert_array_equal(drawn[0], path[:, 0])
    assert ax.get_xscale() == "linear"
    assert plots.activities(np.array([0.1, 1.0, 10.0]), path).get_xscale() == "log"


def test_the_spectrum_marks_the_cut_off():
    optimum = fit(X, Gaussian(), 3, beta=2.0, dispersion=1.0)
    active = int((optimum.eigenvalues[:3] > 2.0).sum())
    assert 0 < active < 3
    drawn = lines(plots.spectrum(optimum))
    np.testing.assert_allclose(drawn[f"active ({active})"], optimum.eigenvalues[:active])
    np.testing.assert_array_equal(drawn["cut-off, beta = 2"], [2.0, 2.0])


def test_images_stand_row_by_row():
    ax = plots.reconstructions({"data": np.arange(12.0).reshape(2, 6), "net": np.zeros((2, 6))}, (2, 3))
    picture = np.asarray(ax.images[0].get_array().filled(np.nan))
    np.testing.assert_array_equal(picture[1:3, 1:4], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(picture[1:3, 6:9], [[6, 7, 8], [9, 10, 11]])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["data", "net"]


def test_points_are_the_units_asked_for_and_a_colour_is_a_class():
    ax = plots.latent_scatter(X, units=(2, 0))
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), X[:, [2, 0]])
    assert plots.latent_scatter(X, np.arange(60)).get_legend() is None  # numbers, not classes: a colour scale
    ax = plots.latent_scatter(X, np.arange(60) % 3)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0", "1", "2"]


def test_rows_without_a_label_are_drawn_as_such():
    few, many = np.arange(60.0) % 3, np.arange(60.0)
    text = np.array(["a", "b", "c"], object)[few.astype(int)]
    hidden = np.arange(60) % 7 == 1
    cases = {
        "NaN": (np.where(hidden, np.nan, few), ["0.0", "1.0", "2.0"]),
        "a mask": (np.ma.masked_array(few.astype(int), hidden), ["0", "1", "2"]),
        "None": (np.where(hidden, None, text), ["a", "b", "c"]),
        "NaN beside text": (np.where(hidden, np.nan, text), ["a", "b", "c"]),
        "pandas": (np.where(hidden, pd.NA, text), ["a", "b", "c"]),
        "dates": (np.where(hidden, "NaT", "2020-01-01").astype("datetime64[D]"), ["2020-01-01"]),
        "a colour scale": (np.where(hidden, np.nan, many), []),
    }
    for name, (labels, classes) in cases.items():
        ax = plots.latent_scatter(X, labels)
        assert [text.get_text() for text in ax.get_legend().get_texts()] == [*classes, "missing"], name
        np.testing.assert_array_equal(ax.collections[-1].get_offsets(), X[hidden, :2], err_msg=name)
        assert sum(len(drawn.get_offsets()) for drawn in ax.collections) == 60
        plt.close(ax.figure)


def test_no_two_classes_look_alike():
    ax = plots.latent_scatter(X, np.arange(60) % 13)
    looks = {(tuple(drawn.get_facecolor()[0]), drawn.get_paths()[0].vertices.tobytes()) for drawn in ax.collections}
    assert len(looks) == len(ax.collections) == 13
    plt.close(ax.figure)


def test_no_unit_is_an_empty_picture_without_a_warning():
    assert plots.activities([1.0, 2.0], np.zeros((2, 0))).get_legend() is None


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.elbo_curves(RUNS, on="both"), 'on: expected "train" or "test"'),
        (lambda: plots.elbo_curves({}), "curves: expected at least one"),
        (lambda: plots.elbo_curves(RUNS, on="test"), "curves: 'far' has no evaluations on test data"),
        (lambda: plots.elbo_curves({"none": evaluations([])}), "curves: 'none' has no evaluations on train data"),
        (lambda: plots.activities(BETAS, np.ones((2, 2))), r"analytic: expected shape \(3, kappa\)"),
        (
            lambda: plots.activities(BETAS, np.ones((3, 2)), {"net": np.ones((3, 4))}),
            r"trained\['net'\]: expected shape",
        ),
        (lambda: plots.activities([], np.zeros((0, 2))), "betas: expected at least one, got none"),
        (lambda: plots.reconstructions({"data": X[:2]}, (2, 2)), r"rows: expected arrays of one shape \(n, 4\)"),
        (lambda: plots.reconstructions({}, (2, 3)), "rows: expected arrays of one shape"),
        (lambda: plots.latent_scatter(X[:, :1]), r"mean: expected shape \(N, kappa\) with units \(0, 1\)"),
        (lambda: plots.latent_scatter(X, np.zeros(3)), r"labels: expected shape \(60,\), got shape \(3,\)"),
        (lambda: plots.activities(BETAS[:, None], np.ones((3, 2))), r"betas: expected shape \(B,\), got shape"),
        (lambda: plots.spectrum(fit(X, Gaussian(), 2), most=0), "most: expected an integer of at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


Q = posterior(fit(X, Gaussian(), 2), X)
ONE = Evaluation(*(part[0] for part in RUNS["near"]))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.elbo_curves(RUNS["near"]), r"curves: expected a mapping such as .*, got Evaluation"),
        (lambda: plots.elbo_curves(None), "curves: expected a mapping such as .*, got NoneType"),
        (lambda: plots.elbo_curves({"near": [1.0, 2.0]}), r"curves\['near'\]: expected the evaluations .* got list"),
        (
            lambda: plots.elbo_curves({"near": ONE}),
            r"curves\['near'\]: expected the evaluations of a run, run.evaluations, got Evaluation",
        ),
        (lambda: plots.elbo_curves(RUNS, -11.0), "reference: expected a monitor.Reference, got float"),
        (lambda: plots.elbo_curves(RUNS, ax=plt), "ax: expected matplotlib Axes, got module"),
        (lambda: plots.activities(BETAS, np.ones((3, 2)), np.ones((3, 2))), r"trained: expected a mapping .* ndarray"),
        (lambda: plots.activities(BETAS, {"net": np.ones((3, 2))}), "analytic: expected an array, got dict"),
        (lambda: plots.activities(None, np.ones((3, 2))), "betas: expected an array of numbers, got NoneType"),
        (lambda: plots.spectrum(X), "optimum: expected an optimum such as fit returns, got ndarray"),
        (lambda: plots.spectrum(None), "optimum: expected an optimum such as fit returns, got NoneType"),
        (lambda: plots.reconstructions(X, (2, 3)), "rows: expected a mapping such as .*, got ndarray"),
        (lambda: plots.reconstructions({"data": X}, 6), r"image_shape: expected \(height, width\), got int"),
        (lambda: plots.reconstructions({"data": X}, (2.0, 3)), "image_shape: expected an integer, got 2.0"),
        (lambda: plots.latent_scatter(Q), r"mean: expected an array \(pass its .mean\), got Posterior"),
        (lambda: plots.latent_scatter(X, units=1), r"units: expected a pair of integers such as \(0, 1\), got int"),
    ],
)
def test_other_objects_are_named(draw, message):
    with pytest.raises(TypeError, match=message):
        draw()


def test_matplotlib_is_needed_only_to_draw(monkeypatch):
    code = "import sys; from glmvae import plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'a plot needs matplotlib, which is optional: pip install "glmvae\[plots\]"'):
        plots.latent_scatter(X)
