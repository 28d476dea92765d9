"""The data sets of the paper and of the benchmarks, as NumPy arrays.

`synthetic` and `digits` need no network. `mnist` and `frey` are read from a folder; a file that is missing is
downloaded into it once. The folder is the argument, else the environment variable GLMVAE_DATA_DIR, else the
cache folder of the operating system. Whatever its origin, a file is used only if the SHA-256 of its *decoded*
content is the known one (the same pixels, zipped again, are the same data), and no file is ever overwritten.

Every data set arrives as the paper has it (B.2): one row an observation, float32, ready for its family.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import struct
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.io import loadmat

from glmvae import _checks
from glmvae._optional import optional
from glmvae.families import Bernoulli, Binomial, Family

# Where the public files are: the address of a file is its folder here, then its name.
_SOURCES = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "frey": "https://cs.nyu.edu/~roweis/data/",
}
# SHA-256 of the decoded content: an unzipped IDX file with its header; the bytes of Frey's `ff.T` in C order.
_SHA256 = {
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    "frey_rawface.mat": "2438ba4f0d2a6bd8bac43de756141eaa33c8d248dd613d464bdb1210d9b7af78",
}


class Dataset(NamedTuple):
    """A data set, split into train and test.

    Attributes:
        name: what `load` calls it.
        train: (N, d) float32, one row an observation.
        test: (M, d) float32.
        family: the observation model that fits its support.
        train_labels: (N,) int32 classes, or None. No model here looks at them.
        test_labels: (M,) int32, or None.
        image_shape: (height, width), or None; `train[0].reshape(image_shape)` is a picture.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    family: Family
    train_labels: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    image_shape: tuple[int, int] | None = None

    def __repr__(self) -> str:
        parts = [f"{self.name!r}", f"train={np.shape(self.train)}", f"test={np.shape(self.test)}"]
        parts.append(f"family={type(self.family).__name__}")
        if self.train_labels is not None:
            parts.append(f"classes={len(np.unique(self.train_labels))}")
        if self.image_shape is not None:
            parts.append(f"image_shape={self.image_shape}")
        return f"Dataset({', '.join(parts)})"


def synthetic(key: jax.Array, num_rows: int = 10_000, *, num_columns: int = 200, strength: float = 1.0) -> Dataset:
    """Binary data with two latent scores and sparse loadings, the paper's synthetic set.

    Paper, B.2: Xi = A B', x ~ Bernoulli(sigmoid(Xi)) entry by entry. The two columns of A are N(0, 0.09) and
    N(0, 0.25) (variances); B is 0 except for a 1 on columns 1..20 (first score) and 21..40 (second). So
    columns 41..d are fair coins, and every column has mean 1/2.

    Args:
        key: a JAX PRNG key; the same key gives the same data, in either precision.
        num_rows: rows in all [N], at least 2; the first 67 % (rounded down) are train, the rest test.
        num_columns: [d], at least 40.
        strength: multiplies Xi; 1 is the paper, 0 pure noise, more than 1 a louder signal.

    Returns:
        A `Dataset` of entries 0 and 1, train (6700, 200) and test (3300, 200) by default; `Bernoulli()`.

    Raises:
        ValueError: num_rows below 2, num_columns below 40, or strength negative or not finite in float32.
        TypeError: num_rows or num_columns is not an integer.

    Example:
        >>> import jax
        >>> from glmvae import datasets
        >>> datasets.synthetic(jax.random.key(0), num_rows=300)
        Dataset('synthetic', train=(201, 200), test=(99, 200), family=Bernoulli)

    References:
        Lee, Huang and Hu (2010), Sparse logistic principal components analysis for binary data, Annals of
        Applied Statistics 4(3), whose construction this is.
    """
    num_rows = _checks.integer(num_rows, "num_rows", least=2)
    num_columns = _checks.integer(num_columns, "num_columns", least=40)
    if not 0 <= strength <= float(np.finfo(np.float32).max):  # False for NaN too
        raise ValueError(f"strength must be a finite number >= 0 (in float32), got {strength}")
    score_key, sample_key = jax.random.split(key)
    standard_deviations = jnp.array([[0.3, 0.5]], jnp.float32)
    scores = standard_deviations * jax.random.normal(score_key, (num_rows, 2), jnp.float32)
    loadings = np.zeros((num_columns, 2), np.float32)
    loadings[:20, 0] = 1
    loadings[20:40, 1] = 1
    eta = jnp.float32(strength) * jnp.matmul(scores, loadings.T, precision="highest")
    x = np.array(jax.random.bernoulli(sample_key, jax.nn.sigmoid(eta)), np.float32)
    num_train = num_rows * 67 // 100
    return Dataset("synthetic", x[:num_train], x[num_train:], Bernoulli())


