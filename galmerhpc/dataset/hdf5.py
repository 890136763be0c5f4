"""HDF5 files that may be damaged: how they are opened, and what is wrong with them."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py

from galmerhpc.errors import brief

ERRORS = (OSError, KeyError, RuntimeError, TypeError, ValueError, AttributeError, IndexError)
"""What h5py, and whoever reads from it, raises on files that are damaged or not HDF5."""


@contextlib.contextmanager
def opened(path: Path, damaged: Callable[[Path, str], Exception]) -> Iterator[h5py.File]:
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
        raise damaged(path, brief(error)) from None
