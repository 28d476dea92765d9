"""Data sets: the law of the synthetic one, the file formats, and the promises about files and downloads."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
import pooch
import pytest
import scipy.io
import scipy.special
import sklearn.datasets
from data_files import needs, needs_frey

from glmvae import datasets
from glmvae.datasets import files
from glmvae.families import Bernoulli, Binomial

pytestmark = pytest.mark.any_precision

MNIST_FILES = tuple(name for name in files.SHA256 if name.endswith(".gz"))
MNIST_SHAPES = ((6, 2, 3), (6,), (4, 2, 3), (4,))  # of the tiny stand-in, in the order of MNIST_FILES
FREY_FILE = "frey_rawface.mat"

# ---------------------------------------------------------------------------------------------- synthetic


def sigmoid_variance(sd):
    """Var sigmoid(a), a ~ N(0, sd^2): the covariance of two Bernoulli entries that share their score."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return np.sum(weights * (scipy.special.expit(sd * nodes) - 0.5) ** 2) / np.sum(weights)


def block_z_scores(x, sds):
    """How many standard errors the mean covariance of each pair of blocks is from the law with these sds."""
    blocks = [x[:, :20] - 0.5, x[:, 20:40] - 0.5, x[:, 40:] - 0.5]  # every column has mean 1/2 exactly
    expected = np.diag([sigmoid_variance(sds[0]), sigmoid_variance(sds[1]), 0.0])
    scores = {}
    for i, left in enumerate(blocks):
        for j, right in enumerate(blocks[: i + 1]):
            # one number a row, its mean over the pairs of distinct columns, so the rows give the error bar
            products = left.sum(1) * right.sum(1)
            num_pairs = left.shape[1] * right.shape[1]
            if i == j:
                products = products - (left**2).sum(1)
                num_pairs -= left.shape[1]
            per_row = products / num_pairs
            error = per_row.std(ddof=1) / np.sqrt(len(x))
            scores[i, j] = (per_row.mean() - expected[i, j]) / error
    return scores


@pytest.fixture(scope="module")
def paper_set():
    return datasets.synthetic(jax.random.key(7))


def all_rows(data):
    return np.concatenate([data.train, data.test]).astype(np.float64)


def test_synthetic_has_the_papers_shape(paper_set):
    assert paper_set.name == "synthetic"
    assert paper_set.train.shape == (6700, 200)
    assert paper_set.test.shape == (3300, 200)
    assert paper_set.train.dtype == paper_set.test.dtype == np.float32
    assert set(np.unique(all_rows(paper_set))) == {0.0, 1.0}
    assert isinstance(paper_set.family, Bernoulli)
    assert paper_set.train_labels is paper_set.test_labels is paper_set.image_shape is None


def test_synthetic_column_means_are_one_half(paper_set):
    x = all_rows(paper_set)
    z = (x.mean(0) - 0.5) / np.sqrt(0.25 / len(x))
    assert np.abs(z).max() < 5
    assert np.abs(z).max() > 1  # 200 columns of true noise: nothing was balanced by hand


def test_synthetic_covariance_is_the_block_structure(paper_set):
    z = block_z_scores(all_rows(paper_set), sds=(0.3, 0.5))
    assert max(map(abs, z.values())) < 5, z


@pytest.mark.parametrize("wrong_sds", [(0.09, 0.25), (0.5, 0.3), (0.3, 0.3), (0.0, 0.5)])
def test_synthetic_covariance_check_has_teeth(paper_set, wrong_sds):
    # Variances taken for standard deviations, the scores swapped, one scale for both, one score lost: if any
    # of these passed the check above, it would prove nothing.
    z = block_z_scores(all_rows(paper_set), wrong_sds)
    assert max(map(abs, z.values())) > 10, z


