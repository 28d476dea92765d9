"""The benchmark: its objective is L-hat, its rows are complete, its files are its own."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import __main__ as command
from benchmarks import affine_training as training
from benchmarks import closed_form, nets, optimum, problems, refined, report, speed
from benchmarks.timed import train_timed
from glmvae import elbo_quadratic, fit, moments, posterior
from glmvae.families import Bernoulli, Binomial, Gaussian, Poisson
from glmvae.nets import VAE

FAMILIES = [Bernoulli(), Binomial(16), Poisson(), Gaussian()]
ROWS, COLUMNS, UNITS = 40, 6, 2
# The pages decide their own precision, float32.
once = pytest.mark.any_precision
# Rounding units: sums of some hundred terms, the largest a few times the result, added in another order.
ROUNDING = 32


def data_of(family, dtype):
    rng = np.random.default_rng(0)
    if isinstance(family, Gaussian):
        x = rng.normal(3.0, 2.0, (ROWS, COLUMNS))
    else:
        x = rng.binomial(1 if isinstance(family, Bernoulli) else 16, rng.uniform(size=(ROWS, 1)), (ROWS, COLUMNS))
    return jnp.asarray(x, dtype)


def model_of(x, family):
    """A start with every part moved away from 0."""
    start = training.he_start(
        jax.random.key(1), moments(x, family=family), UNITS, estimate_dispersion=family.fixed_dispersion is None
    )
    leaves, tree = jax.tree.flatten(start)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [a + 0.3 * jax.random.normal(k, a.shape, a.dtype) for a, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


def reference(model, x, family):
    mean = jnp.mean(x, axis=0)
    q = training.posterior_of(model, family, mean, x)
    phi = training.dispersion(model)
    return jnp.mean(elbo_quadratic(model.loadings, model.intercept, x, q, family, dispersion=phi))


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_objective_and_moments_give_the_mean_of_elbo_quadratic(family, dtype):
    x = data_of(family, dtype)
    model = model_of(x, family)
    expected = float(reference(model, x, family))
    tolerance = ROUNDING * float(jnp.finfo(dtype).eps) * abs(expected)
    by_rows = float(training.objective(model, family, jnp.mean(x, axis=0), x))
    by_moments = float(training.elbo_from_moments(model, family, moments(x, family=family)))
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
    weight = best.encoder_weight
    same = training.Model(
        loadings=best.loadings,
        intercept=best.intercept,
        encoder_weight=weight * slope,
        encoder_bias=best.encoder_bias + weight @ data.mean,
        log_variance=jnp.log(jnp.diag(best.covariance)),
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
def test_a_peer_is_timed_in_the_same_run():
    x = data_of(Gaussian(), jnp.float32)
    measured = closed_form.measure_fit(x, Gaussian(), UNITS, peer=True)
    assert measured.repeats >= 5
    assert measured.peer_ratio == pytest.approx(measured.warm_seconds / measured.peer_seconds)
    assert measured.compile_seconds > measured.warm_seconds > 0
    assert measured.active_units == int(np.sum(np.asarray(measured.optimum.eigenvalues[:UNITS]) > 1))
    alone = closed_form.measure_fit(x, Gaussian(), UNITS)
    assert alone.peer_seconds is alone.peer_ratio is None


@once
@pytest.mark.parametrize("name", ["optimum.json", "optimum.png"])
def test_files_of_others_are_refused_and_kept(name, tmp_path, capsys):
    (tmp_path / name).write_text("mine")
    assert command.main(["--quick", "--output", str(tmp_path)]) == 2
    assert name in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"


@once
def test_own_files_are_replaced_and_others_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for round_ in range(2):
        report.prepare(tmp_path, "optimum")
        report.write_json(tmp_path, "optimum", {"round": round_, "gap": math.nan})
        rows = [row_of(), row_of(reached=False, latent_dim=5), row_of(data="synthetic")]
        report.write_png(tmp_path, "optimum", optimum.draw({"rows": rows}))
    written = json.loads((tmp_path / "optimum.json").read_text())
    assert written == {"made_by": report.MARK, "round": 1, "gap": None}
    assert (tmp_path / "optimum.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "optimum.json", "optimum.png"]


@once
def test_unknown_data_sets_are_named(tmp_path, capsys):
    with pytest.raises(ValueError, match="'iris'"):
        problems.load("iris")
    with pytest.raises(SystemExit):
        command.main(["--data", "iris", "--output", str(tmp_path)])
    assert "'iris'" in capsys.readouterr().err


@once
@pytest.mark.parametrize("values", [["0"], ["-1"], ["two"]])
def test_latent_dims_are_positive_integers(values, capsys):
    with pytest.raises(SystemExit):
        command.main(["--latent-dims", *values])
    assert "--latent-dims" in capsys.readouterr().err


@once
def test_more_units_than_columns_are_refused(tmp_path, capsys):
    assert command.main(["--data", "digits", "--latent-dims", "65", "--output", str(tmp_path)]) == 2
    assert "digits has 64 columns, got 65" in capsys.readouterr().err


@once
def test_a_missing_data_set_is_left_out_unless_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GLMVAE_DATA_DIR", str(tmp_path))
    assert command.main(["--data", "frey", "--output", str(tmp_path / "out")]) == 2
    assert "frey_rawface.mat" in capsys.readouterr().err
    found, missing = command.load(command.parse([]))
    assert [p.name for p in found] == ["digits", "digits", "synthetic"]
    assert sorted(missing) == ["frey", "mnist"]


@pytest.fixture
def tiny(monkeypatch):
    """Small data under the name of digits, few steps."""
    problem = problems.Problem("digits", Binomial(16), data_of(Binomial(16), jnp.float32))
    monkeypatch.setattr(problems, "load", lambda name, seed=0: [problem])
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
def test_the_refined_page_orders_what_it_compares(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(refined, "QUICK_STEPS", 20)
    assert (
        command.main(["refined", "--quick", "--data", "digits", "--latent-dims", "2", "--output", str(tmp_path)]) == 0
    )
    printed = capsys.readouterr()
    assert "by column" in printed.out
    assert "3/3" in printed.err
    (row,) = json.loads((tmp_path / "refined.json").read_text())["rows"]
    closed, column, exact, net = (row[part] for part in ("closed_form", "column", "exact", "net"))
    assert closed["elbo_taylor"] < column["bound"] < column["elbo"] <= exact["elbo"]
    assert net["elbo"] < exact["elbo"]  # no net with this decoder can do better
    assert exact["converged"]
    assert column["rounds"] <= refined.COLUMN_ROUNDS + 1
    assert column["eigh_ratio"] == pytest.approx(column["seconds"] / column["eigh_seconds"])
    assert (tmp_path / "refined.png").read_bytes().startswith(b"\x89PNG")


@once
def test_the_nets_page_compares_three_starts(tiny, tmp_path, monkeypatch, capsys):
    small = functools.partial(VAE, encoder_widths=(8,), decoder_widths=())
    monkeypatch.setattr(nets, "ARCHITECTURES", {"canonical": small})
    monkeypatch.setattr(nets, "BETAS", 2)
    monkeypatch.setattr(nets, "ACTIVITY_STEPS", 100)
    monkeypatch.setattr(nets, "MAX_STEPS", 100)
    monkeypatch.setattr(nets.speed, "step_time", lambda **settings: settings | STEP)
    assert command.main(["nets", "--data", "digits", "--output", str(tmp_path)]) == 0
    assert "times bare JAX" in capsys.readouterr().out
    result = json.loads((tmp_path / "nets.json").read_text())
    (row,), (of_set,) = result["rows"], result["activities"]
    start = row["pass-through"]["start"]
    assert row["pass-through"]["decaying_end"] > start
    assert row["curves"][nets.DECAYING]["elbos"][0] == start
    assert row["pass-through"]["end"] > start > max(row["He"]["start"], row["MLE-B"]["start"])
    for name in ("He", "MLE-B"):
        assert row[name]["reached"] == (row["curves"][name]["elbos"][-1] >= start)
        assert row["curves"][name]["steps"][-1] == row[name]["steps"] <= 100
    assert np.shape(of_set["zero"]) == np.shape(of_set["null"]) == np.shape(of_set["trained"]) == (2, nets.UNITS)
    assert (tmp_path / "nets.png").read_bytes().startswith(b"\x89PNG")


STEP = {
    "net": "6-8-2-6", "batch_size": 100, "seconds": 0.03, "bare_seconds": 0.03, "ratio_to_bare": 1.0,
    "matmul_gflops": 200.0, "share_of_matmul_rate": 0.6, "adam_seconds": 0.006, "parts_seconds": 0.026,
    "first_call_seconds": 5.0,
}  # fmt: skip


@once
def test_the_clock_counts_the_steps_alone_and_stops_where_asked():
    x = data_of(Bernoulli(), jnp.float32)
    vae = VAE(jax.random.key(0), COLUMNS, UNITS, Bernoulli(), encoder_widths=(8,), decoder_widths=(), dtype=jnp.float32)
    rate = optax.adam(1e-2)
    whole = train_timed(jax.random.key(1), vae, jnp.tile(x, (3, 1)), steps=60, every=20, optimizer=rate)
    assert whole.steps == [0, 20, 40, 60]
    assert sorted(whole.seconds) == whole.seconds
    assert whole.elbos[-1] > whole.elbos[0]
    part = train_timed(
        jax.random.key(1), vae, jnp.tile(x, (3, 1)), steps=60, every=20, optimizer=rate, until=whole.elbos[1]
    )
    assert part.steps == [0, 20]
    assert part.elbos == whole.elbos[:2]


@once
def test_a_step_is_timed_against_bare_jax():
    step = speed.step_time(columns=12, latent_dim=2, widths=(8, 6), batch_size=10, steps=3, repeats=3)
    assert step["ratio_to_bare"] > 0
    assert 0 < step["share_of_matmul_rate"] < 1
    assert 0 < step["adam_seconds"] < step["parts_seconds"]
    assert "torch_seconds" not in step


def test_units_that_do_nothing_change_no_exact_elbo(dtype):
    x = data_of(Bernoulli(), dtype)
    problem = problems.Problem("digits", Bernoulli(), x)
    best = fit(x, Bernoulli(), 1)
    q = posterior(best, x)
    values = [optimum.exact(best.loadings, best.intercept, x, q, problem, best.dispersion, units) for units in (1, 4)]
    assert values[0] == pytest.approx(values[1], rel=20 * float(jnp.finfo(dtype).eps))


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
