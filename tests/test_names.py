"""Names of columns: kept from a table, shown beside an index, no part of a compiled program."""

import subprocess
import sys
from decimal import Decimal

import jax
import numpy as np
import pandas as pd
import pytest
from compilations import counted
from tables import all_refused

from glmvae import Rows, best_posterior, diagnose, fit, load, moments, posterior, refine, save, select, tighten
from glmvae.estimator import AffineVAE
from glmvae.families import Bernoulli, Gaussian, Mixed, Poisson
from glmvae.sources import as_source, require_alike

pytestmark = pytest.mark.any_precision

N = 40
RNG = np.random.default_rng(0)
TABLE = pd.DataFrame(
    {
        "smoker": RNG.random(N) < 0.4,
        "visits": RNG.poisson(2.0, N),
        "age": RNG.normal(size=N),
    }
)
NAMES = ("smoker", "visits", "age")
FAMILY = Mixed([(Bernoulli(), [0]), (Poisson(), [1]), (Gaussian(), [2])])


class Polars:
    """What polars shows of a table: lists of names and of dtypes, and an array, in which dates are numbers of days."""

    def __init__(self, table):
        self.columns = list(table.columns)
        self.dtypes = ["Date" if dtype.kind == "M" else "Float64" for dtype in table.dtypes]
        days = {name: table[name].astype("int64") for name in table.select_dtypes("datetime")}
        self._values = table.assign(**days).to_numpy()

    def __array__(self, dtype=None, copy=None):
        return self._values


class Arrow:
    """What pyarrow shows of a table: the columns themselves, their names apart, and an array of what has one."""

    def __init__(self, table):
        self.column_names = list(table.columns)
        self.columns = [ArrowColumn(table[name]) for name in table]

    def __array__(self, dtype=None, copy=None):
        return np.column_stack([np.asarray(column.to_pylist()) for column in self.columns])


class ArrowColumn:
    def __init__(self, values):
        self.to_pylist, self.type = values.to_list, "timestamp[ns]" if values.dtype.kind == "M" else "double"


class AnnData:
    """What an AnnData shows."""

    obsm = ()

    def __init__(self, table):
        self.X = table.to_numpy(float)
        self.shape = self.X.shape


def changed(column, row, value, dtype=float):
    table = TABLE.astype({column: dtype})
    table.loc[row, column] = value
    return table


def test_a_table_brings_its_names():
    for table in (TABLE, Polars(TABLE), Arrow(TABLE)):
        rows = Rows(table)
        assert rows.column_names == NAMES
        assert rows.x.dtype == np.float64
        np.testing.assert_array_equal(rows.x, TABLE.astype(float).to_numpy())
        assert as_source(table).column_names == as_source(rows).column_names == NAMES
        assert as_source(lambda table=table: [table, table]).column_names == NAMES
    assert Rows(TABLE[["smoker"]]).x.dtype == bool
    for plain in (TABLE.to_numpy(float), pd.DataFrame(np.ones((4, 2)))):  # 0, 1 only count the columns
        assert Rows(plain).column_names is None
        assert as_source(plain).column_names is None
    assert Rows(pd.DataFrame({2001: [1.0], 2002: [2.0]})).column_names == ("2001", "2002")


def test_rows_rebuilt_have_no_names():
    rows = Rows(TABLE)
    leaves, structure = jax.tree.flatten(rows)
    assert structure == jax.tree.structure(Rows(rows.x))
    assert jax.tree.unflatten(structure, leaves).column_names is None
    assert rows.map(np.asarray).column_names is None
    assert rows.replace(weight=np.ones(N)).column_names is None


def test_names_compile_nothing():
    x = TABLE.to_numpy(np.float64)
    fit(x, FAMILY, 1, dispersion=1.0)
    with counted() as found:
        fit(TABLE, FAMILY, 1, dispersion=1.0)
    assert found.number == 0
    with counted() as found:  # the control: another width does
        moments(np.ones((N, 19)), family=Poisson())
    assert found.number > 0


