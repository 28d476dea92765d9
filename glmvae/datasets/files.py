"""The public files of the data sets: downloaded once, checked, read.

A file is used only if the SHA-256 of its decoded content is the known one; none is ever overwritten.
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

import numpy as np
from scipy.io import loadmat

from glmvae._optional import optional

# Where the public files are: the address of a file is its folder here, then its name.
SOURCES = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "frey": "https://cs.nyu.edu/~roweis/data/",
}
# SHA-256 of the decoded content: an unzipped IDX file with its header; the bytes of Frey's `ff.T` in C order.
SHA256 = {
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    "frey_rawface.mat": "2438ba4f0d2a6bd8bac43de756141eaa33c8d248dd613d464bdb1210d9b7af78",
}


def data_folder(folder: str | os.PathLike[str] | None) -> Path:
    chosen = folder if folder is not None else os.environ.get("GLMVAE_DATA_DIR") or None
    if chosen is None:
        chosen = optional("pooch", "the cache folder").os_cache("glmvae")
    try:
        return Path(chosen).expanduser()
    except TypeError as error:
        raise TypeError(f"folder: expected a path, got {type(chosen).__name__}") from error


def fetch(dataset: str, name: str, folder: Path, download: bool) -> np.ndarray:
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
    url = SOURCES[dataset] + name
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
        array = parse_faces(content)
        content = array.tobytes()
    else:
        content = gunzip(content)
        array = parse_idx(content)
    found, expected = hashlib.sha256(content).hexdigest(), SHA256[name]
    if found != expected:
        raise ValueError(f"the SHA-256 of the decoded content is {found}, expected {expected}")
    return array


def gunzip(content: bytes) -> bytes:
    """Unzip what is zipped. The content decides, not the name: a browser or a server may have unzipped it."""
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"damaged gzip data ({error})") from error


def parse_idx(content: bytes) -> np.ndarray:
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


def parse_faces(content: bytes) -> np.ndarray:
    """The variable `ff` of a MATLAB file, one face a row: (1965, 560) uint8 for Frey."""
    try:
        faces = loadmat(io.BytesIO(content), variable_names=["ff"])["ff"]
    except Exception as error:  # loadmat answers a damaged file with whatever went wrong inside
        raise ValueError(f"not a MATLAB file with a variable ff ({type(error).__name__}: {error})") from error
    if faces.dtype != np.uint8 or faces.ndim != 2:
        raise ValueError(f"ff must be a uint8 matrix, got {faces.dtype} of shape {faces.shape}")
    return np.ascontiguousarray(faces.T)
