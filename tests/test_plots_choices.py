"""Pictures one chooses by: spectra by both rules, rate and distortion, held-out scores, and the biplot."""

import warnings

import matplotlib.pyplot as plt
import matplotlib.text
import numpy as np
import pandas as pd
import pytest

from glmvae import (
    Affine,
    AffineModel,
    Rows,
    diagnose,
    explained_variance,
    fit,
    plots,
    posterior,
    rate_distortion,
    refine,
    select,
)
from glmvae.families import Bernoulli, Binomial, Gaussian, Poisson

RNG = np.random.default_rng(0)
Z, W = RNG.normal(size=(120, 2)), RNG.normal(size=(9, 2))
COUNTS = RNG.poisson(np.exp(0.5 * Z @ W.T + 1)).astype("float32")
REAL = (Z @ W.T + 0.3 * RNG.normal(size=(120, 9))).astype("float32")
NAMES = [f"species {name}" for name in "abcdefghi"]


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def selected():
    return select(REAL, Gaussian(), range(1, 5), (0.5, 1.0), folds=3)


def lines(ax):
    return {line.get_label(): np.asarray(line.get_xydata(), float) for line in ax.lines}


def test_they_draw_on_the_axes_they_are_given_or_on_new_ones(selected):
    optimum = fit(REAL, Gaussian(), 3)
    curve = rate_distortion(REAL, Gaussian(), 3, [0.5, 1.0])
    for draw in (
        lambda ax: plots.rate_distortion(curve, ax=ax),
        lambda ax: plots.selection(selected, ax=ax),
        lambda ax: plots.biplot(optimum, REAL, ax=ax),
        lambda ax: plots.spectrum(diagnose(COUNTS, Poisson(), 3), ax=ax),
    ):
        ax = plt.subplots()[1]
        assert draw(ax) is ax
        new = draw(None)
        assert new is not ax
        new.figure.canvas.draw()
        assert new.get_xlabel()
        assert new.get_ylabel()


# The spectrum -----------------------------------------------------------------------------------------------


def test_the_spectrum_of_a_diagnosis_has_the_cut_offs_of_both_rules_and_the_edge_of_noise():
    found = diagnose(COUNTS, Poisson(), 3)
    drawn = lines(plots.spectrum(found))
    for where, values in (("at eta = 0", found.eigenvalues), ("at the null model", found.null_eigenvalues)):
        above = int((values > 1).sum())
        np.testing.assert_allclose(drawn[f"{where} ({above} above beta)"][:, 1], values[:above], rtol=1e-6)
    above = int(found.directions_above_noise)
    shared = drawn[f"of the correlations ({above} above noise)"]
    np.testing.assert_allclose(shared[:, 1], found.correlation_eigenvalues[:above], rtol=1e-6)
    assert (drawn["cut-off, beta = 1"][:, 1] == 1).all()
    edge = next(points for label, points in drawn.items() if label.startswith("edge of noise"))
    np.testing.assert_allclose(edge[:, 1], found.noise_edge)


def test_eigenvalues_that_agree_are_drawn_once():
    binary = (COUNTS > 2).astype("float32")
    found = diagnose(binary, Bernoulli(), 3)
    assert np.allclose(found.correlation_eigenvalues, found.null_eigenvalues, rtol=2e-3, atol=1e-6)
    labels = [label for label in lines(plots.spectrum(found)) if label[0] != "_"]
    assert not any("correlations" in label for label in labels)
    assert f"edge of noise, {float(found.noise_edge):.3g} ({int(found.directions_above_noise)} above)" in labels
    hidden = diagnose(Rows(COUNTS, offset=COUNTS[:, 0] * 0), Poisson(), 3)  # the paper's rule has no place for it
    assert hidden.eigenvalues is None
    assert not any(label.startswith("at eta = 0") for label in lines(plots.spectrum(hidden)))


# Rate and distortion ----------------------------------------------------------------------------------------