def test_synthetic_columns_sit_where_the_paper_puts_them(paper_set):
    # A shift of the blocks by one column must show: 20 belongs to the first score (index 19), 41 to none.
    x = all_rows(paper_set) - 0.5
    for column, block in [(0, slice(1, 20)), (19, slice(0, 19)), (20, slice(21, 40)), (39, slice(20, 39))]:
        per_row = x[:, column] * x[:, block].mean(1)
        assert per_row.mean() > 5 * per_row.std() / np.sqrt(len(x))
    for column, block in [(19, slice(20, 40)), (20, slice(0, 20)), (40, slice(20, 40))]:
        per_row = x[:, column] * x[:, block].mean(1)
        assert abs(per_row.mean()) < 5 * per_row.std() / np.sqrt(len(x))


def test_synthetic_strength_scales_the_linear_predictor():
    key = jax.random.key(3)
    for strength in (0.0, 4.0):
        x = all_rows(datasets.synthetic(key, 4000, num_columns=50, strength=strength))
        z = block_z_scores(x, sds=(0.3 * strength, 0.5 * strength))
        assert max(map(abs, z.values())) < 5, (strength, z)
        at_one = block_z_scores(x, sds=(0.3, 0.5))
        assert max(map(abs, at_one.values())) > 10, (strength, at_one)


def test_synthetic_is_a_function_of_its_key():
    first, again, other = (datasets.synthetic(jax.random.key(k), 50, num_columns=40) for k in (1, 1, 2))
    np.testing.assert_array_equal(all_rows(first), all_rows(again))
    assert (all_rows(first) != all_rows(other)).mean() > 0.3


def test_synthetic_uses_no_key_twice():
    with jax.debug_key_reuse(True):
        datasets.synthetic(jax.random.key(0), 50, num_columns=40)


def test_synthetic_is_the_same_in_both_precisions():
    single, double = [], []
    for precision, rows in ((False, single), (True, double)):
        with jax.enable_x64(precision):
            rows.append(all_rows(datasets.synthetic(jax.random.key(5), 50)))
    np.testing.assert_array_equal(single[0], double[0])


@pytest.mark.parametrize(("num_rows", "num_train"), [(2, 1), (3, 2), (99, 66), (100, 67), (np.int64(101), 67)])
def test_synthetic_split_keeps_rows_on_both_sides(num_rows, num_train):
    data = datasets.synthetic(jax.random.key(0), num_rows, num_columns=40)
    assert (len(data.train), len(data.test)) == (num_train, num_rows - num_train)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_rows": 1}, ValueError, "num_rows: expected an integer of at least 2, got 1"),
        ({"num_rows": 10.0}, TypeError, r"num_rows: expected an integer, got 10\.0"),
        ({"num_columns": 39}, ValueError, "num_columns: expected an integer of at least 40, got 39"),
        ({"num_columns": "200"}, TypeError, "num_columns: expected an integer, got '200'"),
        ({"strength": -1e-9}, ValueError, "strength: expected a finite number of at least 0, got -1e-09"),
        ({"strength": float("nan")}, ValueError, "strength: .* got nan"),
        ({"strength": float("inf")}, ValueError, "strength: .* got inf"),
        ({"strength": 1e39}, ValueError, r"float32.* got 1e\+39"),
        ({"strength": "a"}, TypeError, "strength: expected a number, got 'a'"),
        ({"strength": np.ones(2)}, ValueError, r"strength: expected a scalar, got shape \(2,\)"),
        ({"key": 0}, TypeError, r"key: expected one key such as jax.random.key\(0\), got 0"),
    ],
)
def test_synthetic_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        datasets.synthetic(**{"key": jax.random.key(0)} | arguments)


@pytest.mark.parametrize("name", ["mnist", "frey"])
def test_a_folder_is_a_path(name):
    for folder in (3, b"data"):
        with pytest.raises(TypeError, match=f"folder: expected a path, got {type(folder).__name__}"):
            datasets.load(name, folder)


def test_synthetic_survives_a_huge_strength():
    x = all_rows(datasets.synthetic(jax.random.key(0), 200, strength=1e38))
    assert set(np.unique(x)) == {0.0, 1.0}
    assert (x[:, :1] == x[:, :20]).all()  # saturated: the columns of a block agree
    assert 0.4 < x[:, 40:].mean() < 0.6  # and 0 * strength stays 0


# ------------------------------------------------------------------------------------ digits, load, Dataset