def digits() -> Dataset:
    """Handwritten digits as counts of 0 to 16, a small real set that scikit-learn ships.

    Each of the 64 columns counts the black pixels in a 4 x 4 cell of a 32 x 32 bitmap, hence `Binomial(16)`.
    Not in the paper. Split in file order, two thirds train.

    Returns:
        A `Dataset` with integer values 0..16: train (1198, 64), test (599, 64), labels 0..9, images 8 x 8.

    Raises:
        ImportError: scikit-learn is not installed.

    Example:
        >>> from glmvae import datasets
        >>> datasets.digits()
        Dataset('digits', train=(1198, 64), test=(599, 64), family=Binomial, classes=10, image_shape=(8, 8))

    References:
        Alpaydin and Kaynak (1998), Optical recognition of handwritten digits, UCI machine learning repository
        (its test part). `sklearn.datasets.load_digits` gives the same rows in the same order.
    """
    pixels, labels = optional("sklearn.datasets", "digits").load_digits(return_X_y=True)
    num_train = 2 * len(pixels) // 3
    x, labels = pixels.astype(np.float32), labels.astype(np.int32)
    return Dataset("digits", x[:num_train], x[num_train:], Binomial(16), labels[:num_train], labels[num_train:], (8, 8))


def mnist(folder: str | os.PathLike[str] | None = None, *, download: bool = True) -> Dataset:
    """MNIST, handwritten digits as grey values in [0, 1].

    Paper, B.2: the pixels over 255, with the official split. Grey values count as proportions, so the family
    is Bernoulli. The four files keep their public names, `train-images-idx3-ubyte.gz` and so on; unzipped
    ones, without the `.gz`, are read too.

    Args:
        folder: where the files are, or go; None: GLMVAE_DATA_DIR, else the system's cache folder.
        download: fetch what is missing (11 MB in all, with a progress bar); if False, that is an error.

    Returns:
        A `Dataset`: train (60000, 784), test (10000, 784), labels 0..9, images 28 x 28, `Bernoulli()`.

    Raises:
        FileNotFoundError: a file is missing and download=False, or it cannot be downloaded.
        ValueError: a file, yours or just downloaded, is damaged or does not hold the known content.
        ImportError: pooch or tqdm is needed (for a download or the cache folder) and not installed.

    Example:
        >>> from glmvae import datasets
        >>> datasets.mnist("my/data")  # doctest: +SKIP
        Dataset('mnist', train=(60000, 784), test=(10000, 784), family=Bernoulli, classes=10,
                image_shape=(28, 28))

    References:
        LeCun, Cortes and Burges (2010), MNIST handwritten digit database;
        downloaded from https://ossci-datasets.s3.amazonaws.com/mnist/, a mirror of the original files.
    """
    where = _data_folder(folder)
    train = _fetch("mnist", "train-images-idx3-ubyte.gz", where, download)
    train_labels = _fetch("mnist", "train-labels-idx1-ubyte.gz", where, download)
    test = _fetch("mnist", "t10k-images-idx3-ubyte.gz", where, download)
    test_labels = _fetch("mnist", "t10k-labels-idx1-ubyte.gz", where, download)
    return Dataset(
        "mnist",
        _unit_interval(train),
        _unit_interval(test),
        Bernoulli(),
        train_labels.astype(np.int32),
        test_labels.astype(np.int32),
        (28, 28),
    )


