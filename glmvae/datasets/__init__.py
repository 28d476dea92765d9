"""The data sets of the paper and of the benchmarks, as NumPy arrays.

`synthetic` and `digits` need no network. `mnist` and `frey` are read from a folder; a file that is missing is
downloaded into it once. The folder is the argument, else the environment variable GLMVAE_DATA_DIR, else the
cache folder of the operating system. Whatever its origin, a file is used only if the SHA-256 of its *decoded*
content is the known one (the same pixels, zipped again, are the same data), and no file is ever overwritten.

Every data set arrives as the paper has it (B.2): one row an observation, float32, ready for its family.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from glmvae import _settings
from glmvae._optional import optional
from glmvae._precision import in_full
from glmvae.datasets.files import data_folder, fetch
from glmvae.families import Bernoulli, Binomial, Family


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
        ValueError: num_rows below 2, num_columns below 40, or strength negative, not finite in float32 or no scalar.
        TypeError: no key, num_rows or num_columns not an integer, strength not a number.

    Example:
        >>> import jax
        >>> from glmvae import datasets
        >>> datasets.synthetic(jax.random.key(0), num_rows=300)
        Dataset('synthetic', train=(201, 200), test=(99, 200), family=Bernoulli)

    References:
        Lee, Huang and Hu (2010), Sparse logistic principal components analysis for binary data, Annals of
        Applied Statistics 4(3), whose construction this is.
    """
    key = _settings.prng_key(key, "key")
    num_rows = _settings.integer(num_rows, "num_rows", least=2)
    num_columns = _settings.integer(num_columns, "num_columns", least=40)
    _settings.at_least(strength, 0.0, "strength")
    if np.ndim(strength):
        raise ValueError(f"strength: expected a scalar, got shape {np.shape(strength)}")
    if float(strength) > float(np.finfo(np.float32).max):
        raise ValueError(f"strength: expected a number that float32 can hold, got {strength:g}")
    score_key, sample_key = jax.random.split(key)
    standard_deviations = jnp.array([[0.3, 0.5]], jnp.float32)
    scores = standard_deviations * jax.random.normal(score_key, (num_rows, 2), jnp.float32)
    loadings = np.zeros((num_columns, 2), np.float32)
    loadings[:20, 0] = 1
    loadings[20:40, 1] = 1
    eta = jnp.float32(strength) * in_full(jnp.matmul)(scores, loadings.T)
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
        TypeError: folder is no path.
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
    where = data_folder(folder)
    train = fetch("mnist", "train-images-idx3-ubyte.gz", where, download)
    train_labels = fetch("mnist", "train-labels-idx1-ubyte.gz", where, download)
    test = fetch("mnist", "t10k-images-idx3-ubyte.gz", where, download)
    test_labels = fetch("mnist", "t10k-labels-idx1-ubyte.gz", where, download)
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
        TypeError: folder is no path.
        ImportError: pooch or tqdm is needed (for a download or the cache folder) and not installed.

    Example:
        >>> from glmvae import datasets
        >>> datasets.frey("my/data")  # doctest: +SKIP
        Dataset('frey', train=(1316, 560), test=(649, 560), family=Bernoulli, image_shape=(28, 20))

    References:
        Brendan Frey and Sam Roweis, https://cs.nyu.edu/~roweis/data.html, the paper's footnote 5.
    """
    pixels = fetch("frey", "frey_rawface.mat", data_folder(folder), download)
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
