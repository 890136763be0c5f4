"""Checkpoints: folders ``step-00000123`` that are complete and verified, or absent.

A folder holds ``state.npz`` (arrays, no pickle) and ``manifest.json`` (position, provenance, and
the SHA-256 of both files). An epoch that is finished and validated has a checkpoint of its own,
``step-00000123-epoch-0001``, which replaces that of its last step; a training whose validation was
cut short resumes from the latter.
"""

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from galmerhpc import files
from galmerhpc.config import Config, digest
from galmerhpc.errors import GalmerhpcError, InputError

log = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]

_STATE, _MANIFEST = "state.npz", "manifest.json"
_OWN_SHA256 = "manifest_sha256"
_NAME = re.compile(r"step-(\d+)(?:-epoch-(\d+))?")
_ORDER_KEYS = ("training.batch_size", "training.seed")


def changeable(config: Config) -> list[str]:
    """Return the keys that may differ from the checkpoints'."""
    keys = config.inputs("train")
    return [key for key in keys if key.startswith("training.") and key not in _ORDER_KEYS]


def check_changes(config: Config, allow_change: Sequence[str]) -> None:
    """Refuse keys that may never differ.

    Raises
    ------
    InputError
        The message lists those that may.
    """
    allowed = changeable(config)
    for key in allow_change:
        if key not in allowed:
            raise InputError(
                f"--allow-change {key}: it decides the data, their order or the network; only "
                f"these can change: {', '.join(allowed)}"
            )


def checkpoint_name(step: int, epoch: int | None = None) -> str:
    """Return a checkpoint's name.

    Parameters
    ----------
    step : int
        Steps done since the start of training.
    epoch : int, optional
        Epochs finished, if the step was the last of an epoch that has been validated.
    """
    return f"step-{step:08d}" + ("" if epoch is None else f"-epoch-{epoch:04d}")


def step_of(path: Path) -> int | None:
    """Return a checkpoint's step; None if it is not a checkpoint."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def save(
    folder: Path, name: str, arrays: Arrays, meta: dict[str, Any], keep: int, best: str | None
) -> None:
    """Write a checkpoint and read it back, then remove old ones.

    The checkpoint of an epoch's end replaces that of its last step.

    Parameters
    ----------
    folder : Path
        The run's ``checkpoints``.
    name : str
        As `checkpoint_name` returns it.
    arrays : dict of ndarray
        The state.
    meta : dict
        JSON values: position and provenance.
    keep : int
        Number of newest checkpoints to keep.
    best : str or None
        Name of another one to keep.

    Raises
    ------
    GalmerhpcError
        It cannot be written, or reads back differently; earlier ones are left alone.
    """
    path = folder / name
    if path.exists():  # an elastic training may do a step twice
        files.remove_folder(path)
    with files.atomic_path(path) as temporary:
        temporary.mkdir()
        with _HashingFile(temporary / _STATE) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        if files.sha256(temporary / _STATE) != file.sha256:
            raise GalmerhpcError(
                f"{path / _STATE}: reads back differently from what was written: the disk or its "
                "file system is at fault; choose another run_dir"
            )
        manifest = {**meta, "sha256": file.sha256}
        files.write_json(temporary / _MANIFEST, {**manifest, _OWN_SHA256: digest(manifest)})
    for old in listed(folder):
        if name.startswith(f"{old.name}-"):  # the last step of the epoch that this is the end of
            files.remove_folder(old)
    for old in listed(folder)[:-keep]:
        if old.name != best:
            files.remove_folder(old)


def load_latest(folder: Path) -> tuple[Arrays, dict[str, Any]] | None:
    """Read the newest intact checkpoint.

    Damaged ones after it are logged and renamed to ``*.bad``: they would count as progress, and
    push out what is saved next. Those that only cannot be read now keep their names.

    Returns
    -------
    tuple of (arrays, meta), or None
        None where there is no checkpoint.

    Raises
    ------
    InputError
        There are checkpoints, but none is intact and readable; they keep their names.
    """
    found, damaged = listed(folder), []
    refused: files.UnreadableError | None = None
    for path in reversed(found):
        try:
            latest = load(path)
        except InputError as error:
            log.warning("%s; the checkpoint before it is used", error)
            if isinstance(error, files.UnreadableError):
                refused = error
            else:
                damaged.append(path)
            continue
        for bad in damaged:
            files.set_aside(bad)
        return latest
    if refused:
        raise refused
    if found:
        raise InputError(
            f"{folder}: every checkpoint is damaged; remove the folder to train from scratch"
        )
    return None


def load(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Read one checkpoint.

    Raises
    ------
    InputError
        It is damaged.
    """
    meta = verify(path)
    try:
        with np.load(path / _STATE, allow_pickle=False) as state:
            return {name: state[name] for name in state.files}, meta
    except (OSError, LookupError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error})") from None


def verify(path: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest, after both of its files have been compared with it.

    Raises
    ------
    InputError
        It is damaged, or cannot be read (`files.UnreadableError`).
    """
    try:
        meta = files.read_json(path / _MANIFEST)
        if digest({k: v for k, v in meta.items() if k != _OWN_SHA256}) != meta[_OWN_SHA256]:
            raise ValueError(f"the SHA-256 of {_MANIFEST} is not the one in it")
        if files.sha256(path / _STATE) != meta["sha256"]:
            raise ValueError(f"the SHA-256 of {_STATE} is not the one in {_MANIFEST}")
        return meta
    except files.UnreadableError:
        raise
    except (InputError, FileNotFoundError, LookupError, TypeError, ValueError, AttributeError) as e:
        raise InputError(f"{path}: damaged ({e})") from None
    except OSError as error:
        raise files.unreadable(path / _STATE, error) from None


def listed(folder: Path) -> list[Path]:
    """Return the checkpoints in the order of training."""
    found = [(_NAME.fullmatch(path.name), path) for path in folder.glob("step-*")]
    # An epoch's end comes after its last step.
    order = [(int(name[1]), int(name[2] or -1), path) for name, path in found if name]
    return [path for _, _, path in sorted(order)]


class _HashingFile:
    """A file written once from start to end, with the SHA-256 of what was to be written."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("wb")
        self._hasher = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """SHA-256 of everything written, hexadecimal."""
        return self._hasher.hexdigest()

    def write(self, data: bytes) -> int:
        """Write; there is no seek, so that zipfile writes sequentially."""
        self._hasher.update(data)
        return self._file.write(data)

    def read(self, _size: int = -1) -> bytes:
        """Refuse; numpy asks for the method to tell a file from a path."""
        raise OSError("this file is write-only")

    def flush(self) -> None:
        """Pass everything to the operating system."""
        self._file.flush()

    def __enter__(self) -> "_HashingFile":
        """Begin to write."""
        return self

    def __exit__(self, *_: object) -> None:
        """Write it to disk and drop it from the page cache, so that reading back reads the disk."""
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Writer:
    """Context that writes one thing at a time in a thread, and raises its error in the caller."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Begin to write, once the previous write is done.

        Raises
        ------
        GalmerhpcError
            The previous write failed.
        """
        self.wait()
        self._writing = self._thread.submit(write)

    def check(self) -> None:
        """Raise the error of the current write, if it has failed."""
        if self._writing and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the current write; raise its error."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def __enter__(self) -> "Writer":
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish the current write; its error does not hide another one."""
        with contextlib.suppress(*([] if kind is None else [GalmerhpcError])):
            self.wait()
        self._thread.shutdown()