def test_digits_are_scikit_learns_in_file_order():
    data, theirs = datasets.digits(), sklearn.datasets.load_digits()
    assert data.train.shape == (1198, 64)
    assert data.test.shape == (599, 64)
    np.testing.assert_array_equal(all_rows(data), theirs.data)
    np.testing.assert_array_equal(np.concatenate([data.train_labels, data.test_labels]), theirs.target)
    np.testing.assert_array_equal(data.train[5].reshape(data.image_shape), theirs.images[5])
    assert data.train.dtype == np.float32
    assert data.train_labels.dtype == data.test_labels.dtype == np.int32
    assert (all_rows(data).min(), all_rows(data).max()) == (0, 16)
    assert isinstance(data.family, Binomial)
    assert float(data.family.trials) == 16


def test_digits_without_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'scikit-learn.*pip install "glmvae\[data\]"'):
        datasets.digits()


def test_load_finds_the_offline_sets():
    np.testing.assert_array_equal(datasets.load("digits").test, datasets.digits().test)
    np.testing.assert_array_equal(datasets.load("synthetic").train, datasets.synthetic(jax.random.key(0)).train)


def test_load_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="'synthetic', 'digits', 'mnist', 'frey'; got 'celeba'"):
        datasets.load("celeba")


def test_dataset_prints_as_one_line():
    text = repr(datasets.digits())
    assert text == str(datasets.digits())
    assert "\n" not in text
    for part in ("digits", "(1198, 64)", "(599, 64)", "Binomial", "(8, 8)"):
        assert part in text
    assert repr(jax.tree.map(lambda leaf: None, datasets.digits()))  # even when the fields are no arrays


# ------------------------------------------------------------------------------------------- file formats


def idx_bytes(array):
    header = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def sample_bytes(shape):
    return (np.arange(np.prod(shape)) * 37 % 256).astype(np.uint8).reshape(shape)


@pytest.mark.parametrize("shape", [(5,), (0,), (3, 2, 4), (256, 1, 2), (1, 1, 1, 1)])
def test_idx_round_trip(shape):
    array = sample_bytes(shape)
    np.testing.assert_array_equal(files.parse_idx(idx_bytes(array)), array)
    assert files.parse_idx(idx_bytes(array)).shape == shape


def test_idx_is_big_endian_row_major():
    content = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 10, 11, 12, 20, 21, 255])
    np.testing.assert_array_equal(files.parse_idx(content), [[10, 11, 12], [20, 21, 255]])


GOOD_IDX = idx_bytes(sample_bytes((3, 2, 2)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing"),
        (b"\x00\x00\x08", "begins with 00 00 08$"),
        (b"\x01" + GOOD_IDX[1:], "begins with 01 00 08 03"),
        (b"\x00\x00\x0d" + GOOD_IDX[3:], "IDX file of bytes.* 00 00 0d 03"),  # float32 entries
        (b"\x00\x00\x08\x00" + GOOD_IDX[4:], "number of axes"),
        (GOOD_IDX[:10], "header of 3 axes has 16 bytes, this file 10"),
        (GOOD_IDX[:-1], r"shape \(3, 2, 2\) has 12 bytes, this file 11"),
        (GOOD_IDX + b"\x00", r"shape \(3, 2, 2\) has 12 bytes, this file 13"),
        (b"\x00\x00\x08\x04" + b"\xff" * 16, "this file 0"),  # a product beyond 64 bits
        (b"<!DOCTYPE html>", "begins with 3c 21 44 4f"),
    ],
    ids=range(10),
)
def test_idx_refuses(content, message):
    with pytest.raises(ValueError, match=message):
        files.parse_idx(content)


@pytest.mark.parametrize("cut", [3, 15, -9, -1])
def test_truncated_gzip_is_refused(cut):
    with pytest.raises(ValueError, match="damaged gzip data"):
        files.gunzip(gzip.compress(GOOD_IDX, mtime=0)[:cut])


def test_flipped_gzip_is_refused():
    zipped = bytearray(gzip.compress(GOOD_IDX, mtime=0))
    zipped[-6] ^= 1  # in the checksum
    with pytest.raises(ValueError, match="damaged gzip data"):
        files.gunzip(bytes(zipped))


