"""The table of a selection, its choices and its words; the density of an entry that it scores by."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.stats

from glmvae.families import Binomial, Gamma, Gaussian, NegativeBinomial, Poisson
from glmvae.selection.predictive import log_predictive
from glmvae.selection.selected import Choice, Selection, table_of

PREDICTIVE = jax.jit(log_predictive)

# The density of an entry ------------------------------------------------------------------------------------


@pytest.mark.float64
@pytest.mark.parametrize("family", [Gaussian(), Binomial(9), Poisson(), NegativeBinomial(2.0), Gamma()], ids=repr)
def test_the_predictive_density_is_the_integral(family):
    x = np.array([[1.0, 0.0, 1.0, 5.0, 2.0]])
    x = np.minimum(x, float(family.support.upper)) + (0.5 if isinstance(family, Gamma) else 0.0)
    phi = 0.5 if family.fixed_dispersion is None else 1.0
    mean, variance = np.array([[0.3, -1.0, 2.0, 0.0, -2.0]]), np.array([[1e-12, 0.1, 1.0, 4.0, 9.0]])
    found = np.asarray(PREDICTIVE(family, x, mean, variance, phi))
    u = np.linspace(-12, 12, 60_001)[:, None]
    log_p = np.asarray(family.log_prob(x, mean + np.sqrt(variance) * u, phi))
    wanted = np.log(np.sum(np.exp(log_p) * scipy.stats.norm.pdf(u), axis=0) * (u[1] - u[0]))
    np.testing.assert_allclose(found[0], wanted, atol=1e-12 if isinstance(family, Gaussian) else 1e-4)
    expected = np.asarray(family.expected_log_prob(x, mean, variance, phi))
    assert (found[0, 1:] > expected[0, 1:] + 1e-3).all()


@pytest.mark.parametrize("variance", [0.0, 1e-8, 0.3])
def test_columns_far_from_zero_lose_no_digits_but_their_own(variance, dtype):
    mean = np.array([[0.0, 10.0, 100.0, 2000.0, 1e4]], dtype)
    found = np.asarray(PREDICTIVE(Gaussian(), mean + 1, mean, np.full_like(mean, variance), 1.0), float)
    wanted = scipy.stats.norm.logpdf(1.0, 0.0, np.sqrt(1 + variance))
    eps = np.finfo(dtype).eps  # of a sum of 24, and of x - eta
    assert np.all(np.abs(found - wanted) < 24 * eps + eps * mean)


@pytest.mark.parametrize("unit", [1e-8, 1e8])
def test_the_density_of_a_known_predictor_is_free_of_the_unit(unit, dtype):
    mean, variance = np.array([[0.0, 1.0, -2.0]], dtype), np.array([[0.0, 1e-6, 0.5]], dtype)
    plain = np.asarray(PREDICTIVE(Gaussian(), mean + 1, mean, variance, np.asarray(0.3, dtype)))
    scale = np.asarray(unit, dtype)
    other = PREDICTIVE(
        Gaussian(), scale * (mean + 1), scale * mean, scale**2 * variance, scale**2 * np.asarray(0.3, dtype)
    )
    np.testing.assert_allclose(np.asarray(other, float) + np.log(unit), plain, atol=100 * np.finfo(dtype).eps)


@pytest.mark.float64
def test_rare_entries_under_a_wide_predictor_are_within_1e_4():
    for family, phi, variance, mean, x in (
        (Gamma(), 5.0, 8.9, -1.2527, 35.673),
        (Gamma(), 1.0, 8.9, 0.3544, 1.94e-4),
        (Poisson(), 1.0, 8.9, -2.6549, 0.0),
    ):
        found = float(PREDICTIVE(family, np.array([[x]]), np.array([[mean]]), np.array([[variance]]), phi)[0, 0])
        u = np.linspace(-40, 40, 100_001)[:, None]
        log_p = np.asarray(family.log_prob(np.array([x]), mean + np.sqrt(variance) * u, phi)) + scipy.stats.norm.logpdf(
            u
        )
        assert abs(found - np.logaddexp.reduce(log_p[:, 0]) - np.log(80 / 100_000)) < 1e-4


@pytest.mark.float64
def test_a_count_of_thousands_is_a_spike_that_is_found():
    x, mean, variance = jnp.array([[20_000.0]]), jnp.array([[7.0]]), jnp.array([[1.0]])
    found = float(PREDICTIVE(Poisson(), x, mean, variance, 1.0)[0, 0])
    log_rate = np.linspace(9.7, 10.1, 40_001)
    density = scipy.stats.poisson.pmf(20_000, np.exp(log_rate)) * scipy.stats.norm.pdf(log_rate, 7.0, 1.0)
    assert abs(found - np.log(density.sum() * 1e-5)) < 1e-6
    nodes, weights = np.polynomial.hermite.hermgauss(48)  # around the mean: they miss it
    rule = np.log(
        np.sum(weights * scipy.stats.poisson.pmf(20_000, np.exp(7 + np.sqrt(2) * nodes))) / np.sqrt(np.pi) + 1e-300
    )
    assert abs(found - rule) > 1


# The choice, in words ---------------------------------------------------------------------------------------

POINTS = [Choice(k, beta) for k in (1, 2, 3) for beta in (1.0, 2.0)]
SCORES = np.array([[-9.0, -9.2], [-9.1, -9.3], [-5.1, -6.0], [-5.4, -6.2], [-5.0, -6.05], [-5.2, -6.3]])


def chosen(scores=SCORES, points=POINTS):
    return Selection(table_of(points, scores), scores, "nats per row", "by hand")


@pytest.mark.any_precision
def test_the_rule_of_one_standard_error_is_of_differences():
    found = chosen()
    assert found.best == Choice(3, 1.0) == (found.latent_dim, found.beta)
    np.testing.assert_allclose(found.table.below[2], 0.025)
    np.testing.assert_allclose(found.table.standard_error_below[2], np.std([0.1, -0.05], ddof=1) / np.sqrt(2))
    assert found.one_standard_error == Choice(2, 1.0)
    assert "Take 2 units at beta = 1: the best score, of 3 units at beta = 1, is 0.025 nats per row above" in repr(
        found
    )
    # the standard error of the scores themselves, 0.5, tells how folds differ and would let nearly anything pass
    np.testing.assert_allclose(found.table.standard_error[4], np.std([5.0, 6.05], ddof=1) / np.sqrt(2))
    apart = chosen(SCORES + 10 * np.array([1.0, -1.0]))
    assert apart.one_standard_error == Choice(2, 1.0)
    np.testing.assert_allclose(apart.table.standard_error_below, found.table.standard_error_below)


@pytest.mark.any_precision
def test_the_table_is_one_of_pandas_too():
    table = chosen().table
    frame = pd.DataFrame(table)
    assert list(frame) == ["latent_dim", "beta", "score", "standard_error", "below", "standard_error_below"]
    assert [*zip(frame.latent_dim, frame.beta, strict=True)] == POINTS
    for name in frame:
        np.testing.assert_array_equal(frame[name], getattr(table, name))
    doubled = jax.tree.map(lambda column: 2 * column, chosen()).table  # a pytree of columns still
    np.testing.assert_array_equal(doubled.score, 2 * table.score)
    assert repr(pickle.loads(pickle.dumps(table))) == repr(copy.deepcopy(table)) == repr(table)
    with pytest.raises(AttributeError, match="Table has no column 'gain', only latent_dim, beta, score"):
        _ = table.gain


@pytest.mark.any_precision
def test_it_says_what_to_do():
    most = chosen(SCORES + 5 * (np.arange(6) == 4)[:, None]).recommendation()
    assert "It is the most that was tried: try more." in most
    all_columns = dataclasses.replace(chosen(SCORES + 5 * (np.arange(6) == 4)[:, None]), num_columns=POINTS[4][0])
    assert "try more" not in all_columns.recommendation()
    assert "pays" not in chosen(SCORES[:1], [Choice(0, 1.0)]).recommendation()
    first = chosen(SCORES[:4], POINTS[:4]).recommendation()
    assert first.startswith("Take 2 units at beta = 1: the best score, and no smaller number comes within a standard")
    assert chosen(SCORES[:2], POINTS[:2]).recommendation() == "Take beta = 1, the best for 1 unit."
    assert repr(chosen()).splitlines()[:4] == [
        "Selection: by hand, nats per row",
        "  units      beta       score    (s.e.)  below best    (s.e.)",
        "      1         1        -9.1       0.1        3.57      0.43",
        "      1         2        -9.2       0.1        3.68      0.42",
    ]
    assert [line.split("  ")[-1].split()[1:] for line in repr(chosen()).splitlines()[4:8:2]] == [
        ["one", "standard", "error"],
        ["best"],
    ]