def test_the_curve_is_that_of_rate_distortion_and_exact_points_are_marks():
    optima = [fit(COUNTS, Poisson(), 2, beta=beta, expand_at="null") for beta in (1.0, 3.0)]
    betas = np.geomspace(0.5, 20, 30)
    curve = rate_distortion(COUNTS, Poisson(), 2, betas, expand_at="null", optima=optima)
    ax = plots.rate_distortion(curve)
    drawn = lines(ax)
    np.testing.assert_allclose(drawn["closed form"], np.stack([curve.rate, curve.distortion], axis=1)[::-1])
    exact = drawn["of the optima given, exact"]
    np.testing.assert_allclose(exact, np.stack([curve.exact.rate, curve.exact.distortion], axis=1))
    written = [text.get_text() for text in ax.texts]
    assert written[-2:] == ["beta 1", "beta 3"]
    assert {"beta 0.5", "beta 20"} <= set(written[:-2])  # the ends
    assert len(written) <= 8
    assert len(plots.rate_distortion(rate_distortion(COUNTS, Poisson(), 2, [1.0])).texts) == 1


# Selection --------------------------------------------------------------------------------------------------


def test_scores_are_lines_and_the_choices_are_marked(selected):
    ax = plots.selection(selected)
    table = selected.table
    assert [container.get_label() for container in ax.containers] == ["beta = 0.5", "beta = 1"]
    for container, beta in zip(ax.containers, (0.5, 1.0), strict=True):
        of_beta = table.beta == beta
        data = container.lines[0].get_xydata()
        np.testing.assert_array_equal(data[:, 1], table.score[of_beta])
        np.testing.assert_allclose(data[:, 0], table.latent_dim[of_beta], atol=0.1)
        (bars,) = container.lines[2]
        reach = [0.5 * np.ptp(segment[:, 1]) for segment in bars.get_segments()]
        np.testing.assert_allclose(reach, table.standard_error_below[of_beta], atol=1e-9)
    drawn = lines(ax)
    for label, choice in (("best", selected.best), ("one standard error", selected.one_standard_error)):
        units, score = drawn[label][0]
        assert abs(units - choice.latent_dim) < 0.1
        assert score == table.score[(table.latent_dim == choice.latent_dim) & (table.beta == choice.beta)][0]


# The biplot -------------------------------------------------------------------------------------------------


def written(ax):
    return [text.get_text() for text in ax.texts if text.get_text()]


def arrows(ax):
    return np.array([text.xy for text in ax.texts if not text.get_text()])


def test_points_are_scores_and_arrows_are_loadings_to_one_factor():
    optimum = fit(REAL, Gaussian(), 3)
    ax = plots.biplot(optimum, REAL, units=(2, 0), names=NAMES)
    np.testing.assert_allclose(ax.collections[0].get_offsets(), posterior(optimum, REAL).mean[:, [2, 0]], rtol=1e-6)
    ratio = arrows(ax) / np.asarray(optimum.loadings)[:, [2, 0]]
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)
    assert sorted(written(ax)) == NAMES
    share = np.asarray(explained_variance(optimum).by_factor)
    assert ax.get_xlabel() == f"factor 2 ({share[2]:.0%} of the variance)"
    assert ax.get_ylabel() == f"factor 0 ({share[0]:.0%} of the variance)"


def test_the_longest_arrows_are_named_and_no_name_covers_another():
    rng = np.random.default_rng(1)
    bunch = rng.normal(size=(40, 2)) * 0.1 + np.array([1.0, 0.5])  # all in one direction
    model = AffineModel(Affine(bunch, np.zeros(40)), Binomial(4))
    x = rng.integers(0, 5, size=(50, 40)).astype("float32")
    ax = plots.biplot(model, x, names=[f"column {j}" for j in range(40)], most=15)
    longest = np.argsort(-np.linalg.norm(bunch, axis=1))[:15]
    assert written(ax) == [f"column {j}" for j in longest]
    assert len(arrows(ax)) == 40
    ax.figure.canvas.draw()
    boxes = [matplotlib.text.Text.get_window_extent(text) for text in ax.texts if text.get_text()]  # without leaders
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i]), i
    assert not written(plots.biplot(model, x, most=0))


def test_names_are_those_of_the_table():
    optimum = fit(REAL, Gaussian(), 2)
    assert sorted(written(plots.biplot(optimum, REAL, most=9))) == [*"012345678"]
    assert sorted(written(plots.biplot(optimum, pd.DataFrame(REAL, columns=NAMES)))) == NAMES