def mat_bytes(**variables):
    file = io.BytesIO()
    scipy.io.savemat(file, variables)
    return file.getvalue()


def test_faces_are_the_columns():
    ff = sample_bytes((560, 3))
    np.testing.assert_array_equal(files.parse_faces(mat_bytes(ff=ff, other=np.eye(2))), ff.T)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a MATLAB file"),
        (b"<html>" * 100, "not a MATLAB file"),
        (mat_bytes(ff=sample_bytes((560, 3)))[:-100], "not a MATLAB file"),
        (mat_bytes(gg=sample_bytes((560, 3))), "with a variable ff"),
        (mat_bytes(ff=np.zeros((560, 3))), r"uint8 matrix, got float64 of shape \(560, 3\)"),
        (mat_bytes(ff=np.zeros((5, 6, 7), np.uint8)), r"uint8 matrix, got uint8 of shape \(5, 6, 7\)"),
    ],
    ids=range(6),
)
def test_faces_refuse(content, message):
    with pytest.raises(ValueError, match=message):
        files.parse_faces(content)


# ----------------------------------------------------------------------------------- files in a folder

TINY_ARRAYS = dict(zip(MNIST_FILES, map(sample_bytes, MNIST_SHAPES), strict=True))
TINY_FACES = sample_bytes((560, 5))
TINY_FILES = {name: gzip.compress(idx_bytes(array)) for name, array in TINY_ARRAYS.items()}
TINY_FILES[FREY_FILE] = mat_bytes(ff=TINY_FACES)


@pytest.fixture
def tiny(monkeypatch):
    """Tiny stand-ins are what the module expects; no environment of the machine gets in."""
    hashes = {name: hashlib.sha256(idx_bytes(array)).hexdigest() for name, array in TINY_ARRAYS.items()}
    hashes[FREY_FILE] = hashlib.sha256(TINY_FACES.T.tobytes()).hexdigest()
    monkeypatch.setattr(files, "SHA256", hashes)
    monkeypatch.delenv("GLMVAE_DATA_DIR", raising=False)


def fill(folder, names=tuple(TINY_FILES)):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(TINY_FILES[name])
    return folder


