"""What is held out is not seen, scores are those of the definition, and planted numbers of units are found."""

import re

import jax
import numpy as np
import pytest
import scipy.stats
from scipy.special import expit

from glmvae import Rows, best_posterior, elbo_exact, fit, log_likelihood, refine, select, selection, tighten
from glmvae.families import Bernoulli, Binomial, Gamma, Gaussian, Mixed, Poisson
from glmvae.selection import holdout
from glmvae.selection.selected import Choice, Selection, table_of

UNITS = 2


def drawn(family, seed, rows=300, columns=15):
    rng = np.random.default_rng(seed)
    eta = rng.normal(size=(rows, UNITS)) @ rng.normal(size=(columns, UNITS)).T
    if isinstance(family, Gaussian):
        return eta + 0.7 * rng.normal(size=eta.shape)
    if isinstance(family, Poisson):
        return rng.poisson(np.exp(0.5 * eta + 1)).astype(float)
    return (rng.uniform(size=eta.shape) < expit(1.5 * eta)).astype(float)


# Planted units ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "holdout", "method"),
    [(Gaussian(), "rows", "closed-form"), (Bernoulli(), "rows", "tightened"), (Poisson(), "entries", "exact")],
    ids=repr,
)
def test_the_planted_number_of_units_is_found(family, holdout, method, dtype):
    for seed in range(2):
        x = drawn(family, seed).astype(dtype)
        found = select(x, family, [1, 2, 3], holdout=holdout, method=method, folds=3, tolerance=0.01)
        assert found.one_standard_error.latent_dim == UNITS
        assert np.isfinite(found.table.score).all()
        assert found.unit == ("nats per row" if holdout == "rows" else "nats per entry")


def test_columns_that_have_nothing_in_common_get_no_unit(dtype):
    found = select(np.random.default_rng(0).normal(size=(300, 15)).astype(dtype), Gaussian(), range(4))
    assert found.one_standard_error.latent_dim == 0
    assert "No latent unit pays" in found.recommendation()


# Scores are those of the definition -------------------------------------------------------------------------

GRID = [(k, beta) for k in (0, 1, 3) for beta in (0.5, 1.0, 4.0)]


@pytest.mark.any_precision
@pytest.mark.parametrize("method", ["closed-form", "tightened"])
def test_the_grid_from_one_spectrum_is_that_of_fits_to_the_other_rows(method):
    x, family = drawn(Bernoulli(), 3), Bernoulli()
    found = select(x, family, [3, 0, 1, 1], [4.0, 0.5, 1.0], method=method, folds=4, seed=5)
    assert [*zip(found.table.latent_dim, found.table.beta, strict=True)] == GRID
    splits = [*holdout.rows_without(Rows(x), 4, 5)]
    for fold in (0, 3):
        for i, (k, beta) in enumerate(GRID):
            optimum = fit(splits[fold].train(), family, k, beta=beta)
            model = (tighten(optimum, splits[fold].train()) if method == "tightened" else optimum).model.with_beta(1.0)
            held = splits[fold].asked.x
            wanted = elbo_exact(model, held, best_posterior(model, held)).mean()
            np.testing.assert_allclose(found.fold_scores[i, fold], wanted, rtol=1e-5)
            if beta != 1 and np.any(model.loadings):  # by its own beta-ELBO the score would be another
                own = elbo_exact(model.with_beta(beta), held, best_posterior(model.with_beta(beta), held)).mean()
                assert abs(own - wanted) > 0.05
    np.testing.assert_allclose(found.table.score, found.fold_scores.mean(axis=1))


@pytest.mark.any_precision
def test_the_dispersion_of_each_fit_is_its_own_unless_it_is_given():
    x = drawn(Gaussian(), 1)
    splits = [*holdout.rows_without(Rows(x), 3, 0)]
    for given in (None, 2.0):
        found = select(x, Gaussian(), [1], folds=3, dispersion=given, metric="log_likelihood")
        optimum = fit(splits[1].train(), Gaussian(), 1, dispersion=given)
        covariance = optimum.loadings @ optimum.loadings.T + optimum.dispersion * np.eye(15)
        exact = scipy.stats.multivariate_normal(optimum.intercept, covariance).logpdf(splits[1].asked.x).mean()
        np.testing.assert_allclose(found.fold_scores[0, 1], exact, rtol=1e-5)