def test_the_share_of_the_variance_is_that_among_the_rows():
    rows = Rows(COUNTS, offset=np.linspace(1.0, 3.0, len(COUNTS)))
    optimum = refine(fit(COUNTS, Poisson(), 2, expand_at="null"), rows, max_rounds=3)
    share, bare = (
        np.asarray(found.by_factor) for found in (explained_variance(optimum, rows), explained_variance(optimum))
    )
    assert share[0] > bare[0] + 0.02
    assert plots.biplot(optimum, rows).get_xlabel() == f"factor 0 ({share[0]:.0%} of the variance)"


def test_refined_optima_rows_that_bring_more_and_pruned_units_are_drawn():
    rows = Rows(COUNTS, missing=np.arange(9) == np.arange(120)[:, None] % 9)
    optimum = refine(fit(COUNTS, Poisson(), 2, expand_at="null"), rows, max_rounds=3)
    assert len(plots.biplot(optimum, rows, labels=Z[:, 0] > 0).collections[0].get_offsets()) > 0
    pruned = fit(REAL, Gaussian(), 2, beta=1e6, dispersion=1.0)
    assert not arrows(plots.biplot(pruned, REAL)).size
    trials = Rows(COUNTS, trials=COUNTS + 1)
    assert "of the variance" in plots.biplot(fit(trials, Binomial(None), 2), trials).get_xlabel()


def test_odd_input_is_drawn():
    empty = refine(fit(REAL[:, :3], Gaussian(), 0, dispersion=1.0), REAL[:, :3])
    assert not any(len(lines(plots.spectrum(empty))[name]) for name in ("active (0)", "pruned or not modelled"))
    mixed = plots.latent_scatter(np.zeros((4, 2)), np.array(["a", 1, "a", None], object))
    assert [text.get_text() for text in mixed.get_legend().get_texts()] == ["1", "a", "missing"]
    flat = REAL[:, :2] @ RNG.normal(size=(2, 5)) + 0.5 * RNG.normal(size=(len(REAL), 5))
    curve = rate_distortion(flat, Gaussian(), 5, [0.5, 0.9, 1.2, 1.5, 2.0, 4.0, 8.0])
    assert not np.isfinite(curve.rate).all()  # the limit of a dispersion of 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        marks = [text.get_text() for text in plots.rate_distortion(curve).texts]
    assert {"beta 1.2", "beta 8"} <= {*marks}
    assert "beta 0.5" not in marks


# Arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "kind", "message"),
    [
        (
            lambda o: plots.rate_distortion(o),
            TypeError,
            "curve: expected what rate_distortion returns, got AffineOptimum",
        ),
        (lambda o: plots.selection(o), TypeError, "result: expected what select returns, got AffineOptimum"),
        (lambda o: plots.spectrum(REAL), TypeError, "optimum: expected an optimum such as fit returns, got ndarray"),
        (lambda o: plots.biplot(REAL, REAL), TypeError, "optimum: expected an AffineModel or a result"),
        (lambda o: plots.biplot(o, REAL[:, :4]), ValueError, "x: expected 9 columns"),
        (lambda o: plots.biplot(o, iter([REAL])), ValueError, "x: this needs several passes over the rows"),
        (
            lambda o: plots.biplot(o, REAL, units=(0, 5)),
            ValueError,
            "units: the optimum has 2 latent units",
        ),
        (lambda o: plots.biplot(o, REAL, units=3), TypeError, r"units: expected a pair of integers"),
        (lambda o: plots.biplot(o, REAL, names=NAMES[:3]), ValueError, "names: expected 9, one a column, got 3"),
        (lambda o: plots.biplot(o, REAL, labels=[1, 2]), ValueError, r"labels: expected shape \(120,\)"),
        (lambda o: plots.biplot(o, REAL, most=-1), ValueError, "most: expected an integer of at least 0, got -1"),
    ],
)
def test_wrong_arguments_are_named(draw, kind, message):
    with pytest.raises(kind, match=message):
        draw(fit(REAL, Gaussian(), 2))
