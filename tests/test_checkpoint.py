"""A run that was stopped is the run that was not, its file says which run it is, and no file is ever half there."""

import os
import signal
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from run_cases import ADAM, COLUMNS, KEY, ROWS, anneal, child, data, net, run, same

from glmvae import Objective, Rows, _fingerprint, initializers, nets, training
from glmvae.families import Binomial, Gaussian, NegativeBinomial


@pytest.fixture(scope="module")
def uninterrupted():
    return run()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    file = tmp_path_factory.mktemp("checkpoint") / "run.npz"
    run(steps=10, checkpoint=file)
    return file


# Resuming -------------------------------------------------------------------------------------------------


def test_a_run_that_is_resumed_is_the_run_that_never_stopped(uninterrupted, tmp_path):
    file = tmp_path / "run.npz"
    first = run(callbacks=[lambda run: run.step >= 20], checkpoint=file)
    assert first.step == 25  # chunks end at 10, 15 (an evaluation), 25
    assert first.stopped == "callback"
    assert not same(first._replace(losses=uninterrupted.losses), uninterrupted)
    seen = []
    resumed = run(callbacks=[lambda run: seen.append(run.step)], checkpoint=file, chunk_size=3)
    assert seen[:2] == [25, 28]  # where it was, before any step
    assert same(resumed, uninterrupted)
    assert same(run(checkpoint=file), uninterrupted)  # nothing left to do
    assert os.listdir(tmp_path) == ["run.npz"]


@pytest.mark.any_precision
def test_an_optimizer_with_a_key_in_its_state_resumes(tmp_path):
    """It makes steps of random length, as optax.add_noise makes steps in random directions."""

    def update(gradient, key, _):
        key, now = jax.random.split(key)
        length = 1e-3 * jax.random.uniform(now)
        return jax.tree.map(lambda g: (-length * g).astype(g.dtype), gradient), key

    noisy = optax.GradientTransformation(lambda _: jax.random.key(0), update)
    whole = run(optimizer=noisy, evaluate_every=None)
    half = run(steps=20, optimizer=noisy, evaluate_every=None, checkpoint=tmp_path / "run")
    assert not same(half._replace(losses=whole.losses), whole)
    assert same(run(optimizer=noisy, evaluate_every=None, checkpoint=tmp_path / "run"), whole)


@pytest.mark.any_precision
def test_an_optimizer_whose_state_is_of_lower_precision_resumes(tmp_path):
    options = {"optimizer": optax.adam(1e-3, mu_dtype=jnp.bfloat16), "evaluate_every": None}
    whole = run(**options)
    run(steps=20, **options, checkpoint=tmp_path / "run")
    assert same(run(**options, checkpoint=tmp_path / "run"), whole)


CHILD = """
import time, run_cases
run_cases.run(callbacks=[lambda run: time.sleep(0.3)], checkpoint=sys.argv[1], chunk_size=5)
"""


@pytest.mark.any_precision
def test_a_killed_process_loses_at_most_a_chunk(uninterrupted, tmp_path):
    file = tmp_path / "run.npz"
    process = child(CHILD, file)
    give_up = time.monotonic() + 300
    while not file.exists() and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.02)
    process.kill()  # SIGKILL
    assert process.wait() == -signal.SIGKILL
    steps = []
    resumed = run(callbacks=[lambda run: steps.append(run.step)], checkpoint=file)
    assert 5 <= steps[0] < 40  # it went on from where the process was, and had work left
    assert same(resumed, uninterrupted)


# A family and functions of the user's own, in two processes: in each they have other addresses and names.
OWN = """
import jax.numpy as jnp, numpy as np, optax, run_cases
from glmvae import Objective, training
from glmvae.families import CustomFamily
number = float(sys.argv[2])
family = CustomFamily(lambda theta: number * theta**2 / 2, lambda x, phi: -x**2 / (2 * number * phi))
table = jnp.linspace(0.0, 1.0, 41)
settings = {"beta": lambda step: table[step], "optimizer": optax.sgd(lambda step: 1e-3 / (1 + step))}
settings["steps"] = int(sys.argv[3])
vae = run_cases.net(None, Objective(family, dispersion=1.0))
run = run_cases.run(vae=vae, learn_dispersion=False, evaluate_every=None, checkpoint=sys.argv[1], **settings)
print(run.step, np.asarray(run.losses).tolist())
"""