@pytest.mark.any_precision
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_the_ascent_estimates_a_dispersion_of_any_size(scale):
    """Whatever the units of measurement: the closed form, which has its dispersion, says the same."""
    x = scale * drawn(Gaussian(), 1)
    options = {"folds": 3, "tolerance": 1e-8}
    exact, closed = (select(x, Gaussian(), [0, 1], method=m, **options) for m in ("exact", "closed-form"))
    np.testing.assert_allclose(exact.fold_scores, closed.fold_scores, atol=1e-3)
    assert exact.latent_dim == 1


@pytest.mark.any_precision
def test_the_likelihood_of_a_row_is_that_of_log_likelihood():
    x = drawn(Bernoulli(), 1)
    found, by_elbo = (
        select(x, Bernoulli(), [2], folds=3, metric=metric, seed=1) for metric in ("log_likelihood", None)
    )
    split = [*holdout.rows_without(Rows(x), 3, 1)][2]
    optimum = fit(split.train(), Bernoulli(), 2)
    wanted = log_likelihood(jax.random.key(1), optimum, split.asked, num_samples=100)[0].mean()
    np.testing.assert_allclose(found.fold_scores[0, 2], wanted, rtol=1e-5)
    assert found.table.score[0] > by_elbo.table.score[0]


@pytest.mark.any_precision
def test_a_fit_is_scored_when_it_has_converged(monkeypatch):
    """Cut off before it has converged, a fit of counts of tens of thousands is another model."""
    rng = np.random.default_rng(3)
    x = rng.poisson(np.exp(2 * rng.normal(size=(60, 2)) @ rng.normal(size=(6, 2)).T)).astype(float)
    rounds, converged = [], []

    def counted(*arguments, **options):
        found = refine(*arguments, **options)
        rounds.append(len(found.history) - 1)
        converged.append(bool(found.converged))
        return found

    monkeypatch.setattr(selection, "refine", counted)
    whole = select(x, Poisson(), [1, 2], method="exact", folds=2)
    assert max(rounds) > 20
    assert all(converged)
    monkeypatch.setattr(selection, "_MOST_ROUNDS", 15)
    cut = select(x, Poisson(), [1, 2], method="exact", folds=2)
    assert not all(converged)
    assert np.max(np.abs(cut.fold_scores - whole.fold_scores)) > 1e-2


@pytest.mark.any_precision
def test_held_out_entries_are_scored_by_what_the_rest_of_the_row_predicts():
    x, family = drawn(Bernoulli(), 2), Bernoulli()
    missing = np.random.default_rng(0).uniform(size=x.shape) < 0.1
    rows = Rows(np.where(missing, 7.0, x), missing=missing)
    split = [*holdout.entries_without(rows, 3, 0)][1]
    model = fit(x, family, 1).model
    q = best_posterior(model, split.train())
    mean = np.asarray(q.mean @ model.loadings.T + model.intercept)
    variance = np.einsum("jk,nkl,jl->nj", model.loadings, q.covariance, model.loadings)
    held = ~split.asked.missing
    grid = mean[..., None] + np.sqrt(variance)[..., None] * np.linspace(-8, 8, 2001)
    density = np.where(x[..., None] == 1, expit(grid), expit(-grid)) * scipy.stats.norm.pdf(np.linspace(-8, 8, 2001))
    predictive = np.log(density.sum(axis=-1) * 16 / 2000)[held].mean()
    np.testing.assert_allclose(holdout.score_of(model, split, "log_likelihood", True, None), predictive, rtol=1e-5)
    expected = np.asarray(family.expected_log_prob(x, mean, variance))[held].mean()
    np.testing.assert_allclose(holdout.score_of(model, split, "elbo", True, None), expected, rtol=1e-5)
    assert expected < predictive  # Jensen


