"""Files that are complete or absent: atomic writes, checksums and locks."""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from galmerhpc.errors import GalmerhpcError, InputError

log = logging.getLogger(__name__)

_BLOCK = 1 << 20
_TEMPORARY, _BAD = ".tmp-", ".bad"
# NFS and Lustre give a dead node's locks back after about 100 s.
_LEASE_S, _LOOK_S = 240.0, 1.0


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; written and synced, it is renamed to `path`.

    A file or a folder may be made there. On an error the temporary is removed and `path` is as it
    was; after a kill only the temporary is left, which no reader looks at.

    Parameters
    ----------
    path : Path
        Final name. An existing file is replaced in one step; an existing folder is an error.

    Raises
    ------
    GalmerhpcError
        The disk is full or the folder cannot be written; the message names the file.
    """
    path = Path(path)
    writer = f"{socket.gethostname()}-{os.getpid()}"  # nodes count their processes alike
    temporary = path.with_name(f"{_TEMPORARY}{writer}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        for file in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            sync(file)
        temporary.rename(path)
        sync(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        _remove(temporary)


def unwritable(path: Path, error: OSError) -> GalmerhpcError:
    """Return the error of a file that cannot be written, on a full disk for example."""
    # HDF5 puts a page of text into strerror.
    why = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
    return GalmerhpcError(
        f"{path}: cannot be written: {why}; make room or choose another run_dir, then run again"
    )


def sync(path: Path) -> None:
    """Force a file or folder to disk; a folder only where its file system knows how."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Of some network file systems only the server can.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path, chosen: Callable[[Path], bool] = lambda _: True) -> None:
    """Remove what killed writers left in a folder; the chosen files must have no writer."""
    for path in filter(chosen, folder.glob(f"{_TEMPORARY}*")):
        _remove(path)


def remove_folder(path: Path) -> None:
    """Remove a folder so that a reader finds it complete or absent, even after a kill midway."""
    going = path.with_name(f"{_TEMPORARY}removed-{path.name}")
    _remove(going)
    path.rename(going)
    shutil.rmtree(going)


def set_aside(path: Path) -> Path:
    """Rename something damaged to ``*.bad``, beside earlier ones, and return its new name."""
    name, number = path.with_name(path.name + _BAD), 1
    while name.exists():
        number += 1
        name = path.with_name(f"{path.name}{_BAD}{number}")
    return path.rename(name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; not-a-number is refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    InputError
        It is missing, damaged or cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it and run the stage again") from None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def hold(file: IO[Any], wait: bool = False) -> bool:
    """Take the system's lock on an open file; it ends when the file is closed, or its process.

    Returns
    -------
    held : bool
        False if another process has it. True also where the file system has no locks, which is
        logged: there the user must start one job at a time.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
        _warn_of_no_locks(Path(file.name).parent)
    return True


@functools.cache
def _warn_of_no_locks(folder: Path) -> None:
    log.warning("%s: this file system has no locks; start one job at a time", folder)


@contextlib.contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Be the only process, on any node, that is in here for this path.

    The file names the holder, for people; what counts is the system's lock on it, so that a killed
    job leaves nothing to remove.

    Parameters
    ----------
    path : Path
        Lock file; it exists only meanwhile, or after a kill.
    wait : bool
        Wait for another process to leave, instead of refusing.

    Raises
    ------
    InputError
        Another process is in; the message says which.
    """
    try:
        file = _take(path, wait)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def job_lock(path: Path, rank: int, wait: bool = False) -> contextlib.AbstractContextManager[None]:
    """`lock` for a job of many ranks: rank 0 is in there for all, the others only enter."""
    return contextlib.nullcontext() if rank > 0 else lock(path, wait)


def _take(path: Path, wait: bool) -> IO[str]:
    """Return the lock file, open and held."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open("a+")
        if not hold(file, wait) and not _outlive(file):
            holder = _holder(file)
            file.close()
            raise InputError(
                f"{path.parent}: in use by {holder}; wait for it to end, or choose another folder"
            )
        try:
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                break
        except FileNotFoundError:
            pass
        file.close()  # its holder has just removed it
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}{_job()}\n")
    file.flush()
    return file


def _holder(file: IO[str]) -> str:
    """Return what the process that has the lock wrote into its file."""
    file.seek(0)
    return file.read().strip() or "another process"


def _job() -> str:
    """Return the SLURM job that this is, as lock files name it."""
    number = os.environ.get("SLURM_JOB_ID")
    return f" (job {number})" if number else ""


def _outlive(file: IO[str]) -> bool:
    """Wait for the lock of this job's previous attempt, and return whether it is held then.

    A job that comes back after its node was lost keeps its number. The server of a network file
    system keeps a dead node's lock for a while.
    """
    came_back = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
    if not came_back or not _holder(file).endswith(_job()):
        return False
    log.info("%s: waiting for the lock of this job's previous attempt", file.name)
    end = time.monotonic() + _LEASE_S
    while not (held := hold(file)) and time.monotonic() < end:
        time.sleep(_LOOK_S)
    return held


def is_locked(path: Path) -> bool:
    """Return whether a process is in `lock` for this path."""
    try:
        with path.open("r+") as file:
            return not hold(file)
    except FileNotFoundError:
        return False


class UnreadableError(InputError):
    """A file that may be intact but cannot be read: permissions, a disk or a server."""


def unreadable(path: Path, error: OSError) -> UnreadableError:
    """Return the error of a file that the system refuses to read; nothing says it is damaged."""
    return UnreadableError(
        f"{path}: cannot be read: {os.strerror(error.errno or 0)}; check its permissions and "
        "the file system"
    )
