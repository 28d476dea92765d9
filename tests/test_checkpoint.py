"""A run that was stopped is the run that was not, its file says which run it is, and no file is ever half there."""

import io
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from run_cases import ADAM, COLUMNS, KEY, ROWS, anneal, data, net, run, same

from glmvae import Objective, Rows, _checkpoint, _files, _fingerprint, initializers, nets, training
from glmvae.families import Binomial, Gaussian, NegativeBinomial

TESTS = str(Path(__file__).parent)


@pytest.fixture(scope="module")
def uninterrupted():
    return run()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    file = tmp_path_factory.mktemp("checkpoint") / "run.npz"
    run(steps=10, checkpoint=file)
    return file


def child(code, *arguments, **options):
    """A new process that can import what the tests import."""
    start = f"import sys; sys.path.insert(0, {TESTS!r}); import conftest\n"
    return subprocess.Popen([sys.executable, "-c", start + code, *map(str, arguments)], **options)


# Resuming -------------------------------------------------------------------------------------------------


def test_a_run_that_is_resumed_is_the_run_that_never_stopped(uninterrupted, tmp_path):
    file = tmp_path / "run.npz"
    first = run(callbacks=[lambda run: run.step >= 20], checkpoint=file)
    assert first.step == 25  # chunks end at 10, 15 (an evaluation), 25
    assert first.stopped == "callback"
    assert not same(first._replace(losses=uninterrupted.losses), uninterrupted)
    seen = []
    resumed = run(callbacks=[lambda run: seen.append(run.step)], checkpoint=file, chunk_size=3)
    assert min(seen) == 28
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
    assert 5 < steps[0] < 40  # it went on from where the process was, and had work left
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
    "learning rate": (optax.adam(1e-3), optax.adam(2e-3)),
    "b1": (optax.adam(1e-3), optax.adam(1e-3, b1=0.91)),
    "b2": (optax.adam(1e-3), optax.adam(1e-3, b2=0.9991)),
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
        ({"x": Rows(data(), offset=np.zeros((1, COLUMNS)))}, "data was"),
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