def check_tiny_mnist(data):
    train, train_labels, test, test_labels = (TINY_ARRAYS[name] for name in MNIST_FILES)
    np.testing.assert_array_equal(data.train, train.reshape(6, 6).astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(data.test, test.reshape(4, 6).astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(data.train_labels, train_labels)
    np.testing.assert_array_equal(data.test_labels, test_labels)
    assert data.train.dtype == np.float32
    assert data.train_labels.dtype == np.int32
    assert isinstance(data.family, Bernoulli)


@pytest.mark.usefixtures("tiny")
def test_files_are_read_from_the_folder(tmp_path):
    fill(tmp_path)
    check_tiny_mnist(datasets.mnist(tmp_path, download=False))
    check_tiny_mnist(datasets.load("mnist", str(tmp_path), download=False))
    faces = datasets.load("frey", tmp_path, download=False)
    np.testing.assert_array_equal(faces.train, TINY_FACES.T.astype(np.float32) / np.float32(255))
    assert faces.image_shape == (28, 20)


def test_255_becomes_exactly_one():
    np.testing.assert_array_equal(datasets._unit_interval(np.array([[0, 255]], np.uint8)), [[0.0, 1.0]])


@pytest.mark.usefixtures("tiny")
def test_unzipped_files_are_read_with_and_without_the_suffix(tmp_path):
    fill(tmp_path)
    (tmp_path / MNIST_FILES[0]).unlink()
    (tmp_path / MNIST_FILES[0].removesuffix(".gz")).write_bytes(idx_bytes(TINY_ARRAYS[MNIST_FILES[0]]))
    (tmp_path / MNIST_FILES[1]).write_bytes(idx_bytes(TINY_ARRAYS[MNIST_FILES[1]]))  # unzipped, not renamed
    check_tiny_mnist(datasets.mnist(tmp_path, download=False))


@pytest.mark.usefixtures("tiny")
def test_zipping_again_changes_nothing(tmp_path):
    fill(tmp_path)
    zipped_again = gzip.compress(idx_bytes(TINY_ARRAYS[MNIST_FILES[0]]), compresslevel=1, mtime=1)
    assert zipped_again != TINY_FILES[MNIST_FILES[0]]
    (tmp_path / MNIST_FILES[0]).write_bytes(zipped_again)
    check_tiny_mnist(datasets.mnist(tmp_path, download=False))


@pytest.mark.usefixtures("tiny")
def test_the_argument_goes_before_the_environment_before_the_cache(tmp_path, monkeypatch):
    empty, full = tmp_path / "empty", fill(tmp_path / "full")
    monkeypatch.setenv("GLMVAE_DATA_DIR", str(full))
    check_tiny_mnist(datasets.mnist(download=False))
    with pytest.raises(FileNotFoundError, match="empty"):
        datasets.mnist(empty, download=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: {"glmvae": full}[project])
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("GLMVAE_DATA_DIR")
        else:
            monkeypatch.setenv("GLMVAE_DATA_DIR", unset)
        check_tiny_mnist(datasets.mnist(download=False))


@pytest.mark.usefixtures("tiny")
def test_a_wrong_hash_names_the_file_and_both_hashes_and_keeps_the_file(tmp_path):
    fill(tmp_path)
    other = sample_bytes((6, 2, 3)) ^ 1
    path = tmp_path / MNIST_FILES[0]
    path.write_bytes(gzip.compress(idx_bytes(other)))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="Remove or replace") as caught:
        datasets.mnist(tmp_path)  # download=True: it must not be fetched over the user's file either
    for part in (str(path), hashlib.sha256(idx_bytes(other)).hexdigest(), files.SHA256[MNIST_FILES[0]]):
        assert part in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.usefixtures("tiny")
def test_a_wrong_face_is_refused(tmp_path):
    faces = TINY_FACES.copy()
    faces[0, 0] ^= 1
    (tmp_path / FREY_FILE).write_bytes(mat_bytes(ff=faces))
    with pytest.raises(ValueError, match=f"{FREY_FILE}.*SHA-256.*Remove or replace"):
        datasets.frey(tmp_path)
    (tmp_path / FREY_FILE).write_bytes(b"MATLAB 5.0 MAT-file, cut")
    with pytest.raises(ValueError, match=f"{FREY_FILE}.*not a MATLAB file.*Remove or replace"):
        datasets.frey(tmp_path)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "damage",
    [lambda zipped: zipped[:-20], lambda zipped: b"", lambda zipped: b"<html>"],
    ids=["truncated", "empty", "web-page"],
)
def test_a_damaged_file_is_refused(tmp_path, damage):
    fill(tmp_path)
    path = tmp_path / MNIST_FILES[2]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{MNIST_FILES[2]} is not the file it should be.*Remove or replace"):
        datasets.mnist(tmp_path)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("name", "file", "source"),
    [
        ("mnist", MNIST_FILES[0], "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz"),
        ("frey", FREY_FILE, "https://cs.nyu.edu/~roweis/data/frey_rawface.mat"),
    ],
)
def test_a_missing_file_says_what_to_put_where(tmp_path, name, file, source):
    with pytest.raises(FileNotFoundError) as caught:
        datasets.load(name, tmp_path / "nowhere", download=False)
    for part in (f"Put {file} into {tmp_path / 'nowhere'}", "GLMVAE_DATA_DIR", source, "download=False"):
        assert part in str(caught.value)
    assert not (tmp_path / "nowhere").exists()


# -------------------------------------------------------------------------------------------- downloads


