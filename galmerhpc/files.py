"""Files that are whole or not there: atomic writes, checksums, and the record of a stage."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from galmerhpc import __version__
from galmerhpc.errors import GalmerhpcError, InputError

_BLOCK = 1 << 20
_TEMPORARY = ".tmp-"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that becomes it once it is written, synced and closed.

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
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        for file in [temporary, *temporary.rglob("*")] if temporary.is_dir() else [temporary]:
            sync(file)
        temporary.rename(path)
        sync(path.parent)
    except OSError as error:
        # HDF5 puts a whole page into strerror.
        why = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        raise GalmerhpcError(
            f"{path}: cannot be written: {why}; make room or choose another run_dir, then run again"
        ) from error
    finally:
        _remove(temporary)


def sync(path: Path) -> None:
    """Force a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in a folder; nobody else may be writing there."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        _remove(path)


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
        It is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it and run the stage again") from None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


class StageRecord:
    """The record of a stage in its folder, ``stage.json``: what it was made from, and what it made.

    Parameters
    ----------
    folder : Path
        Folder of the stage's files.
    inputs : dict
        ``Config.inputs`` of the stage: flat keys and JSON values.

    Raises
    ------
    InputError
        The folder was made from other inputs; the message names the keys that differ.
    """

    def __init__(self, folder: Path, inputs: dict[str, Any]) -> None:
        self._path = folder / "stage.json"
        # Through JSON, so that a tuple equals the list that was read back.
        self._inputs = json.loads(json.dumps(inputs))
        self._files: dict[str, str] | None = None
        if self._path.exists():
            record = read_json(self._path)
            if not (
                isinstance(record, dict)
                and isinstance(record.get("inputs"), dict)
                and isinstance(record.get("files"), dict | None)
            ):
                raise InputError(f"{self._path}: damaged; remove {folder} and run the stage again")
            self._compare(record["inputs"])
            self._files = record.get("files")

    def _compare(self, recorded: dict[str, Any]) -> None:
        keys = sorted(
            k
            for k in recorded.keys() | self._inputs.keys()
            if recorded.get(k) != self._inputs.get(k)
        )
        if keys:
            first = keys[0]
            more = (
                f" (and {', '.join(keys[1:4])}{' ...' if len(keys) > 4 else ''})"
                if keys[1:]
                else ""
            )
            raise InputError(
                f"{self._path.parent}: made with another {first}{more}: "
                f"{_short(recorded.get(first))} there, {_short(self._inputs.get(first))} now; "
                "choose another run_dir or remove that folder"
            )

    @property
    def complete(self) -> bool:
        """Whether the stage has been finished and its files are still there."""
        return self._files is not None and all(
            (self._path.parent / name).is_file() for name in self._files
        )

    @property
    def files(self) -> dict[str, str]:
        """The finished stage's files and their SHA-256."""
        return dict(self._files or {})

    def begin(self) -> None:
        """Write down the inputs before the first file is made."""
        self._write(None)

    def finish(self, files: dict[str, str]) -> None:
        """Declare the stage complete.

        Parameters
        ----------
        files : dict
            SHA-256 by file name, relative to the stage's folder.
        """
        self._write(files)

    def _write(self, files: dict[str, str] | None) -> None:
        self._files = files
        write_json(self._path, {"version": __version__, "inputs": self._inputs, "files": files})


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