# Files ----------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_a_checkpoint_is_plain_arrays_and_a_damaged_one_is_refused(finished, tmp_path):
    with np.load(finished, allow_pickle=False) as file:
        assert all(array.dtype != object for array in file.values())
    content = finished.read_bytes()
    array, archive = io.BytesIO(), io.BytesIO()
    np.save(array, np.ones(3))
    np.savez(archive, header=np.ones(3))
    parts = {
        "cut": (content[: len(content) // 2], "its end is missing"),
        "empty": (b"", "it is empty"),
        "other": (b"something else", "another kind of file"),
        "array": (array.getvalue(), "a single array, an .npy file"),
        "archive": (archive.getvalue(), "written by something else"),
    }
    for name, (part, why) in parts.items():
        (tmp_path / name).write_bytes(part)
        with pytest.raises(ValueError, match=f"checkpoint: .* is not a checkpoint of a training run: .*{why}"):
            run(checkpoint=tmp_path / name)
        assert (tmp_path / name).read_bytes() == part


@pytest.mark.any_precision
def test_every_flipped_bit_is_seen(finished):
    content = finished.read_bytes()
    _files.unpack(content)
    for place in np.random.default_rng(0).integers(0, len(content), 300):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(place) % 8
        with pytest.raises(ValueError, match="it is"):
            _files.unpack(bytes(flipped))


@pytest.mark.any_precision
def test_a_checkpoint_of_a_newer_kind_is_named(finished, tmp_path):
    header, arrays = _files.unpack(finished.read_bytes())
    (tmp_path / "new").write_bytes(_files.pack(header | {"format": 99}, arrays))
    with pytest.raises(ValueError, match="is not a checkpoint of a training run that this version can read"):
        run(checkpoint=tmp_path / "new")


@pytest.mark.any_precision
def test_nobody_elses_file_is_touched(tmp_path):
    theirs = {name: tmp_path / name for name in ("run.npz.part", ".run.npz.tmp", "run")}
    for path in theirs.values():
        path.write_bytes(b"mine")
    run(steps=2, evaluate_every=None, checkpoint=tmp_path / "run.npz")
    assert all(path.read_bytes() == b"mine" for path in theirs.values())
    assert sorted(os.listdir(tmp_path)) == sorted([*theirs, "run.npz"])


BOTH = """
import numpy as np
from pathlib import Path
from glmvae import _files
path, letter = Path(sys.argv[1]), int(sys.argv[2])
content = _files.pack({"by": letter}, {"a": np.full(200_000, float(letter))})
for _ in range(40):
    _files.write(path, content)
"""


@pytest.mark.any_precision
def test_two_writers_of_one_file_leave_it_whole(tmp_path):
    """Some 80 files by two processes, and whoever reads in between finds one of them."""
    path, seen = tmp_path / "run.npz", set()
    writers = [child(BOTH, path, number) for number in (1, 2)]
    give_up = time.monotonic() + 300
    while any(w.poll() is None for w in writers) and time.monotonic() < give_up:
        if path.exists():
            header, arrays = _files.unpack(path.read_bytes())
            assert (arrays["a"] == header["by"]).all()
            seen.add(header["by"])
    assert [w.returncode for w in writers] == [0, 0]
    assert seen
    assert os.listdir(tmp_path) == ["run.npz"]


@pytest.mark.any_precision
def test_a_link_is_followed_and_the_home_folder_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "link", tmp_path / "elsewhere" / "run.npz"
    link.symlink_to(target)
    options = {"evaluate_every": None}
    run(steps=2, checkpoint="~/link", **options)  # the target need not be there yet
    assert link.is_symlink()
    assert target.is_file()
    os.chmod(target, 0o640)
    assert run(steps=4, checkpoint=link, **options).step == 4
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path / "elsewhere") == ["run.npz"]


NO_STEP = [lambda run: pytest.fail("a step was taken")]


@pytest.mark.any_precision
@pytest.mark.parametrize("kind", ["no folder", "a file for a folder", "a folder", "no permission"])
def test_a_place_that_cannot_be_written_is_seen_before_step_0(kind, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    places = {"no folder": "no/run", "a file for a folder": "file/run", "a folder": "."}
    place = tmp_path / places.get(kind, "run")
    if kind == "no permission":  # not to be had where the tests run as root

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied", str(place))

        monkeypatch.setattr(_files, "_written_beside", refuse)
    with pytest.raises(OSError, match=r"checkpoint: cannot be (written|read)") as error:
        run(checkpoint=place, callbacks=NO_STEP)
    assert str(place) in str(error.value)
    if kind in ("no folder", "no permission"):
        assert isinstance(error.value, training.CheckpointNotWritten)
        assert error.value.run.step == 0
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.any_precision
def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(finished, monkeypatch):
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(PermissionError, match=r"checkpoint: cannot be read \(Permission denied\)"):
        run(checkpoint=finished)


@pytest.mark.any_precision
def test_a_disk_that_fills_up_does_not_lose_the_run(uninterrupted, tmp_path):
    """A limit on the size of files stands for the end of the disk."""
    file, (soft, hard) = tmp_path / "run.npz", resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(run):
        if run.step >= 20:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

    try:
        with pytest.raises(training.CheckpointNotWritten, match="checkpoint: cannot be written") as error:
            run(callbacks=[full], checkpoint=file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept = error.value.run
    assert kept.step == 30  # the last save was at 25; the chunk after it is not lost
    np.testing.assert_array_equal(kept.losses, uninterrupted.losses[:30])
    assert os.listdir(tmp_path) == ["run.npz"]  # that of step 25, whole
    assert same(run(checkpoint=file), uninterrupted)
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.errno) == (str(error.value), error.value.errno)
    assert same(again.run, kept)


@pytest.mark.any_precision
def test_a_disk_too_full_from_the_start_is_seen_before_step_0(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(training.CheckpointNotWritten):
            run(checkpoint=tmp_path / "run.npz", callbacks=NO_STEP)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not os.listdir(tmp_path)


def test_a_checkpoint_of_fewer_arrays_is_of_another_run(finished, tmp_path):
    header, arrays = _files.unpack(finished.read_bytes())
    arrays.pop(sorted(arrays)[0])
    (tmp_path / "run").write_bytes(_files.pack(header, arrays))
    with pytest.raises(ValueError, match="is of another run: only one of the two has"):
        run(checkpoint=tmp_path / "run")
    assert _checkpoint.Identity._fields == ("settings", "programs", "versions")