class Server:
    """A local public source: what it serves, which names were asked for, and a hook before each answer."""

    def __init__(self):
        self.files = dict(TINY_FILES)
        self.requests = []
        self.before_answer = lambda name: None
        self.missing_bytes = 0  # announce the whole length, then hang up this many bytes early
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.removeprefix("/")
                server.requests.append(name)
                server.before_answer(name)
                if name not in server.files:
                    self.send_error(404)
                    return
                content = server.files[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) - server.missing_bytes])

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server(tiny, monkeypatch):
    local = Server()
    monkeypatch.setattr(files, "SOURCES", {"mnist": local.url, "frey": local.url})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield local
    local.close()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def test_download_fills_the_folder_once(server, tmp_path, capfd):
    folder = tmp_path / "deep" / "new"
    check_tiny_mnist(datasets.mnist(folder))
    assert contents(folder) == {name: TINY_FILES[name] for name in MNIST_FILES}  # and no temporary file
    assert server.requests == list(MNIST_FILES)
    assert "100%" in capfd.readouterr().err  # the progress bar
    check_tiny_mnist(datasets.mnist(folder))
    check_tiny_mnist(datasets.mnist(folder, download=False))
    assert server.requests == list(MNIST_FILES)
    assert datasets.frey(folder).train.shape == (5, 560)
    assert datasets.frey(folder).train.shape == (5, 560)
    assert server.requests == [*MNIST_FILES, FREY_FILE]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_downloaded_file_has_the_permissions_of_any_new_file(server, tmp_path):
    datasets.frey(tmp_path)
    (tmp_path / "plain").touch()
    assert (tmp_path / FREY_FILE).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_download_fetches_only_what_is_missing(server, tmp_path):
    fill(tmp_path, MNIST_FILES[:3])
    check_tiny_mnist(datasets.mnist(tmp_path))
    assert server.requests == [MNIST_FILES[3]]


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (gzip.compress(idx_bytes(sample_bytes((6, 2, 3)) ^ 1)), "SHA-256"),
        (TINY_FILES[MNIST_FILES[0]][:-5], "damaged gzip data"),
        (b"<html>please log in</html>", "not an IDX file"),
        (b"", "not an IDX file"),
    ],
    ids=["other-content", "truncated", "web-page", "empty"],
)
def test_a_corrupt_download_leaves_nothing(server, tmp_path, sent, message):
    server.files[MNIST_FILES[0]] = sent
    with pytest.raises(ValueError, match=f"sent is not {MNIST_FILES[0]}: .*{message}.*Nothing was kept"):
        datasets.mnist(tmp_path)
    assert contents(tmp_path) == {}
    server.files[MNIST_FILES[0]] = TINY_FILES[MNIST_FILES[0]]
    check_tiny_mnist(datasets.mnist(tmp_path))  # and the next call recovers


def test_a_download_that_breaks_off_leaves_nothing(server, tmp_path):
    server.missing_bytes = 7
    with pytest.raises(FileNotFoundError, match=f"no {MNIST_FILES[0]} in .*the download failed.*Put"):
        datasets.mnist(tmp_path)
    assert contents(tmp_path) == {}


def test_an_interrupted_download_leaves_nothing(server, tmp_path, monkeypatch):
    def interrupted(self, url, output_file, _):
        Path(output_file).write_bytes(TINY_FILES[FREY_FILE][:50])
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        datasets.frey(tmp_path)
    assert contents(tmp_path) == {}


def test_a_file_that_the_server_does_not_have(server, tmp_path):
    del server.files[FREY_FILE]
    with pytest.raises(FileNotFoundError, match=f"(?s)no {FREY_FILE} in .*404.*GLMVAE_DATA_DIR"):
        datasets.frey(tmp_path)
    assert contents(tmp_path) == {}


def test_no_network_is_a_file_not_found(server, tmp_path, monkeypatch):
    closed = Server()
    closed.close()  # nobody listens at this port any more
    monkeypatch.setattr(files, "SOURCES", {"mnist": closed.url, "frey": closed.url})
    for name, file in (("mnist", MNIST_FILES[0]), ("frey", FREY_FILE)):
        with pytest.raises(FileNotFoundError) as caught:
            datasets.load(name, tmp_path)
        for part in (f"Put {file} into {tmp_path}", "GLMVAE_DATA_DIR", closed.url + file):
            assert part in str(caught.value)
    assert contents(tmp_path) == {}


