"""Files of models that are foreign, damaged, newer or of two writers, and paths of every kind."""

import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saving_cases import assert_same, fitted

import glmvae
from glmvae import _files, elbo_exact, load, save
from glmvae import saving as module
from glmvae.families import Poisson

# Errors -----------------------------------------------------------------------------------------------------


@pytest.mark.any_precision
def test_no_other_object_is_saved(tmp_path):
    optimum, x = fitted("Poisson", np.float32)
    for other in (None, x, Poisson(), {"loadings": x}, optimum.decoder):
        with pytest.raises(TypeError, match="optimum: expected"):
            save(tmp_path / "model", other)
    with pytest.raises(TypeError, match="path: expected a path, got int"):
        save(3, optimum)
    with pytest.raises(TypeError, match="optimum: save runs on the host"):
        jax.jit(lambda o: save(tmp_path / "model", o))(optimum)
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(jnp.bfloat16), optimum)
    with pytest.raises(TypeError, match="got dtype bfloat16"):
        save(tmp_path / "model", half)
    assert not [*tmp_path.iterdir()]


def written(tmp_path):
    optimum, _ = fitted("Poisson", np.float32)
    save(tmp_path / "model", optimum)
    return (tmp_path / "model").read_bytes()


@pytest.mark.any_precision
def test_foreign_and_damaged_files_are_named(tmp_path):
    good, path = written(tmp_path), tmp_path / "model"
    flipped = [bytearray(good) for _ in range(3)]
    for at, content in zip((5, len(good) // 2, len(good) - 40), flipped, strict=True):
        content[at] ^= 4
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    cases = {
        "it is empty": b"",
        "another kind of file": b"%PDF-1.4",
        "its end is missing": good[:-200],
        "a single array": (tmp_path / "array.npy").read_bytes(),
        "written by something else": (tmp_path / "arrays.npz").read_bytes(),
        "a checkpoint of a training run": _files.pack({"format": 1, "settings": {}}, {}),
        "another file of glmvae": _files.pack({"format": 1}, {}),
        "update glmvae": _files.pack({"content": "model", "format": 2, "glmvae": "9.0"}, {}),
    }
    for message, content in [*cases.items(), *((".", bytes(content)) for content in flipped)]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"path: .*model .*{message}"):
            load(path)
    path.write_bytes(good)
    assert load(path)


@pytest.mark.any_precision
def test_a_file_never_names_code_to_run(tmp_path):
    good, path = written(tmp_path), tmp_path / "model"
    header, arrays = _files.unpack(good)
    for name in ("os.system", "Path", "Rows", "fit"):
        header["tree"]["class"] = name
        path.write_bytes(_files.pack(header, arrays))
        with pytest.raises(ValueError, match=f"path: .* has parts that glmvae .* does not know: '{name}'"):
            load(path)
    assert all(isinstance(cls, type) for cls in module._CLASSES.values())


@pytest.mark.any_precision
def test_what_cannot_be_read_or_written_says_so_and_leaves_what_was_there(tmp_path):
    good, path = written(tmp_path), tmp_path / "model"
    optimum = load(path)
    with pytest.raises(FileNotFoundError, match=r"path: cannot be read .*nothing"):
        load(tmp_path / "nothing")
    with pytest.raises(OSError, match="path: cannot be read"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="path: cannot be written"):
        save(tmp_path / "no folder" / "model", optimum)
    with pytest.raises(IsADirectoryError, match="path: cannot be written"):
        save(tmp_path, optimum)
    os.mkfifo(tmp_path / "pipe")
    for action in (lambda: load(tmp_path / "pipe"), lambda: save(tmp_path / "pipe", optimum)):
        with pytest.raises(OSError, match="not a regular file"):
            action()
    assert path.read_bytes() == good
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "pipe"]


@pytest.mark.any_precision
def test_float64_is_never_cast(tmp_path):
    with jax.enable_x64(True):
        optimum, _ = fitted("Poisson", np.float64)
        save(tmp_path / "model", optimum)
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"path: .*model has float64 arrays.*jax_enable_x64"):
        load(tmp_path / "model")
    with jax.enable_x64(True):
        assert_same(optimum, load(tmp_path / "model"))


@pytest.mark.any_precision
def test_links_are_followed_and_home_is_known(tmp_path, monkeypatch):
    good = written(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "model")
    save(tmp_path / "link", load(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "model").read_bytes() == good
    monkeypatch.setenv("HOME", str(tmp_path))
    assert_same(load("~/model"), load(str(tmp_path / "model")))


# Processes --------------------------------------------------------------------------------------------------

READ = """
import sys, numpy as np, glmvae
optimum = glmvae.load(sys.argv[1])
x = np.load(sys.argv[2])
np.save(sys.argv[3], glmvae.elbo_exact(optimum, x, glmvae.posterior(optimum, x)))
"""


@pytest.mark.any_precision
def test_a_new_process_scores_new_rows_as_this_one(tmp_path):
    with jax.enable_x64(False):
        optimum, x = fitted("Mixed", np.float32)
        save(tmp_path / "model", optimum)
        np.save(tmp_path / "x.npy", x[::-1])
        names = [str(tmp_path / name) for name in ("model", "x.npy", "score.npy")]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        subprocess.run([sys.executable, "-c", READ, *names], check=True, env=environment, timeout=300)
        here = elbo_exact(optimum, x[::-1], glmvae.posterior(optimum, x[::-1]))
        assert np.load(tmp_path / "score.npy").tobytes() == np.asarray(here).tobytes()


WRITE = """
import sys, glmvae
optimum = glmvae.load(sys.argv[1])
for _ in range(60):
    glmvae.save(sys.argv[2], optimum)
"""


@pytest.mark.any_precision
def test_a_reader_finds_a_whole_file_while_two_write_it(tmp_path):
    with jax.enable_x64(False):
        ours, _ = fitted("Poisson", np.float32)
        theirs = ours._replace(model=ours.model.with_beta(3.0))
        save(tmp_path / "theirs", theirs)
        save(tmp_path / "model", ours)
        names = [str(tmp_path / "theirs"), str(tmp_path / "model")]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        other = subprocess.Popen([sys.executable, "-c", WRITE, *names], env=environment)
        stop, thread = threading.Event(), None
        try:
            thread = threading.Thread(target=lambda: [save(tmp_path / "model", ours) for _ in iter(stop.is_set, True)])
            thread.start()
            seen = set()
            while other.poll() is None:
                seen.add(float(load(tmp_path / "model").beta))
            assert other.returncode == 0
        finally:
            stop.set()
            other.kill()
            other.wait()
            if thread is not None:
                thread.join()
        assert seen == {1.5, 3.0}
        assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "theirs"]
