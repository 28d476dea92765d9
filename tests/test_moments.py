"""Moments against NumPy in float64: weighted, merged, batched, sharded, and where float32 has few digits to spare."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmvae import Moments, merge, moments
from glmvae.families import Binomial, Gaussian, Poisson

# Sums of up to 2500 products of size one: a few rounding units times the square root of their number.
RTOL = {"float64": 1e-13, "float32": 1e-5}
# Mean 100, standard deviation 0.5: what the docstring of moments promises in float32.
DWARFED = 1e-5


def reference(x, weights=None):
    x = np.asarray(x, np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    mean = w @ x / w.sum()
    return w.sum(), mean, (x - mean).T @ ((x - mean) * w[:, None]) / w.sum()


def assert_moments(result, x, weights=None, rtol=None):
    count, mean, covariance = reference(x, weights)
    rtol = RTOL[str(result.mean.dtype)] if rtol is None else rtol
    np.testing.assert_allclose(result.count, count, rtol=rtol)
    np.testing.assert_allclose(result.mean, mean, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(result.covariance, covariance, rtol=rtol, atol=rtol * np.abs(covariance).max())


def normal(rows, columns, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, columns)) @ rng.normal(size=(columns, columns)) + rng.normal(size=columns)).astype(
        dtype
    )


@pytest.mark.parametrize("columns", [1, 3, *(pytest.param(d, marks=pytest.mark.float64) for d in (2, 5))])
@pytest.mark.parametrize("rows", [1, 2, 999, 1000, 1001, 2500])
def test_equal_to_numpy_on_either_side_of_a_block(rows, columns, dtype):
    x = normal(rows, columns, dtype)
    result = moments(x)
    assert_moments(result, x)
    assert result.mean.dtype == result.covariance.dtype == result.count.dtype == dtype
    np.testing.assert_array_equal(result.covariance, result.covariance.T)


@pytest.mark.parametrize("rows", [999, 1001, 2500])
def test_weights(rows, dtype):
    x = normal(rows, 3, dtype)
    weights = np.random.default_rng(1).gamma(1.0, size=rows).astype(dtype)
    result = moments(x, weights=weights)
    assert_moments(result, x, weights)
    unweighted = moments(x)
    assert np.abs(result.covariance - unweighted.covariance).max() > 100 * RTOL[str(dtype)]  # they do matter


def test_whole_weights_repeat_rows(dtype):
    x = normal(50, 3, dtype)
    weights = np.random.default_rng(2).integers(0, 4, size=50)
    assert_moments(moments(x, weights=weights.astype(dtype)), np.repeat(x, weights, axis=0))


@pytest.mark.any_precision
def test_the_covariance_divides_by_the_number_of_rows(dtype):
    x = normal(10, 2, dtype)
    rtol = RTOL[str(dtype)]
    np.testing.assert_allclose(moments(x).covariance, np.cov(x, rowvar=False, bias=True), rtol=rtol, atol=rtol)
    assert not np.allclose(moments(x).covariance, np.cov(x, rowvar=False), rtol=1e-2)  # N - 1 is another matrix


@given(seed=st.integers(0, 2**32 - 1), order=st.permutations(range(4)), weighted=st.booleans(), far=st.booleans())
def test_merged_in_any_order_equals_at_once(seed, order, weighted, far, dtype):
    x = normal(100, 3, dtype, seed) + (50.0 if far else 0.0)
    x = x.astype(dtype)
    family = Gaussian()
    w = np.random.default_rng(seed).gamma(2.0, size=100).astype(dtype) if weighted else None
    cuts = [slice(0, 25), slice(25, 50), slice(50, 75), slice(75, 100)]
    parts = [moments(x[c], family=family, weights=None if w is None else w[c]) for c in cuts]
    parts = [parts[i] for i in order]
    whole = moments(x, family=family, weights=w)
    chain = merge(merge(merge(parts[0], parts[1]), parts[2]), parts[3])
    tree = merge(merge(parts[0], parts[1]), merge(parts[2], parts[3]))
    for merged in (chain, tree):
        assert_moments(merged, x, w)
        np.testing.assert_allclose(merged.base_statistic, whole.base_statistic, rtol=4 * RTOL[str(dtype)])


def test_merging_without_the_gap_between_the_means_would_be_noticed(dtype):
    x = np.concatenate([normal(20, 2, dtype), normal(20, 2, dtype) + 3]).astype(dtype)
    a, b = moments(x[:20]), moments(x[20:])
    wrong = Moments(a.count + b.count, (a.mean + b.mean) / 2, (a.covariance + b.covariance) / 2)
    with pytest.raises(AssertionError):
        assert_moments(wrong, x)
    assert_moments(merge(a, b), x)


@pytest.mark.parametrize("weighted", [False, True])
def test_an_iterator_of_batches(weighted, dtype):
    x = normal(100, 3, dtype)
    w = np.random.default_rng(3).gamma(2.0, size=100).astype(dtype) if weighted else None
    cuts = [slice(0, 50), slice(50, 51), slice(51, 100)]
    result = moments((x[c] for c in cuts), weights=None if w is None else iter([w[c] for c in cuts]))
    assert_moments(result, x, w)


@pytest.mark.any_precision
def test_batches_are_refused_where_they_do_not_fit(dtype):
    x = normal(10, 3, dtype)
    with pytest.raises(ValueError, match="at least one batch"):
        moments(iter([]))
    with pytest.raises(ValueError, match="columns"):
        moments(iter([x, x[:, :2]]))
    with pytest.raises(TypeError, match="weights"):
        moments(iter([x]), weights=np.ones(10, dtype))
    with pytest.raises(ValueError, match="zip"):
        moments(iter([x, x]), weights=iter([np.ones(10, dtype)]))


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: moments(x[:0]), r"x: .*at least one row"),
        (lambda x: moments(x[0]), r"x: .*2 dimensions"),
        (lambda x: moments(np.where(x == x[3, 1], np.nan, x)), r"x: .*finite.*\[3, 1\]"),
        (lambda x: moments(np.where(x == x[3, 1], np.inf, x)), r"x: .*inf.*\[3, 1\]"),
        (lambda x: moments(-np.abs(x), family=Poisson()), r"x: .*support.*\[0, 0\]"),
        (lambda x: moments(x, weights=np.ones(3)), r"weights: .*shape \(10,\)"),
        (lambda x: moments(x, weights=-np.ones(10)), r"weights: .*below 0.*\[0\]"),
        (lambda x: moments(x, weights=np.zeros(10)), r"weights: .*positive sum"),
        (lambda x: moments(1e30 * x.astype("float32")), r"x: .*overflow"),
        (lambda x: merge(moments(x), moments(x[:, :2])), r"b: .*3 columns.*2"),
    ],
)
def test_errors_say_what_and_where(call, message, dtype):
    with pytest.raises(ValueError, match=message):
        call(normal(10, 3, dtype))


@pytest.mark.any_precision
@pytest.mark.parametrize("bad", [[["a", "b"]], [[1.0], [1.0, 2.0]], np.ones((2, 2), complex)])
def test_what_is_no_number_is_a_type_error(bad):
    with pytest.raises(TypeError, match="x: "):
        moments(bad)


@pytest.mark.parametrize(("family", "rows"), [(Gaussian(), 1001), (Binomial(9), 1001), (Poisson(), 2500)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_base_statistic_is_its_mean_over_rows(family, rows, weighted, dtype):
    x = np.random.default_rng(4).binomial(9, 0.3, size=(rows, 3)).astype(dtype)
    w = np.random.default_rng(5).gamma(2.0, size=rows).astype(dtype) if weighted else None
    expected = np.average(np.asarray(family.base_statistic(jnp.asarray(x)), np.float64), axis=0, weights=w)
    result = moments(x, family=family, weights=w)
    np.testing.assert_allclose(result.base_statistic, expected, rtol=RTOL[str(dtype)])
    assert moments(x).base_statistic is None
    assert merge(result, moments(x)).base_statistic is None


def test_float32_keeps_its_digits_when_the_mean_dwarfs_the_spread():
    x = (100 + 0.5 * np.random.default_rng(6).normal(size=(2500, 5))).astype("float32")
    exact = np.cov(x.astype(np.float64), rowvar=False, bias=True)
    scale = np.abs(exact).max()
    error = np.abs(np.asarray(moments(x).covariance, np.float64) - exact).max() / scale
    assert error < DWARFED
    batched = moments(iter([x[:800], x[800:1600], x[1600:]]))
    assert np.abs(np.asarray(batched.covariance, np.float64) - exact).max() / scale < DWARFED
    # The sum of squares less the square of the sum, in float32, loses nearly everything.
    mean = x.mean(axis=0, dtype=np.float32)
    one_pass = x.T @ x / np.float32(len(x)) - np.outer(mean, mean)
    assert np.abs(one_pass - exact).max() / scale > 100 * DWARFED


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e4 / 3])
@pytest.mark.parametrize("rows", [1, 7, 1001])
def test_a_constant_column_has_variance_nought(value, rows, dtype):
    x = normal(rows, 3, dtype)
    x[:, 1] = value
    result = moments(x)
    assert result.mean[1] == x[0, 1]
    np.testing.assert_array_equal(result.covariance[1], 0.0)


@pytest.mark.any_precision
def test_float32_stays_float32(dtype):
    x = normal(20, 3, np.float32)
    result = moments(x, family=Gaussian(), weights=np.ones(20))
    assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {np.dtype("float32")}


@pytest.mark.parametrize("weighted", [False, True])
def test_jit_vmap_and_eager_agree(weighted, dtype):
    x = jnp.asarray(normal(100, 3, dtype))
    w = jnp.asarray(np.random.default_rng(7).gamma(2.0, size=100).astype(dtype)) if weighted else None
    eager = moments(x, family=Gaussian(), weights=w)
    jitted = jax.jit(lambda x, w: moments(x, family=Gaussian(), weights=w))(x, w)
    mapped = jax.vmap(lambda x: moments(x, family=Gaussian(), weights=w))(jnp.stack([x, 2 * x]))
    assert_moments(jitted, x, w)
    for a, b, c in zip(*(jax.tree.leaves(m) for m in (eager, jitted, mapped)), strict=True):
        np.testing.assert_allclose(b, a, rtol=RTOL[str(dtype)], atol=RTOL[str(dtype)])
        np.testing.assert_allclose(c[0], a, rtol=RTOL[str(dtype)], atol=RTOL[str(dtype)])


def test_under_jit_bad_values_show_as_nan(dtype):
    x = jnp.asarray(normal(10, 2, dtype)).at[3, 1].set(jnp.nan)
    assert np.isnan(jax.jit(moments)(x).covariance[1, 1])


@pytest.mark.any_precision
def test_pytree_round_trip(dtype):
    result = moments(normal(10, 2, dtype), family=Gaussian())
    leaves, structure = jax.tree.flatten(result)
    again = jax.tree.unflatten(structure, leaves)
    assert isinstance(again, Moments)
    assert all(a is b for a, b in zip(again, result, strict=True))
    assert "10 rows, 2 columns" in repr(result)


SHARDED = """
import jax, numpy as np
jax.config.update("jax_enable_x64", {x64})
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from glmvae import moments
from glmvae.families import Gaussian
assert len(jax.devices()) == 2
mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
for rows in (100, 2500):
    x = np.random.default_rng(0).normal(size=(rows, 5)).astype("{dtype}") + 3
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("rows")))
    assert len(sharded.addressable_shards) == 2 and sharded.addressable_shards[0].data.shape[0] == rows // 2
    for a, b in zip(moments(x, family=Gaussian()), moments(sharded, family=Gaussian())):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), rtol={rtol}, atol={rtol})
print("same")
"""


@pytest.mark.any_precision
def test_rows_sharded_over_two_devices_give_the_same(dtype):
    code = SHARDED.format(x64=dtype == "float64", dtype=dtype, rtol=RTOL[str(dtype)])
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "same"


def test_a_batch_of_weight_zero_changes_nothing(dtype):
    x = np.random.default_rng(3).normal(size=(6, 2)).astype(dtype)
    w = np.array([1.0, 2.0, 0.5, 1.0, 0.0, 0.0], dtype)
    batches = moments(iter([x[:4], x[4:]]), weights=iter([w[:4], w[4:]]))
    np.testing.assert_allclose(batches.covariance, moments(x, weights=w).covariance, rtol=1e-5)
    with pytest.raises(ValueError, match="x: expected at least one batch"):
        moments(iter([x[4:]]), weights=iter([w[4:]]))