def test_a_folder_that_cannot_be_made_is_a_file_not_found(server, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FileNotFoundError, match=f"the download failed.*Put {FREY_FILE}"):
        datasets.frey(tmp_path / "file")
    assert contents(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("hard_links", [True, False])
def test_download_never_overwrites_a_file_that_got_there_first(server, tmp_path, monkeypatch, hard_links):
    if not hard_links:
        monkeypatch.setattr(os, "link", _no_hard_links)
    server.before_answer = lambda name: (tmp_path / name).write_bytes(b"of a parallel process")
    assert datasets.frey(tmp_path).train.shape == (5, 560)  # what was downloaded and checked is returned
    assert contents(tmp_path) == {FREY_FILE: b"of a parallel process"}


def _no_hard_links(*_):
    raise OSError(errno.EPERM, "Operation not permitted")


def test_download_works_without_hard_links(server, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", _no_hard_links)
    check_tiny_mnist(datasets.mnist(tmp_path))
    assert contents(tmp_path) == {name: TINY_FILES[name] for name in MNIST_FILES}


def test_parallel_downloads_agree(server, tmp_path):
    barrier = threading.Barrier(3, timeout=10)
    results = []

    def wait_for_the_others(name):
        if name == FREY_FILE:
            barrier.wait()  # all three are past the check that the file is missing

    server.before_answer = wait_for_the_others
    threads = [threading.Thread(target=lambda: results.append(datasets.frey(tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [data.train.shape for data in results] == [(5, 560)] * 3
    assert contents(tmp_path) == {FREY_FILE: TINY_FILES[FREY_FILE]}
    assert len(server.requests) == 3


@pytest.mark.parametrize("package", ["pooch", "tqdm"])
def test_download_without_the_extra_says_what_to_install(server, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{package}.*pip install "glmvae\[data\]"'):
        datasets.frey(tmp_path)
    assert server.requests == []
    fill(tmp_path)
    assert datasets.frey(tmp_path).train.shape == (5, 560)  # a file that is there needs neither


@pytest.mark.usefixtures("tiny")
def test_the_cache_folder_needs_pooch(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r'pooch.*pip install "glmvae\[data\]"'):
        datasets.mnist(download=False)


# ------------------------------------------------------------------------------ the real files, if present


@needs(*MNIST_FILES)
def test_the_real_mnist():
    data = datasets.load("mnist", download=False)  # the hashes are checked on the way
    assert data.train.shape == (60000, 784)
    assert data.test.shape == (10000, 784)
    assert data.train.dtype == data.test.dtype == np.float32
    assert (data.train.min(), data.train.max()) == (0, 1)
    assert (data.test.min(), data.test.max()) == (0, 1)
    np.testing.assert_array_equal(data.train_labels[:10], [5, 0, 4, 1, 9, 2, 1, 3, 1, 4])
    np.testing.assert_array_equal(np.bincount(data.test_labels)[:3], [980, 1135, 1032])
    assert len(data.train_labels) == 60000
    ink = data.train[0].reshape(data.image_shape)  # upright: the margins of the first digit are empty
    assert ink[:4].max() == ink[:, :4].max() == 0
    assert data.train.mean() == pytest.approx(0.1307, abs=1e-4)  # the constant everybody normalises with


@needs_frey
def test_the_real_frey():
    data = datasets.load("frey", download=False)
    assert data.train.shape == (1316, 560)
    assert data.test.shape == (649, 560)
    assert data.train.dtype == np.float32
    assert data.train.min() >= 0
    assert data.train.max() <= 1
    assert data.train_labels is data.test_labels is None
    # One face a row, (28, 20) row-major: neighbouring pixels of a picture are alike, in both directions, and
    # so are neighbouring frames. Read as (20, 28) the vertical neighbours are strangers: the control.
    faces = data.train.reshape(-1, *data.image_shape)
    transposed = data.train.reshape(-1, 20, 28)
    spread = data.train.std()
    assert np.abs(np.diff(faces, axis=1)).mean() < 0.5 * spread
    assert np.abs(np.diff(faces, axis=2)).mean() < 0.5 * spread
    assert np.abs(np.diff(data.train, axis=0)).mean() < 0.5 * spread
    assert np.abs(np.diff(transposed, axis=1)).mean() > 0.5 * spread