def frey(folder: str | os.PathLike[str] | None = None, *, download: bool = True) -> Dataset:
    """Frey faces, frames of one face in a short film as grey values in [0, 1].

    Paper, B.2: the pixels over 255; the first 1316 frames train, the last 649 test. The file is
    `frey_rawface.mat`, a MATLAB file whose variable `ff` (560, 1965) holds one face a column.

    Args:
        folder: where the file is, or goes; None: GLMVAE_DATA_DIR, else the system's cache folder.
        download: fetch the file if it is missing (1 MB, with a progress bar); if False, that is an error.

    Returns:
        A `Dataset`: train (1316, 560), test (649, 560), no labels, images 28 x 20, `Bernoulli()`.

    Raises:
        FileNotFoundError: the file is missing and download=False, or it cannot be downloaded.
        ValueError: the file, yours or just downloaded, is damaged or does not hold the known content.
        ImportError: pooch or tqdm is needed (for a download or the cache folder) and not installed.

    Example:
        >>> from glmvae import datasets
        >>> datasets.frey("my/data")  # doctest: +SKIP
        Dataset('frey', train=(1316, 560), test=(649, 560), family=Bernoulli, image_shape=(28, 20))

    References:
        Brendan Frey and Sam Roweis, https://cs.nyu.edu/~roweis/data.html, the paper's footnote 5.
    """
    pixels = _fetch("frey", "frey_rawface.mat", _data_folder(folder), download)
    faces = _unit_interval(pixels.reshape(-1, 28, 20))  # the hash covers the values, not the shape
    return Dataset("frey", faces[:1316], faces[1316:], Bernoulli(), image_shape=(28, 20))


def load(name: str, folder: str | os.PathLike[str] | None = None, *, download: bool = True) -> Dataset:
    """A data set by its name.

    For scripts that take the name from the command line.

    Args:
        name: "synthetic" (with `jax.random.key(0)`, as in the paper otherwise), "digits", "mnist" or "frey".
        folder: as in `mnist` and `frey`; the other two read no file.
        download: the same.

    Returns:
        The `Dataset` of the function of that name.

    Raises:
        ValueError: no data set has that name.
        FileNotFoundError, ImportError, ValueError: as the function of that name.

    Example:
        >>> from glmvae import datasets
        >>> datasets.load("synthetic")
        Dataset('synthetic', train=(6700, 200), test=(3300, 200), family=Bernoulli)

    References:
        Paper, B.2, except for digits.
    """
    if name == "synthetic":
        return synthetic(jax.random.key(0))
    if name == "digits":
        return digits()
    if name == "mnist":
        return mnist(folder, download=download)
    if name == "frey":
        return frey(folder, download=download)
    raise ValueError(f"name must be one of 'synthetic', 'digits', 'mnist', 'frey'; got {name!r}")


def _unit_interval(pixels: np.ndarray) -> np.ndarray:
    """Images (N, ...) of bytes as rows (N, d) of float32 in [0, 1]; the division keeps 255 exactly 1."""
    return pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(255)


def _data_folder(folder: str | os.PathLike[str] | None) -> Path:
    chosen = folder if folder is not None else os.environ.get("GLMVAE_DATA_DIR") or None
    return Path(optional("pooch", "the cache folder").os_cache("glmvae") if chosen is None else chosen).expanduser()


