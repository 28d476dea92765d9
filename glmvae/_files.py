"""Files of plain arrays with a readable header, replaced as a whole: a reader finds the old file or the new one.

A file is a NumPy ``.npz`` (no pickle) whose last bytes, the comment of the zip archive, are a digest of all before
them: a flipped bit anywhere, or a missing end, is told from a file of somebody else.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import secrets
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

_HEADER = "header"
_MARK = b"glmvae "
_DIGEST = 32  # hexadecimal digits


def located(path: str | os.PathLike[str], name: str) -> Path:
    """The file that a path means: ``~`` is expanded, and a symbolic link is followed, not replaced."""
    try:
        return Path(os.path.realpath(os.path.expanduser(Path(path))))
    except TypeError as error:
        raise TypeError(f"{name}: expected a path, got {type(path).__name__}") from error


def pack(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    """The content of a file."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{_HEADER: np.array(json.dumps(header))}, **arrays)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = _MARK + b"0" * _DIGEST
    body = buffer.getvalue()[:-_DIGEST]
    return body + _digest(body)


def unpack(content: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays.

    Raises:
        ValueError: another kind of file, or a damaged one; it says what is wrong with it.
    """
    body, digest = content[:-_DIGEST], content[-_DIGEST:]
    if not content:
        raise ValueError("it is empty")
    if content.startswith(b"\x93NUMPY"):
        raise ValueError("it is a single array, an .npy file")
    if not content.startswith(b"PK"):
        raise ValueError("it is another kind of file")
    if digest != _digest(body):
        known = body.endswith(_MARK)
        raise ValueError("it is damaged" if known else "its end is missing, or it was written by something else")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = dict(file)
    return json.loads(str(arrays.pop(_HEADER))), arrays


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST // 2).hexdigest().encode()


def write(path: Path, content: bytes) -> None:
    """Replace the file, all or nothing, or make it.

    The bytes go to a file of a name of its own in the same folder, onto the disk, and then that gets the name. Whoever
    else writes there does the same, so what is published is whole, whoever is last.
    """
    part = _written_beside(path, content)
    try:
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):
        with contextlib.suppress(OSError):  # the file has its name; not every file system can promise more
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def rehearse(path: Path, content: bytes) -> None:
    """Do all of :func:`write` that can fail, and leave everything as it was.

    Raises:
        OSError: no such folder, not allowed, no room, not a file that can be replaced.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "may not be written", str(path))
    _written_beside(path, content).unlink()


def _written_beside(path: Path, content: bytes) -> Path:
    """A new file in the same folder with that content, on the disk, with the permissions of the old."""
    part = path.with_name(f".glmvae-{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb") as file:
            if path.exists():
                os.chmod(part, stat.S_IMODE(path.stat().st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part