@pytest.mark.any_precision
def test_functions_of_ones_own_are_the_same_in_a_new_process(tmp_path):
    def outcome(*arguments):
        process = child(OWN, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, error = process.communicate(timeout=300)
        return out if process.returncode == 0 else error

    file = tmp_path / "run.npz"
    assert outcome(file, 1.5, 20).startswith("20 ")
    resumed, whole = outcome(file, 1.5, 40), outcome(tmp_path / "whole.npz", 1.5, 40)
    assert resumed == whole
    assert resumed.startswith("40 ")
    # the number that the functions close over is part of what they are
    assert "is of another run: loss was another" in outcome(file, 1.5 + 1e-6, 40)


# Which run it is ------------------------------------------------------------------------------------------


OTHERS = {
    "learning rate": (ADAM, optax.adam(2e-3)),
    "b1": (ADAM, optax.adam(1e-3, b1=0.91)),
    "b2": (ADAM, optax.adam(1e-3, b2=0.9991)),
    "momentum": (optax.sgd(1e-3, momentum=0.9), optax.sgd(1e-3, momentum=0.8)),
    "clip": tuple(optax.chain(optax.clip(c), optax.sgd(1e-3)) for c in (1.0, 1.1)),
    "length of a schedule": tuple(optax.adam(optax.cosine_decay_schedule(1e-3, n)) for n in (100_000, 200_000)),
    "decay rate": tuple(optax.adam(optax.exponential_decay(1e-3, 1000, r)) for r in (0.9, 0.91)),
    "weight decay": (optax.adamw(1e-3, weight_decay=1e-4), optax.adamw(1e-3, weight_decay=1.1e-4)),
}


@pytest.mark.any_precision
@pytest.mark.parametrize("name", OTHERS)
def test_another_optimizer_is_another_run(name, tmp_path):
    first, second = OTHERS[name]
    options = {"steps": 2, "evaluate_every": None, "checkpoint": tmp_path / "run"}
    run(optimizer=first, **options)
    with pytest.raises(ValueError, match="is of another run: optimizer was another"):
        run(optimizer=second, **options)
    run(optimizer=first, **options)


LONG = 1100


def wide(family):
    return nets.canonical(KEY, LONG, 1, family, encoder_widths=(2,))


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda: Binomial(np.full(LONG, 5.0)), lambda: Binomial(np.where(np.arange(LONG) == 500, 6.0, 5.0))),
        (lambda: NegativeBinomial(3.0), lambda: NegativeBinomial(3.0000003)),
    ],
    ids=["trials of column 500", "the last digit of a size"],
)
def test_another_number_in_the_family_is_another_run(first, second, tmp_path):
    x = np.ones((4, LONG))
    options = {"steps": 1, "batch_size": 4, "optimizer": ADAM, "checkpoint": tmp_path / "run"}
    training.train(KEY, wide(first()), x, **options)
    with pytest.raises(ValueError, match="is of another run: family was "):
        training.train(KEY, wide(second()), x, **options)


@pytest.mark.any_precision
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 10}, "batch_size was 20, is 10"),
        ({"beta": None}, "beta was 'a schedule', is 1.0"),
        ({"beta": lambda step: anneal(step) * 2}, "beta was another"),
        ({"beta": lambda step: jnp.minimum(step / 20.001, 1.0)}, "beta was another"),
        ({"learn_dispersion": False}, "start was"),
        ({"evaluate_every": 5}, "evaluate_every was 15, is 5"),
        ({"test": None}, "data was"),
        ({"x": data().at[104, 5].add(1e-6)}, "data was"),
        ({"x": Rows(data(), weight=np.ones(ROWS))}, "data was"),
        ({name: Rows(data(), offset=np.zeros((1, COLUMNS))) for name in ("x", "test")}, "data was"),
        ({"num_samples": 3}, "num_samples was 16, is 3"),
        ({"vae": lambda: net(None, Objective(Gaussian(), dispersion=0.6))}, "dispersion was"),
        ({"vae": lambda: net(None, Objective(Gaussian(activation_scale=2.0), dispersion=0.5))}, "family was"),
        ({"vae": lambda: net(standardise=(np.zeros(6), np.full(6, 2.0)))}, "net was"),
        ({"vae": lambda: initializers.he(jax.random.key(9), net())}, "start was"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(changes, named, finished):
    with pytest.raises(ValueError, match=f"checkpoint: .* is of another run: ({named})"):
        run(checkpoint=finished, **{k: v() if k == "vae" else v for k, v in changes.items()})


@pytest.mark.any_precision
def test_the_same_run_by_other_names_goes_on(finished, tmp_path):
    """A copy of the schedule, and a net made again, are what they were."""
    copy = tmp_path / "run"
    copy.write_bytes(finished.read_bytes())
    again = run(steps=12, beta=lambda s: jnp.minimum(s / 20.0, 1.0), vae=net(), checkpoint=copy)
    assert again.step == 12


@pytest.mark.any_precision
def test_another_version_of_jax_is_a_warning(finished, tmp_path, monkeypatch):
    old = tmp_path / "run"
    old.write_bytes(finished.read_bytes())
    here = _fingerprint.versions()
    monkeypatch.setattr(training, "versions", lambda: here | {"jax": "0.99.0"})
    with pytest.warns(UserWarning, match=rf"written under jax {here['jax']}, here 0.99.0: .* not bit for bit"):
        assert run(steps=12, checkpoint=old).step == 12
    # what needs no program is compared all the same
    with pytest.raises(ValueError, match="batch_size was 20"):
        run(steps=12, checkpoint=finished, batch_size=10)


def test_a_fingerprint_is_of_what_is_computed():
    def scaled(c):
        return lambda x: jnp.tanh(c * x) @ x

    x, table = jnp.ones(3), np.arange(2000.0)
    same_text = [_fingerprint.of_program(f, x) for f in (scaled(2.0), scaled(2.0), lambda y: jnp.tanh(2.0 * y) @ y)]
    assert len(set(same_text)) == 1
    others = [scaled(2.0000003 if x.dtype == "float32" else 2.0 + 1e-15), lambda x: jnp.sin(2.0 * x) @ x]
    changed = [jnp.asarray(np.where(np.arange(2000) == i, 7.0, table)) for i in (900, 901)]
    others += [lambda x, table=table: x + table[:3].sum() for table in changed]
    others += [lambda x, f=f: jax.lax.cond(x[0] > 0, jnp.sum, f, x) for f in (jnp.prod, jnp.max)]
    assert len({_fingerprint.of_program(f, x) for f in others} | set(same_text)) == len(others) + 1