def _fetch(dataset: str, name: str, folder: Path, download: bool) -> np.ndarray:
    """The verified bytes of one public file, from the folder or, the first time, from its source."""
    for path in (folder / name, folder / name.removesuffix(".gz")):
        if path.is_file():
            try:
                return _decode(path, name)
            except ValueError as error:
                raise ValueError(
                    f"{path} is not the file it should be: {error}. "
                    "Remove or replace it (glmvae overwrites and deletes no file of yours)."
                ) from error
    url = _SOURCES[dataset] + name
    advice = (
        f"Put {name} into {folder}, or set the environment variable GLMVAE_DATA_DIR to a folder that has it. "
        f"Its public source is {url}"
    )
    if not download:
        raise FileNotFoundError(f"there is no {name} in {folder}, and download=False. {advice}")
    pooch, _ = optional("pooch", "a download"), optional("tqdm", "a download")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Inside the folder, so that publishing never crosses a file system; gone whatever happens below.
        with tempfile.TemporaryDirectory(prefix=".glmvae-", dir=folder, ignore_cleanup_errors=True) as scratch:
            part = Path(scratch, name)
            pooch.HTTPDownloader(progressbar=True, chunk_size=2**16)(url, str(part), None)
            content = _decode(part, name)
            _publish(part, folder / name)
    except OSError as error:  # every error of requests is one
        raise FileNotFoundError(
            f"there is no {name} in {folder}, and the download failed: {error}. {advice}"
        ) from error
    except ValueError as error:
        raise ValueError(f"what {url} sent is not {name}: {error}. Nothing was kept. {advice}") from error
    return content


def _publish(part: Path, target: Path) -> None:
    """Give a finished file its name in one step; a file that already has the name stays."""
    try:
        os.link(part, target)
    except FileExistsError:
        pass  # a parallel process was first
    except OSError:
        # A file system without hard links (exFAT, some network mounts). Nothing portable renames there
        # without replacing, so a moment between the two calls remains; a file that appears in it is replaced.
        if not target.exists():
            part.rename(target)


def _decode(path: Path, name: str) -> np.ndarray:
    """The uint8 array in a file, checked against the known hash; whatever is wrong is a ValueError."""
    content = path.read_bytes()
    if name.endswith(".mat"):
        array = _parse_faces(content)
        content = array.tobytes()
    else:
        content = _gunzip(content)
        array = _parse_idx(content)
    found, expected = hashlib.sha256(content).hexdigest(), _SHA256[name]
    if found != expected:
        raise ValueError(f"the SHA-256 of the decoded content is {found}, expected {expected}")
    return array


def _gunzip(content: bytes) -> bytes:
    """Unzip what is zipped. The content decides, not the name: a browser or a server may have unzipped it."""
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"damaged gzip data ({error})") from error


def _parse_idx(content: bytes) -> np.ndarray:
    """The uint8 array in an IDX file.

    Big-endian: two zero bytes, the type (8: uint8), the number of axes, each length in 4 bytes, the values.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or content[3] == 0:
        raise ValueError(
            f"not an IDX file of bytes: it must begin with 00 00 08 and the number of axes, "
            f"this one begins with {content[:4].hex(' ') or 'nothing'}"
        )
    num_axes = content[3]
    start = 4 + 4 * num_axes
    if len(content) < start:
        raise ValueError(f"an IDX header of {num_axes} axes has {start} bytes, this file {len(content)}")
    shape = struct.unpack_from(f">{num_axes}I", content, 4)
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"an IDX array of shape {shape} has {math.prod(shape)} bytes, this file {len(content) - start}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _parse_faces(content: bytes) -> np.ndarray:
    """The variable `ff` of a MATLAB file, one face a row: (1965, 560) uint8 for Frey."""
    try:
        faces = loadmat(io.BytesIO(content), variable_names=["ff"])["ff"]
    except Exception as error:  # loadmat answers a damaged file with whatever went wrong inside
        raise ValueError(f"not a MATLAB file with a variable ff ({type(error).__name__}: {error})") from error
    if faces.dtype != np.uint8 or faces.ndim != 2:
        raise ValueError(f"ff must be a uint8 matrix, got {faces.dtype} of shape {faces.shape}")
    return np.ascontiguousarray(faces.T)
