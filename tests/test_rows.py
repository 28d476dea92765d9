"""Rows: one rule for every field, checked when they are made."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from tables import all_refused

from glmvae import Affine, AffineModel, Rows, best_posterior, diagnose, elbo_exact, refine
from glmvae.families import Binomial, Gamma, Gaussian, Mixed, NegativeBinomial, Poisson
from glmvae.rows import FIELDS, as_rows, check_rows, entered, observed, row_sum

N, D = 6, 3
X = np.arange(1.0, 1 + N * D).reshape(N, D)
COLUMN, ROW, FULL, ONE = np.ones((1, D)), np.ones((N, 1)), np.ones((N, D)), np.ones(N)
NONE = np.zeros((N, D), bool)


def at(shape, index, value, dtype=float):
    """Ones, or False, with one value elsewhere."""
    out = np.ones(shape, dtype) if dtype is not bool else np.zeros(shape, bool)
    out[index] = value
    return out


# The leading axis is N or 1 ---------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_every_field_has_a_leading_axis_of_n_or_1():
    kept = {
        "trials": [(FULL, (N, D)), (COLUMN, (1, D)), (ROW, (N, 1))],
        "offset": [(ONE, (N, 1)), (ROW, (N, 1)), (FULL, (N, D)), (COLUMN, (1, D))],
        "covariates": [(np.ones((N, 2)), (N, 2)), (np.ones((1, 2)), (1, 2)), (np.ones((N, 0)), (N, 0))],
        "missing": [(NONE, (N, D)), (NONE[:1], (1, D))],
        "weight": [(ONE, (N,))],
    }
    assert set(kept) == set(FIELDS) - {"x"}
    for name, cases in kept.items():
        for value, shape in cases:
            rows = Rows(X, **{name: value})
            assert getattr(rows, name).shape == shape, name
            assert all(leaf.shape[0] in (1, N) for leaf in jax.tree.leaves(rows)), name
            assert (rows.num_rows, rows.num_columns) == (N, D)
    assert Rows(X, covariates=np.ones((N, 2))).num_covariates == 2
    assert Rows(X).num_covariates == 0
    assert as_rows(rows) is rows
    assert as_rows(X).x is X


@pytest.mark.any_precision
def test_another_shape_or_value_is_refused_by_name():
    square = np.ones((D, D))
    all_refused(
        [
            (lambda: Rows(np.ones(3)), ValueError, r"x: expected 2 dimensions .*got shape \(3,\)"),
            (lambda: Rows(np.ones((0, 3))), ValueError, r"x: expected at least one row and one column.*\(0, 3\)"),
            (lambda: Rows(np.ones((3, 0))), ValueError, r"x: expected at least one row and one column.*\(3, 0\)"),
            (lambda: Rows([[1.0], [2.0, 3.0]]), TypeError, "x: expected an array of numbers, got rows of unequal"),
            (lambda: Rows("data"), TypeError, "x: expected an array of numbers, got str"),
            (lambda: Rows(np.array([["a"]])), TypeError, "x: expected an array of numbers, got dtype"),
            (lambda: Rows(X, trials=np.ones(D)), ValueError, r"trials: expected shape \(6, 3\), .*got shape \(3,\)"),
            (lambda: Rows(X, trials=-FULL), ValueError, r"trials: expected no number below 0, got -1 at \[0, 0\]"),
            (lambda: Rows(X, trials=at((N, D), (2, 1), np.nan)), ValueError, r"trials: .*nan at \[2, 1\]"),
            (lambda: Rows(X, offset=np.ones(D)), ValueError, r"offset: .*\(3,\); for one a column, offset\[None\]"),
            (lambda: Rows(X, offset=np.ones((N, 2))), ValueError, r"offset: expected shape .*got shape \(6, 2\)"),
            (lambda: Rows(X, offset=at((N, D), (1, 2), np.inf)), ValueError, r"offset: .*inf at \[1, 2\]"),
            (lambda: Rows(X, offset="much"), TypeError, "offset: expected an array of numbers, got str"),
            (lambda: Rows(X, covariates=ONE), ValueError, r"covariates: expected shape \(6, p\), got shape \(6,\)"),
            (lambda: Rows(X, covariates=square), ValueError, r"covariates: expected shape \(6, p\), .*\(3, 3\)"),
            (lambda: Rows(X, covariates=at((N, 2), (3, 0), np.nan)), ValueError, r"covariates: .*nan at \[3, 0\]"),
            (lambda: Rows(X, missing=FULL), TypeError, "missing: expected an array of booleans, got dtype float64"),
            (lambda: Rows(X, missing=NONE[:, :2]), ValueError, r"missing: .*\(6, 3\) or \(1, 3\), got shape \(6, 2\)"),
            (lambda: Rows(X, missing=NONE[0]), ValueError, r"missing: expected shape .*got shape \(3,\)"),
            (lambda: Rows(X, weight=ROW), ValueError, r"weight: expected shape \(6,\), one a row, got shape \(6, 1\)"),
            (lambda: Rows(X, weight=ONE[:2]), ValueError, r"weight: expected shape \(6,\), one a row, .*\(2,\)"),
            (lambda: Rows(X, weight=at(N, 4, -1)), ValueError, r"weight: .*at \[4\]"),
            (lambda: Rows(X, weight=at(N, 4, np.nan)), ValueError, r"weight: .*nan at \[4\]"),
            (lambda: Rows(X, weight=0 * ONE), ValueError, "weight: expected a positive sum, got 0"),
        ]
    )


@pytest.mark.any_precision
def test_tables_beside_x_have_its_columns_in_its_order():
    x, names = pd.DataFrame(X, columns=[*"abc"]), [*"bac"]
    order, wild = r': expected the columns of x, "a" at 0, got "b"$', x.mask(x == X[2, 1])
    kept = Rows(x, trials=x, missing=x > 2, offset=x.to_numpy())
    np.testing.assert_array_equal(kept.trials, X)
    one = Rows(x, trials=x.add_suffix("_trials"), offset=x[["b"]])  # other names stand where they stand
    assert (one.trials.shape, one.offset.shape) == ((N, D), (N, 1))
    Rows(X, trials=x[names])  # x has none
    all_refused(
        [
            (lambda: Rows(x, missing=x[names] > 2), ValueError, "^missing" + order),
            (lambda: Rows(x, trials=x[names]), ValueError, "^trials" + order),
            (lambda: Rows(x, offset=x[names]), ValueError, "^offset" + order),
            (lambda: Rows(X, covariates=wild), ValueError, r'^covariates: .*got nan at \[2, 1\] \(column "b"\)$'),
            (lambda: Rows(X, offset=wild), ValueError, r'^offset: .*got nan at \[2, 1\] \(column "b"\)$'),
        ]
    )


# What is missing --------------------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_a_mask_is_missing_entries():
    hidden = at((N, D), (1, 2), True, bool)
    masked = Rows(np.ma.array(X, mask=hidden))
    np.testing.assert_array_equal(masked.missing, hidden)
    assert not isinstance(masked.x, np.ma.MaskedArray)
    both = Rows(np.ma.array(X, mask=hidden), missing=at((N, D), (4, 0), True, bool))
    assert np.argwhere(both.missing).tolist() == [[1, 2], [4, 0]]
    shared = Rows(np.ma.array(X, mask=hidden), missing=at((1, D), (0, 1), True, bool))
    assert shared.missing.sum() == N + 1
    assert Rows(np.ma.array(X, mask=NONE)).missing is None
    assert Rows(np.ma.array(X)).missing is None


@pytest.mark.any_precision
def test_no_trials_are_a_missing_entry_and_an_offset_there_may_be_anything():
    none = at((N, D), (2, 1), 0)
    rows = Rows(X, trials=none, missing=at((N, D), (0, 0), True, bool))
    assert np.argwhere(rows.missing).tolist() == [[0, 0], [2, 1]]
    assert rows.trials.min() == 1  # in no formula are there 0 trials
    assert none[2, 1] == 0  # and what came is as it was
    of_a_row = Rows(X, trials=at((N, 1), (3, 0), 0))
    assert np.argwhere(of_a_row.missing)[:, 0].tolist() == [3, 3, 3]
    wild = at((N, D), (2, 1), -np.inf)
    np.testing.assert_array_equal(Rows(X, trials=none, offset=wild).offset, at((N, D), (2, 1), 0))
    shared = Rows(X, missing=at((1, D), (0, 1), True, bool), offset=at((1, D), (0, 1), np.nan))
    assert np.isfinite(shared.offset).all()
    with pytest.raises(ValueError, match=r"offset: .*-inf at \[2, 1\]"):
        Rows(X, offset=wild)
    # as a table has it whose counts are missing with their trials
    unknown = at((N, D), (2, 1), np.nan)
    rows = Rows(np.where(np.isnan(unknown), np.nan, X), trials=unknown, missing=np.isnan(unknown))
    assert np.argwhere(rows.missing).tolist() == [[2, 1]]
    np.testing.assert_array_equal(rows.trials, at((N, D), (2, 1), 1))
    with pytest.raises(ValueError, match=r"trials: .*nan at \[2, 1\]"):
        Rows(X, trials=unknown, missing=at((N, D), (0, 0), True, bool))


# Where they go ----------------------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_arrays_stay_where_they_are(tmp_path):
    file = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=(N, D))
    for x in (file, X, jnp.asarray(X), X.astype(bool), X.astype(np.float16)):
        rows = Rows(x)
        assert rows.x.dtype == x.dtype
        assert np.shares_memory(np.asarray(rows.x), np.asarray(x))


def test_what_is_computed_floats(dtype):
    assert Rows(X.astype("float32")).dtype == np.float32
    assert Rows(X.astype("int64")).dtype == Rows(X > 3).dtype == Rows(X).dtype == dtype
    assert Rows(X.astype("float16")).dtype == dtype
    inside = entered(Rows(X > 3, offset=ONE.astype("float16"), missing=NONE), None, np.float32)
    assert {name: getattr(inside, name).dtype.name for name in ("x", "offset", "weight", "missing")} == {
        "x": "float32",
        "offset": "float32",
        "weight": "float32",
        "missing": "bool",
    }


@pytest.mark.any_precision
def test_they_are_a_pytree_that_is_rebuilt_without_checks():
    rows = Rows(X, offset=ROW, weight=ONE)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(rows)]
    assert paths == [".x", ".offset", ".weight"]
    twice = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), rows)
    assert twice.num_rows == 2 * N
    assert repr(twice) == "Rows(x=(12, 3), offset=(12, 1), weight=(12,))"
    assert jax.tree.map(lambda leaf: None, rows).x is None
    sums = jax.jit(lambda rows: jnp.sum(rows.x * rows.weight[:, None] + rows.offset))(rows)
    assert float(sums) == X.sum() + N * D
    # Values are not looked at under a transformation, shapes are
    jax.jit(lambda x: Rows(x, weight=x[:, 0]).x)(-X)
    with pytest.raises(ValueError, match="weight: expected shape"):
        jax.jit(lambda x: Rows(x, weight=x).x)(X)


# As formulas see them ---------------------------------------------------------------------------------------

MIXED = Mixed([(Binomial(None), [0]), (Gaussian(), [1]), (Gamma(), [2])])


@pytest.mark.any_precision
def test_missing_entries_hold_a_value_of_the_support():
    hidden = at((N, D), (1, slice(None)), True, bool)
    garbage = np.where(hidden, np.nan, 1.0)
    wild = np.where(hidden, np.inf, 1)
    for family in (Binomial(4), Binomial(None), Poisson(), Gamma(), NegativeBinomial(2.0), Gaussian(), MIXED):
        trials = 3 * FULL if family.needs_trials else None
        rows = entered(Rows(garbage, missing=hidden, trials=trials, offset=wild), family, "float32")
        assert bool(jnp.all(family.for_rows(rows).support.contains(rows.x))), family
        np.testing.assert_array_equal(rows.x[~hidden], 1.0)
        np.testing.assert_array_equal(rows.offset, np.where(hidden, 0, 1))
        np.testing.assert_array_equal(rows.weight, 1.0)


@pytest.mark.any_precision
def test_sums_leave_out_what_is_missing():
    hidden = at((N, D), (1, 2), True, bool)
    value = np.where(hidden, np.nan, X)
    np.testing.assert_array_equal(row_sum(Rows(X, missing=hidden), value), np.nansum(value, axis=1))
    np.testing.assert_array_equal(observed(Rows(X, missing=hidden), value), np.nan_to_num(value))
    shared = at((1, D), (0, 1), True, bool)
    np.testing.assert_array_equal(row_sum(Rows(X, missing=shared), X), X[:, [0, 2]].sum(axis=1))
    np.testing.assert_array_equal(row_sum(Rows(X), COLUMN), D)  # one value a column, in every row


@pytest.mark.any_precision
def test_rows_bring_what_the_family_and_the_decoder_need_and_no_more():
    trials = Rows(X, trials=FULL)
    check_rows(trials, Binomial(None), 0)
    check_rows(trials, MIXED)
    check_rows(Rows(X, covariates=np.ones((N, 2))), Poisson(), 2)
    check_rows(Rows(X, covariates=np.ones((N, 2))), Poisson())  # any number
    none, hidden, idle = at((N, D), (4, 0), 0), at((N, D), (3, 2), True, bool), at((N, D), (3, 2), 0)
    check_rows(Rows(X, trials=none), MIXED)  # a column of the binomial
    check_rows(Rows(X, trials=idle, missing=hidden), MIXED)  # which hides nothing
    unknown = r"trials: expected 1 in a column of Gamma\(\), which takes none from the rows, got 0 at \[3, 2\]"
    named = Rows(pd.DataFrame(X, columns=[*"abc"]), trials=idle)
    of_four, one = NegativeBinomial(np.ones(4)), Rows(X, covariates=np.ones((N, 1)))
    wanting, of_the_decoder = r"Rows\(x, trials=\.\.\.\), got none", "covariates: the decoder has coefficients for"
    all_refused(
        [
            (lambda: check_rows(Rows(X), Binomial(None)), ValueError, r"x: Binomial\(trials=None\) .*" + wanting),
            (lambda: check_rows(Rows(X), MIXED), ValueError, "x: Mixed.*" + wanting),
            (lambda: check_rows(trials, Binomial(4)), ValueError, r"trials: .* takes none.*Binomial\(None\) does"),
            (lambda: check_rows(trials, Poisson()), ValueError, r"trials: Poisson\(\) takes none"),
            (lambda: check_rows(Rows(X, trials=idle), MIXED), ValueError, unknown + "; what is missing there"),
            (lambda: check_rows(named.map(np.asarray), MIXED), ValueError, unknown),
            (lambda: check_rows(named, MIXED), ValueError, unknown + r' \(column "c"\)'),
            (lambda: check_rows(Rows(X), of_four), ValueError, r"x: expected 4 columns.*got shape \(6, 3\)"),
            (lambda: check_rows(Rows(X), Poisson(), 2), ValueError, of_the_decoder + " 2, the rows bring 0"),
            (lambda: check_rows(one, Poisson(), 0), ValueError, of_the_decoder + " 0, the rows bring 1"),
        ]
    )


# The dtype of a field ---------------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_fields_of_zeros_and_ones_are_the_same_in_any_dtype():
    """Integers, booleans and half precision hold them exactly, and nothing may be cast back to these on the way."""
    rng = np.random.default_rng(0)
    shapes = {"x": (60, 3), "offset": (60, 3), "covariates": (60, 1), "weight": (60,)}
    fields = {name: rng.integers(0, 2, shape) for name, shape in shapes.items()} | {"trials": np.ones((60, 3))}
    missing, weight = rng.uniform(size=(60, 3)) < 0.1, fields["weight"]
    model = AffineModel(Affine(np.full((3, 1), 0.1, "float32"), np.zeros(3, "float32")), Binomial(None))

    def found(dtype):
        rows = Rows(**{name: field.astype(dtype) for name, field in fields.items()}, missing=missing)
        with jax.enable_x64(False):
            best = refine(model, rows, max_rounds=5)
            own = elbo_exact(best, rows, best_posterior(best, rows))
            np.testing.assert_allclose(weight @ own / weight.sum(), best.elbo, rtol=1e-4)
            return [best.elbo, best.model.coefficients, diagnose(rows, Binomial(None), 1).collapse_onset]

    expected = found("float32")
    assert np.abs(expected[1]).max() > 0.1  # or the covariates would say nothing
    for dtype in ("int8", "bool", "float16"):
        for ours, right in zip(found(dtype), expected, strict=True):
            np.testing.assert_allclose(ours, right, rtol=1e-4, atol=1e-5, err_msg=dtype)
