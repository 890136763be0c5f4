"""What libraries and shards have in common: damaged files, texts, columns with checksums."""

import contextlib
import errno
import hashlib
import io
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


# --- writing --------------------------------------------------------------------------------------


@contextlib.contextmanager
def written(path: Path) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """Write a file, atomically.

    Parameters
    ----------
    path : Path
        The file; its folder is created.

    Yields
    ------
    file : h5py.File
        The file.
    check : callable
        Raises what has gone wrong so far, so that a long writing ends early; it is raised at the
        end in any case.

    Raises
    ------
    GalmerhpcError
        The disk is full or cannot be written.
    """
    with files.atomic_path(path) as temporary, temporary.open("w+b") as plain:
        device = _Device(plain)
        with create(device) as file:
            yield file, device.raise_fault
        device.raise_fault()


def create(device: "io.BytesIO | _Device") -> h5py.File:
    """Begin an HDF5 file whose bytes depend on its content alone.

    Parameters
    ----------
    device : file-like
        Where its bytes go.
    """
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fileobj_driver(h5py.h5fd.fileobj_driver, device)
    # Readable by HDF5 1.10 (2016) and later; its object headers carry checksums.
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    # A chunk is compressed when it is complete, not when a cache runs over.
    access.set_cache(0, 0, 0, 0.0)
    creation.set_obj_track_times(False)  # h5py.File has no switch for the root group's
    return h5py.File(h5py.h5f.create(b"file", h5py.h5f.ACC_TRUNC, creation, access))


class _Device:
    """A file as HDF5 writes it, which takes every write, also when the disk is full.

    HDF5 crashes the process where a write fails amid its closing of a file. So a fault is kept, and
    raised by `raise_fault` once HDF5 is out of the way; the file is of no use then.
    """

    def __init__(self, file: io.BufferedRandom) -> None:
        self._file = file
        self._fault: OSError | None = None
        self.seek, self.tell, self.readinto = file.seek, file.tell, file.readinto

    def write(self, data: memoryview) -> int:
        self._try(lambda: self._file.write(data))
        return len(data)

    def truncate(self, size: int) -> int:
        self._try(lambda: self._file.truncate(size))
        return size

    def flush(self) -> None:
        self._try(self._file.flush)

    def _try(self, action: Callable[[], object]) -> None:
        if self._fault is None:
            try:
                action()
            except OSError as error:
                self._fault = error

    def raise_fault(self) -> None:
        """Raise the first fault, if there was one."""
        if self._fault:
            raise self._fault


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


def first_difference(column: NDArray[Any], wanted: NDArray[Any]) -> int:
    """Return the number, from 1, of the first row that differs; 0 if none does.

    NaN, an unknown time, does not differ from NaN.
    """
    if column.shape != wanted.shape:
        return 1
    unlike = (column != wanted) & ((column == column) | (wanted == wanted))
    differs = unlike.reshape(len(column), -1).any(axis=1)
    return int(differs.argmax()) + 1 if differs.any() else 0
