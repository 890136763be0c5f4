"""HDF5 files that may be damaged: how they are opened, and what is wrong with them."""

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py

from galmerhpc import files
from galmerhpc.errors import brief

Damaged = Callable[[Path, str], Exception]

ERRORS = (OSError, KeyError, RuntimeError, TypeError, ValueError, AttributeError, IndexError)
"""What h5py, and whoever reads from it, raises on files that are damaged or not HDF5."""


@contextlib.contextmanager
def opened(path: Path, damaged: Damaged) -> Iterator[h5py.File]:
    """Give a file to read from; whatever is found wrong with it meanwhile is one error.

    Parameters
    ----------
    path : Path
        The file. It is not locked: parallel file systems often refuse that, and nobody writes it.
    damaged : callable
        From the path and what is wrong, in short, to the error that says what to do.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except ERRORS as error:
        raise fault(path, error, damaged) from None


def fault(path: Path, error: Exception, damaged: Damaged) -> Exception:
    """Return what an error of `ERRORS` means: a file that is damaged, or one out of reach."""
    # HDF5 gives the system's number where the system refused; a missing file is the caller's.
    if isinstance(error, OSError) and error.errno not in {None, errno.ENOENT}:
        return files.unreadable(path, error)
    return damaged(path, brief(error))
