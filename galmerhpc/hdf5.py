"""What libraries and shards have in common: damaged files, texts, columns with checksums."""

import contextlib
import errno
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from galmerhpc import files
from galmerhpc.errors import brief

Damaged = Callable[[Path, str], Exception]

ERRORS = (OSError, KeyError, RuntimeError, TypeError, ValueError, AttributeError, IndexError)
"""What h5py and code that reads from it raise on files that are damaged or not HDF5."""


@contextlib.contextmanager
def opened(path: Path, damaged: Damaged) -> Iterator[h5py.File]:
    """Open a file for reading; anything found wrong with it inside becomes one error.

    Parameters
    ----------
    path : Path
        The file. It is not locked: parallel file systems often refuse that, and no one writes it.
    damaged : callable
        From the path and what is wrong, in short, to the error that says what to do.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except ERRORS as error:
        raise fault(path, error, damaged) from None


def fault(path: Path, error: Exception, damaged: Damaged) -> Exception:
    """Return what an error of `ERRORS` means: a damaged file, or one that cannot be read."""
    # HDF5 gives the system's number where the system refused; a missing file is the caller's.
    if isinstance(error, OSError) and error.errno not in {None, errno.ENOENT}:
        return files.unreadable(path, error)
    return damaged(path, brief(error))


# --- columns --------------------------------------------------------------------------------------


def text_column(texts: Sequence[str], width: int | None = None) -> NDArray[Any]:
    """Return texts as a column of one length: contiguous, and shown as text by HDF5's tools.

    Texts of different lengths would be in HDF5's global heap, which has no checksum, and HDF5 1.14
    never returns from reading a damaged one.

    Parameters
    ----------
    texts : sequence of str
        The rows.
    width : int, optional
        Bytes per row; by default those of the longest.
    """
    encoded = [text.encode() for text in texts]
    width = width or max(1, *map(len, encoded))
    return np.array(encoded, h5py.string_dtype("utf-8", width))


def attribute(value: str | float) -> Any:
    """Return an attribute's value in the form to store, a text as by `text_column`."""
    return text_column([value]).reshape(()) if isinstance(value, str) else value


def sha256(column: NDArray[Any]) -> str:
    """Return the SHA-256 of a column's bytes, hexadecimal, as its attribute `sha256` holds it."""
    return hashlib.sha256(np.ascontiguousarray(column).tobytes()).hexdigest()


def read_column(file: h5py.File, name: str) -> NDArray[Any]:
    """Read a column and compare it with its checksum.

    Raises
    ------
    ValueError
        It is not what was written.
    """
    column: NDArray[Any] = file[name][:]
    if sha256(column).encode() != file[name].attrs["sha256"]:
        raise ValueError(f"checksum mismatch in {name}")
    return column
