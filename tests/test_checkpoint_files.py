"""The file of a run is never half there, is told from others, and nobody else's is touched."""

import io
import os
import pickle
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from run_cases import child, run, same

from glmvae import _checkpoint, _files, training


@pytest.fixture(scope="module")
def uninterrupted():
    return run()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    file = tmp_path_factory.mktemp("checkpoint") / "run.npz"
    run(steps=10, checkpoint=file)
    return file


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
@pytest.mark.parametrize("kind", ["no folder", "a file for a folder", "a folder", "a pipe", "no permission"])
def test_a_place_that_cannot_be_written_is_seen_before_step_0(kind, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    places = {"a pipe": "pipe", "no folder": "no/run", "a file for a folder": "file/run", "a folder": "."}
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
    assert sorted(os.listdir(tmp_path)) == ["file", "pipe"]


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