def test_names_stand_beside_the_index():
    negative, grey = changed("visits", 3, -1.0), changed("smoker", 5, 2.0)
    lost, never = changed("age", 7, np.nan), np.isin(np.arange(3), [1])[None]
    huge = TABLE.astype({"age": float}).assign(age=np.where(np.arange(N) % 2, 1e200, -1e200))
    half = [TABLE, TABLE[["visits", "smoker", "age"]]]
    all_refused(
        [
            (
                lambda: moments(negative, family=FAMILY),
                ValueError,
                r'of Poisson\(\), got -1 at \[3, 1\] \(column "visits"\)',
            ),
            (lambda: moments(Polars(negative), family=FAMILY), ValueError, r'\[3, 1\] \(column "visits"\)$'),
            (lambda: fit(grey, FAMILY, 1, dispersion=1.0), ValueError, r'got 2 at \[5, 0\] \(column "smoker"\)$'),
            (lambda: moments(lost), ValueError, r'nan at \[7, 2\] \(column "age"\); .*Rows\(x, missing='),
            (lambda: moments(lambda: [TABLE, lost]), ValueError, r'nan at \[47, 2\] \(column "age"\)'),
            (lambda: moments(lost.to_numpy(float)), ValueError, r"nan at \[7, 2\]$"),  # the control: no names
            (lambda: jax.jit(lambda z: moments(lost).mean + z)(0.0), ValueError, r'\[7, 2\] \(column "age"\)'),
            (
                lambda: moments(lambda: half),
                ValueError,
                r'the columns of batch 0 in batch 1, "smoker" at 0, got "visits"',
            ),
            (lambda: moments(huge), ValueError, r'overflows in float\d+; .*\(column 2, "age", goes from'),
            (lambda: _refined(Rows(TABLE, missing=never)), ValueError, r'none at \[1\] \(column "visits"\)'),
            (
                lambda: diagnose(Rows(TABLE, missing=never), FAMILY, 1, dispersion=1.0),
                ValueError,
                r'\(column "visits"\)',
            ),
        ]
    )


def _refined(rows):
    return refine(fit(TABLE, FAMILY, 1, dispersion=1.0), rows)


