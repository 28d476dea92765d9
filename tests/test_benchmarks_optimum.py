"""Page "optimum": its objective is L-hat, its rows are complete, what was done is kept."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmark_cases import COLUMNS, UNITS, data_of, faults, tiny_problem

from benchmarks import __main__ as command
from benchmarks import affine_training as training
from benchmarks import closed_form, optimum, problems
from glmvae import elbo_quadratic, fit, moments, posterior
from glmvae.families import Bernoulli, Binomial, Gaussian, Poisson

FAMILIES = [Bernoulli(), Binomial(16), Poisson(), Gaussian()]
# The page decides its own precision, float32.
once = pytest.mark.any_precision
# Rounding units: sums of some hundred terms, the largest a few times the result, added in another order.
ROUNDING = 32


def model_of(x, family):
    """A start with every part moved away from 0."""
    start = training.he_start(
        jax.random.key(1), moments(x, family=family), UNITS, estimate_dispersion=family.fixed_dispersion is None
    )
    leaves, tree = jax.tree.flatten(start)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [a + 0.3 * jax.random.normal(k, a.shape, a.dtype) for a, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


@jax.jit
def reference(model, x, family):
    q = training.posterior_of(model, family, jnp.mean(x, axis=0), x)
    return jnp.mean(elbo_quadratic(training.affine_model(model, family), x, q))


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_objective_and_moments_give_the_mean_of_elbo_quadratic(family, dtype):
    x = data_of(family, dtype)
    model = model_of(x, family)
    expected = float(reference(model, x, family))
    tolerance = ROUNDING * float(jnp.finfo(dtype).eps) * abs(expected)
    by_rows = float(jax.jit(training.objective)(model, family, jnp.mean(x, axis=0), x))
    by_moments = float(jax.jit(training.elbo_from_moments)(model, family, moments(x, family=family)))
    assert by_rows == pytest.approx(expected, abs=tolerance)
    assert by_moments == pytest.approx(expected, abs=tolerance)
    # the same comparison sees a change of one part in twenty in any part of the model
    for name in model._fields:
        if getattr(model, name) is not None:
            other = model._replace(**{name: getattr(model, name) * 1.05})
            assert abs(float(reference(other, x, family)) - expected) > tolerance, name


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_the_closed_form_is_above_any_model_and_its_own_gap_is_zero(family, dtype):
    x = data_of(family, dtype)
    data = moments(x, family=family)
    best = fit(data, family, UNITS)
    assert float(training.elbo_from_moments(model_of(x, family), family, data)) < float(best.elbo_taylor)
    slope = family.mean_derivative(jnp.zeros(COLUMNS, dtype))
    weight = best.encoder.weight
    same = training.Model(
        loadings=best.loadings,
        intercept=best.intercept,
        encoder_weight=weight * slope[None],
        encoder_bias=best.encoder.bias + weight @ data.mean,
        log_variance=jnp.log(jnp.diag(best.encoder.covariance)),
        log_dispersion=None if family.fixed_dispersion else jnp.log(best.dispersion),
    )
    tolerance = ROUNDING * float(jnp.finfo(dtype).eps) * abs(float(best.elbo_taylor))
    value = float(training.elbo_from_moments(same, family, data))
    assert value == pytest.approx(float(best.elbo_taylor), abs=tolerance)


@once
def test_training_reaches_the_closed_form():
    family = Binomial(16)
    x = data_of(family, jnp.float32)
    data = moments(x, family=family)
    best_value = fit(data, family, UNITS).elbo_taylor
    seen = []
    runs, compiling = training.train(
        jax.random.key(0), x, family, data, UNITS, best_value,
        max_steps=3000, progress=lambda *step: seen.append(step),
    )  # fmt: skip
    best = runs[0]
    assert compiling >= 0
    assert sorted(run.learning_rate for run in runs) == sorted(training.RATES)
    assert best.target_steps == min(run.target_steps for run in runs if run.target_steps is not None)
    assert best.gaps[best.steps.index(best.target_steps)] <= training.TARGET
    assert best.gaps[0] > training.TARGET  # it had some way to go
    assert min(min(run.gaps) for run in runs) > -1e-3  # none passes the optimum
    assert len(seen) == sum(len(run.steps) for run in runs)


@once
def test_a_budget_too_short_is_reported_as_not_reached():
    x = data_of(Binomial(16), jnp.float32)
    data = moments(x, family=Binomial(16))
    best_value = fit(data, Binomial(16), UNITS).elbo_taylor
    runs, _ = training.train(jax.random.key(0), x, Binomial(16), data, UNITS, best_value, max_steps=100)
    assert [run.target_steps for run in runs] == [None] * 3
    assert runs[0].gaps[-1] == min(run.gaps[-1] for run in runs) > training.TARGET
    row = row_of(reached=False)
    line = table(row).splitlines()[3]
    assert "> 100" in line
    assert f"{row['training']['final_gap']:.4f}" in line


def table(*rows):
    return optimum.table({"rows": rows})


def row_of(*, reached=True, peer=None, data="digits", latent_dim=2):
    return {
        "data": data, "family": "Binomial(16)", "rows": 1198, "columns": 64, "latent_dim": latent_dim,
        "elbo_exact_rows": 1000,
        "closed_form": {
            "active_units": 2, "compile_seconds": 1.5, "warm_seconds": 0.002, "repeats": 5, "peer_seconds": peer,
            "peer_ratio": None if peer is None else 0.002 / peer, "elbo_taylor": -273.9, "elbo_exact": -245.5,
        },
        "training": {
            "target_gap": 0.1, "reached": reached, "learning_rate": 0.01, "steps": 100, "seconds": 0.2, "ratio": 100.0,
            "final_steps": 200, "final_seconds": 0.4, "final_gap": 0.0 if reached else 1.25, "elbo_taylor": -273.9,
            "elbo_exact": -245.6, "compile_seconds": 1.0,
            "history": {"steps": [100, 200], "seconds": [0.2, 0.4], "gaps": [0.09, 0.0] if reached else [3.0, 1.25]},
            "runs": [],
        },
    }  # fmt: skip


@once
def test_the_table_is_aligned_and_names_its_columns():
    text = table(row_of(), row_of(reached=False, latent_dim=20, data="synthetic"))
    lines = text.splitlines()
    assert len({line.index("|") for line in (lines[0], lines[1], lines[3], lines[4])}) == 1
    assert "PCA" not in text
    assert "first rows only: digits 1000, synthetic 1000" in text
    assert "ours/PCA" in table(row_of(peer=0.004))
    assert "0.50" in table(row_of(peer=0.004))


@once
@pytest.mark.parametrize("number", [1, 4])
def test_pictures_are_whole_whatever_they_show(number):
    blown_up = row_of(reached=False, data="synthetic")
    blown_up["training"] |= {"final_gap": math.nan, "elbo_exact": math.nan}
    rows = [blown_up, row_of(latent_dim=5), row_of(data="frey"), row_of(data="mnist")][:number]
    assert "nan" not in optimum.table({"rows": rows})
    assert faults(optimum.draw({"rows": rows})) == []


@once
def test_a_peer_is_timed_in_the_same_run():
    x = data_of(Gaussian(), jnp.float32)
    measured = closed_form.measure_fit(x, Gaussian(), UNITS, peer=True)
    assert measured.repeats >= 5
    assert measured.peer_ratio == pytest.approx(measured.warm_seconds / measured.peer_seconds)
    assert measured.compile_seconds > measured.warm_seconds > 0
    assert measured.active_units == int(np.sum(np.asarray(measured.optimum.eigenvalues[:UNITS]) > 1))
    alone = closed_form.measure_fit(x, Gaussian(), UNITS)
    assert alone.peer_seconds is alone.peer_ratio is None


def test_units_that_do_nothing_change_no_exact_elbo(dtype):
    x = data_of(Bernoulli(), dtype)
    best = fit(x, Bernoulli(), 1)
    values = [optimum.exact(best.model, x, posterior(best, x), units) for units in (1, 4)]
    assert values[0] == pytest.approx(values[1], rel=20 * float(jnp.finfo(dtype).eps))


@pytest.fixture
def tiny(monkeypatch):
    """Small data under the name of digits, few steps."""
    monkeypatch.setattr(problems, "load", lambda name, seed=0: [tiny_problem()])
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    monkeypatch.setattr(optimum, "QUICK_MAX_STEPS", 300)
    monkeypatch.setattr(optimum, "QUICK_EXACT_ROWS", 30)


@once
def test_the_quick_run_writes_table_json_and_picture(tiny, tmp_path, capsys):
    options = ["--quick", "--data", "digits", "--latent-dims", "1", "2", "--output", str(tmp_path / "out")]
    assert command.main(options) == 0
    printed = capsys.readouterr()
    assert "closed form" in printed.out
    assert "8/8" in printed.err  # the progress bar: a closed form and three rates for each kappa
    result = json.loads((tmp_path / "out" / "optimum.json").read_text())
    assert {"python", "jax", "jaxlib", "numpy", "optax"} <= set(result["versions"])
    assert {"platform", "cpu_count", "cpu_model"} <= set(result["machine"])
    assert result["precision"] == "float32"
    assert result["settings"]["latent_dims"] == [1, 2]
    assert not result["interrupted"]
    assert [row["latent_dim"] for row in result["rows"]] == [1, 2]
    for row in result["rows"]:
        closed, trained = row["closed_form"], row["training"]
        assert set(row) == set(row_of())
        assert set(closed) == set(row_of()["closed_form"])
        assert set(trained) == set(row_of()["training"])
        assert trained["ratio"] == pytest.approx(trained["seconds"] / closed["warm_seconds"])
        assert trained["elbo_taylor"] == pytest.approx(closed["elbo_taylor"] - trained["final_gap"])
        assert row["elbo_exact_rows"] == 30
        assert math.isfinite(closed["elbo_exact"] + trained["elbo_exact"])
    assert (tmp_path / "out" / "optimum.png").read_bytes().startswith(b"\x89PNG")


@once
def test_an_interrupt_keeps_what_is_done(tiny, tmp_path, monkeypatch, capsys):
    train = training.train

    def interrupted(key, x, family, data, latent_dim, *args, **kwargs):
        if latent_dim == 2:
            raise KeyboardInterrupt
        return train(key, x, family, data, latent_dim, *args, **kwargs)

    monkeypatch.setattr(training, "train", interrupted)
    options = ["--quick", "--data", "digits", "--latent-dims", "1", "2", "--output", str(tmp_path)]
    assert command.main(options) == 130
    result = json.loads((tmp_path / "optimum.json").read_text())
    assert result["interrupted"]
    assert [row["latent_dim"] for row in result["rows"]] == [1]
    assert (tmp_path / "optimum.png").exists()
    assert "Interrupted" in capsys.readouterr().out
