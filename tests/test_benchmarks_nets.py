"""Pages "refined" and "nets": they order what they compare, and a step is timed alone."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from benchmark_cases import COLUMNS, UNITS, data_of, faults, tiny_problem

from benchmarks import __main__ as command
from benchmarks import nets, problems, refined, speed
from benchmarks.timed_training import bearable, train_timed
from glmvae.families import Bernoulli, Binomial
from glmvae.nets import VAE

# The pages decide their own precision, float32.
pytestmark = pytest.mark.any_precision


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(problems, "load", lambda name, seed=0: [tiny_problem()])


def test_the_refined_page_orders_what_it_compares(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(refined, "QUICK_STEPS", 20)
    options = ["refined", "--quick", "--data", "digits", "--latent-dims", "2", "--output", str(tmp_path)]
    assert command.main(options) == 0
    printed = capsys.readouterr()
    assert "tightened" in printed.out
    assert "3/3" in printed.err
    result = json.loads((tmp_path / "refined.json").read_text())
    (row,) = result["rows"]
    closed, tightened, exact, net = (row[part] for part in ("closed_form", "tightened", "exact", "net"))
    assert closed["elbo_taylor"] < tightened["bound"] < tightened["elbo"] <= exact["elbo"]
    assert net["elbo"] < exact["elbo"]  # no net with this decoder can do better
    assert exact["converged"]
    assert len(exact["round_ends"]) == exact["rounds"]
    assert exact["round_ends"][-1] <= exact["seconds"]
    assert tightened["rounds"] <= refined.TIGHTENED_ROUNDS + 1
    assert tightened["eigh_ratio"] == pytest.approx(tightened["seconds"] / tightened["eigh_seconds"])
    assert faults(refined.draw(result)) == []


STEP = {
    "net": "6-8-2-6", "batch_size": 100, "steps": 100, "seconds": 0.03, "bare_seconds": 0.03, "ratio_to_bare": 1.0,
    "matmul_gflops": 200.0, "share_of_matmul_rate": 0.6, "adam_seconds": 0.006, "parts_seconds": 0.026,
    "first_call_seconds": 5.0,
}  # fmt: skip


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
    figure = nets.draw(result)
    assert faults(figure) == []
    assert "activities" in figure._suptitle.get_text()
    assert faults(nets.draw(result | {"activities": []})) == []
    # a net that blew up is told of without a number that is none
    row["pass-through"]["end"] = row["MLE-B"]["start"] = math.nan
    assert "nan" not in nets.table(result)


def test_only_inputs_that_no_net_bears_are_standardised():
    assert bearable(data_of(Bernoulli(), jnp.float32), Bernoulli()) is None
    mean, spread = bearable(data_of(Binomial(16), jnp.float32), Binomial(16))
    assert float(mean.max()) > 1
    assert float(spread.min()) > 0


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


def test_a_step_is_timed_against_bare_jax(monkeypatch):
    monkeypatch.setattr(speed, "_EDGE", 256)
    step = speed.step_time(columns=12, latent_dim=2, widths=(8, 6), batch_size=10, steps=3, repeats=3)
    assert set(step) == set(STEP)
    assert step["ratio_to_bare"] > 0
    assert 0 < step["share_of_matmul_rate"] < 1
    assert 0 < step["adam_seconds"] < step["parts_seconds"]


def test_quickly_a_step_is_timed_over_as_long_a_run():
    # a step of the small net is some hundred times shorter than one of the paper's
    assert nets.QUICK_TIMED_STEPS >= 10 * 100