def test_columns_that_are_no_numbers_are_named():
    words = TABLE.assign(town=["Oslo", "Bergen"] * (N // 2))
    days = pd.DataFrame({"day": pd.date_range("2020-01-01", periods=N)})
    mostly = TABLE.astype(object)
    mostly.loc[4, "visits"] = "many"
    all_refused(
        [
            (lambda: Rows(words), TypeError, r'^x: .*got str in column "town"; encode it'),
            (lambda: fit(words, Poisson(), 1), TypeError, r'column "town"'),
            (lambda: Rows(words.astype("category")), TypeError, 'column "town"'),
            (lambda: Rows(mostly), TypeError, 'got str in column "visits"'),
            (lambda: Rows(days), TypeError, 'got datetime64.* in column "day"'),
            (lambda: Rows(Polars(TABLE.assign(day=days.day))), TypeError, 'got Date in column "day"'),
            (lambda: Rows(TABLE, covariates=words), TypeError, '^covariates: .*column "town"'),
            (lambda: Rows(Arrow(TABLE.assign(day=days.day))), TypeError, 'got timestamp.ns. in column "day"'),
            (lambda: Rows(np.array([["a"]])), TypeError, "x: expected an array of numbers, got dtype"),
        ]
    )


def test_what_holds_several_arrays_is_refused():
    all_refused(
        [
            (lambda: fit(AnnData(TABLE), Poisson(), 1), TypeError, r"^x: .*got AnnData; pass its \.X or one of its"),
            (lambda: AffineVAE(1).fit(AnnData(TABLE)), TypeError, r"^X: .*got AnnData; pass its \.X or one of its"),
        ]
    )


def test_a_table_may_call_its_columns_anything():
    for names in (["X", "obsm", "columns"], ["tocsr", "column_names", "dtypes"]):
        table = TABLE.set_axis(names, axis=1)
        assert Rows(table).column_names == tuple(names)
        assert list(AffineVAE(1, family="gaussian").fit(table).feature_names_in_) == names


def test_decimals_are_numbers():
    table = TABLE.assign(age=[Decimal(f"{age:.3f}") for age in TABLE.age])
    assert table.age.dtype == object
    np.testing.assert_array_equal(Rows(table).x, TABLE.assign(age=table.age.astype(float)).to_numpy(float))
    table.loc[3, "age"] = None
    with pytest.raises(ValueError, match=r'nan at \[3, 2\] \(column "age"\)'):
        moments(table)
    kept = table.drop(index=3)
    scores = [AffineVAE(1, family="gaussian").fit(x).score(x) for x in (kept, kept.astype(float))]
    assert scores[0] == scores[1]


def test_nullable_columns_are_numbers_and_what_they_lack_is_missing():
    table = TABLE.astype({"smoker": "boolean", "visits": "Int64", "age": "Float64"})
    np.testing.assert_array_equal(Rows(table).x, Rows(TABLE).x)
    table.loc[2, "visits"] = pd.NA
    with pytest.raises(ValueError, match=r'nan at \[2, 1\] \(column "visits"\); .*missing='):
        moments(table, family=FAMILY)
    rows = Rows(table, missing=table.isna())
    assert int(np.sum(rows.missing)) == 1
    found = refine(fit(TABLE, FAMILY, 1, dispersion=1.0), rows, max_rounds=3)
    assert np.isfinite(found.elbo)


def test_covariates_and_offsets_may_be_tables():
    rows = Rows(TABLE[["age"]], covariates=TABLE[["smoker", "visits"]], offset=TABLE["age"], missing=TABLE[["smoker"]])
    assert rows.covariates.shape == (N, 2)
    assert rows.offset.shape == (N, 1)
    assert rows.column_names == ("age",)


def test_a_diagnosis_names_columns():
    table = pd.DataFrame(RNG.integers(0, 2, (N, 4)), columns=["a", "b", "never", "d"]).assign(never=0)
    found = diagnose(table, Bernoulli(), 2)
    assert found.column_names == ("a", "b", "never", "d")
    assert '1 constant (2 "never"), 1 at an end of the support (2 "never")' in repr(found)
    plain = diagnose(table.to_numpy(), Bernoulli(), 2)  # the control
    assert plain.column_names is None
    assert "1 constant (2), 1 at" in repr(plain)
    doubled = jax.jit(lambda d: d._replace(beta=2 * d.beta))(found)  # names are no leaves
    assert doubled.column_names == found.column_names
    assert float(doubled.beta) == 2
    assert not any(isinstance(leaf, str) for leaf in jax.tree.leaves(found))


def test_a_column_of_no_numbers_is_named():
    for strange in ([1j, 2.0], ["tall", "small"]):
        with pytest.raises(TypeError, match=r'x: expected columns of numbers, got .* in column "z"'):
            Rows(pd.DataFrame({"height": [1.0, 2.0], "z": strange}))


def test_no_table_library_is_imported():
    program = (
        "import sys, glmvae; assert not {'pandas', 'polars', 'sklearn'} & {m.partition('.')[0] for m in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_optimum_keeps_the_names_and_refuses_others(tmp_path):
    table = pd.DataFrame(RNG.normal(size=(20, 3)), columns=["age", "income", "height"], dtype="float32")
    optimum = fit(table, Gaussian(), 1)
    refined = refine(fit(table.to_numpy(), Gaussian(), 1, dispersion=1.0), table, max_rounds=2)
    save(tmp_path / "kept.npz", optimum)
    for found in (optimum, refined, load(tmp_path / "kept.npz")):
        assert found.column_names == ("age", "income", "height")
        assert "\n  columns      age, income, height" in repr(found)
        for call in (posterior, best_posterior, refine):
            with pytest.raises(ValueError, match='x: expected the columns of the optimum, "age" at 0, got "height"'):
                call(found, table[["height", "income", "age"]])
        assert best_posterior(found, table.to_numpy()).mean.shape == (20, 1)  # without names there is nothing to hold
    assert fit(moments(table), Gaussian(), 1).column_names is None
    assert jax.tree.map(lambda leaf: leaf, optimum).column_names == optimum.column_names


def test_covariates_in_another_order_are_refused(tmp_path):
    known = pd.DataFrame(RNG.normal(size=(30, 2)), columns=["dose", "batch"])
    x = known.to_numpy() @ np.array([[1.0, 2.0, -1.0], [0.0, 1.0, 3.0]]) + RNG.normal(size=(30, 3))
    rows, moved = Rows(x, covariates=known), Rows(x, covariates=known[["batch", "dose"]])
    optimum = fit(rows, Gaussian(), 1, dispersion=1.0)
    save(tmp_path / "kept.npz", optimum)
    for found in (optimum, refine(optimum, rows, max_rounds=2), tighten(optimum, rows), load(tmp_path / "kept.npz")):
        assert found.covariate_names == ("dose", "batch")
        asked = (best_posterior, refine, tighten, *([] if found.encoder is None else [posterior]))
        for call in asked:
            with pytest.raises(ValueError, match='covariates: expected those of the optimum, "dose" at 0, got "batch"'):
                call(found, moved)
        plain = best_posterior(found, Rows(x, covariates=known.to_numpy()))  # without names there is nothing to hold
        np.testing.assert_array_equal(plain.mean, best_posterior(found, rows).mean)
    with pytest.raises(ValueError, match='covariates: expected those of batch 0 in batch 1, "dose" at 0, got "batch"'):
        moments(lambda: [rows, moved])
    with pytest.raises(ValueError, match='covariates: expected those of x, "dose" at 0, got "batch"'):
        require_alike(as_source(moved), as_source(rows))
    vae = AffineVAE(1).fit(x, covariates=known)
    assert vae.optimum_.covariate_names == ("dose", "batch")
    assert "covariate_names" not in repr(jax.tree.structure(rows))


def test_a_covariate_without_a_coefficient_is_named():
    known = pd.DataFrame({"dose": RNG.normal(size=30), "control": 1.0})
    x = RNG.normal(size=(30, 3))
    start = fit(x, Gaussian(), 1, dispersion=1.0)
    for covariates, told in (
        (known, r'column 1 \(column "control"\) does not vary'),
        (known.assign(control=-2 * known.dose), r'column 1 \(column "control"\) is a linear combination'),
    ):
        rows = Rows(x, covariates=covariates)
        for call in (
            lambda rows: fit(rows, Gaussian(), 1),
            lambda rows: refine(start, rows),
            lambda rows: select(rows, Gaussian(), [0, 1]),
            lambda rows: select(rows, Gaussian(), [0, 1], method="exact"),
        ):
            with pytest.raises(ValueError, match=f"covariates: {told}"):
                call(rows)