@pytest.mark.any_precision
def test_units_that_are_off_change_no_score():
    x = drawn(Bernoulli(), 2)
    split = next(holdout.rows_without(Rows(x), 3, 0))
    model = fit(split.train(), Bernoulli(), 2, beta=2.0).model
    scores = [holdout.score_of(holdout.padded(model, units), split, "elbo", False, None) for units in (2, 5)]
    np.testing.assert_allclose(*scores, rtol=1e-6)
    assert (
        abs(elbo_exact(model, split.asked, best_posterior(model, split.asked)).mean() - scores[0]) > 0.01
    )  # at beta 2


@pytest.mark.any_precision
def test_the_number_of_units_grows_from_the_next_larger_and_not_from_none():
    x = drawn(Poisson(), 4)
    found = select(x, Poisson(), [1, 2], holdout="entries", method="exact", folds=2, tolerance=1e-5)
    split = next(holdout.entries_without(Rows(x), 2, 0))
    cold = refine(fit(x, Poisson(), 1, expand_at="null"), split.train(), tolerance=1e-5)
    score = holdout.score_of(cold.model, split, "log_likelihood", True, None)
    np.testing.assert_allclose(found.fold_scores[0, 0], score, atol=2e-3)


# What is held out -------------------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_every_row_is_held_out_once_with_all_that_it_brings():
    x = np.arange(22.0).reshape(11, 2)
    weight = np.array([0.0, *range(1, 11)])
    rows = Rows(x, offset=x[:, 0], weight=weight, covariates=x[:1, :1], missing=x > 20)
    splits = [*holdout.rows_without(rows, 3, 0)]
    held = np.concatenate([split.asked.x[:, 0] for split in splits])
    assert sorted(held) == sorted(x[1:, 0])
    for split in splits:
        assert sorted([*split.asked.x[:, 0], *split.train().x[:, 0]]) == sorted(x[1:, 0])
        assert split.asked.num_rows in (3, 4)
        np.testing.assert_array_equal(split.asked.offset[:, 0], split.asked.x[:, 0])
        np.testing.assert_array_equal(split.size, split.asked.x[:, 0] / 2)
        np.testing.assert_array_equal(split.asked.missing, split.asked.x > 20)
        assert split.asked.covariates.shape == (1, 1)
    again = [*holdout.rows_without(rows, 3, 0)][1].asked.x
    np.testing.assert_array_equal(splits[1].asked.x, again)
    assert not np.array_equal([*holdout.rows_without(rows, 3, 1)][1].asked.x, again)


@pytest.mark.any_precision
def test_every_observed_entry_is_held_out_once_and_every_column_alike():
    rng = np.random.default_rng(0)
    missing = rng.uniform(size=(31, 4)) < 0.2
    rows = Rows(rng.normal(size=(31, 4)), missing=missing)
    splits = [*holdout.entries_without(rows, 3, 0)]
    held = np.stack([~split.asked.missing for split in splits])
    np.testing.assert_array_equal(held.sum(axis=0), ~missing)
    for split, mine in zip(splits, held, strict=True):
        np.testing.assert_array_equal(split.train().missing, missing | mine)
        np.testing.assert_array_equal(split.size, mine.sum(axis=1))
    counts = held.sum(axis=1)
    assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all()


@pytest.mark.any_precision
def test_weights_count_and_rows_without_weight_are_not_there():
    x = drawn(Gaussian(), 0)
    weight = np.where(np.arange(len(x)) < 200, 1.0, 0.0)
    outlier = np.where(weight[:, None] > 0, x, 1e3)
    found = select(Rows(outlier, weight=weight), Gaussian(), [1, 2])
    plain = select(x[:200], Gaussian(), [1, 2])
    np.testing.assert_allclose(found.table.score, plain.table.score, rtol=1e-5)
    assert abs(select(x, Gaussian(), [1, 2]).table.score - plain.table.score).max() > 1e-3


# The rest of what rows bring, and of families ---------------------------------------------------------------


@pytest.mark.any_precision
def test_rows_bring_what_they_bring():
    rng = np.random.default_rng(0)
    binary, real, counts = drawn(Bernoulli(), 0, 90, 4), drawn(Gaussian(), 0, 90, 4), drawn(Poisson(), 0, 90, 4)
    c = rng.normal(size=(90, 1))
    trials = rng.integers(1, 5, size=(90, 4)).astype(float)
    mixed = Mixed([(Bernoulli(), [0, 1, 2, 3]), (Gaussian(), [4, 5, 6, 7])])
    cases = [
        (Rows(real, covariates=c, offset=c[:, 0]), Gaussian(), {}),
        (Rows(trials * binary, trials=trials), Binomial(None), {}),
        (np.hstack([binary, real]), mixed, {"dispersion": mixed.columnwise([1.0, 0.5])}),
    ]
    ascent = {"method": "exact", "tolerance": 0.1}
    cases = [(x, family, options, [1]) for x, family, options in cases]
    cases.append((Rows(counts + 0.5, offset=c[:, 0]), Gamma(), ascent, [0]))
    for x, family, options, units in cases:
        found = select(x, family, units, folds=2, **options)
        assert np.isfinite(found.table.score).all(), family


@pytest.mark.any_precision
def test_a_closed_form_that_fails_is_no_choice_and_says_so():
    x = np.round(np.exp(drawn(Gaussian(), 0, 60, 4) * 2 + 3))
    with pytest.raises(ValueError, match="latent_dims: no model gives what is held out a finite score; try"):
        select(x.astype(np.float32), Poisson(), [2], folds=2)
    table = table_of([Choice(0, 1.0), Choice(1, 1.0)], np.array([[-1.0, -2.0], [-np.inf, np.nan]]))
    assert Selection(table, np.zeros((2, 2)), "nats", "").best == Selection(table, None, "", "").one_standard_error
    np.testing.assert_array_equal(table.below, [0.0, np.inf])


# Arguments --------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"holdout": "entries"},
            r'method: with holdout="entries" .* got "?\'?closed-form.*no place for a missing entry',
        ),
        ({"expand_at": "null", "method": "exact"}, 'expand_at: method "exact" expands nowhere, so it takes none, got'),
        ({"holdout": "entries", "method": "tightened"}, 'method: with holdout="entries"'),
        (
            {"holdout": "entries", "method": "exact", "folds": 50},
            "folds: column 0 has 40 entries, expected at le",
        ),
        ({"folds": 41}, "folds: expected no more than the 40 rows, got 41"),
        ({"x": iter([np.ones((3, 2))])}, "x: select divides the rows at random"),
        ({"x": Rows(np.ones((40, 3)), missing=np.eye(40, 3) > 0)}, "missing"),
        ({"betas": [1.0, -1.0]}, r"betas: .* got -1 at \[1\]"),
        ({"family": Poisson(), "method": "tightened"}, "family|method"),
        ({"family": Gamma()}, "dispersion"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    arguments = {"x": np.ones((40, 3)), "family": Bernoulli(), "latent_dims": [1], **options}
    with pytest.raises((TypeError, ValueError), match=message):
        select(arguments.pop("x"), arguments.pop("family"), arguments.pop("latent_dims"), **arguments)


@pytest.mark.any_precision
def test_a_bar_shows_every_point_and_fold(capsys):
    select(drawn(Gaussian(), 0, 40, 4), Gaussian(), [0, 1], folds=3, progress=True)
    shown = capsys.readouterr().err
    assert re.search(r"select closed-form: 100%.*6/6 .*nats per row", shown)


def test_an_error_in_a_fold_says_so():
    x, rare = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20.0)[:, None] == 7
    rows = Rows(x, covariates=rare)
    fit(rows, Gaussian(), 1)
    with pytest.raises(ValueError, match="covariates: column 0 does not vary") as caught:
        select(rows, Gaussian(), [0, 1], folds=4)
    assert "without fold" in caught.value.__notes__[0]
    with pytest.raises(ValueError, match="seed: expected an integer below"):
        select(x, Gaussian(), [0], seed=2**70)


@pytest.mark.any_precision
def test_a_dispersion_that_is_wanting_is_no_fault_of_a_fold():
    x = np.exp(drawn(Gaussian(), 0, 40, 4))
    with pytest.raises(ValueError, match=r"dispersion: Gamma\(\) needs one, got None") as caught:
        select(x, Gamma(), [0, 1])
    assert not getattr(caught.value, "__notes__", [])
