"""The list of views that could not be fetched and why: ``raw/missing.csv``, one per slice.

Failures are appended as they happen, so that a job that was killed does not ask for them again. A
row counts as long as its view is in no raw shard.
"""

import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from galmerhpc import files
from galmerhpc.dataset.slices import WHOLE, Slice
from galmerhpc.errors import InputError

COLUMNS = ("view", "reason")


def list_path(folder: Path, part: Slice = WHOLE) -> Path:
    """Return the path of a slice's list in the run's ``raw`` folder."""
    return folder / f"missing{part.suffix}.csv"


def read_failures(folder: Path) -> dict[str, str]:
    """Return all failures that jobs on this folder noted, of any slice."""
    failures: dict[str, str] = {}
    for path in sorted(folder.glob("missing*.csv")):
        failures |= read(path, "remove it and run galmerhpc scrape again")
    return failures


def read(path: Path, remedy: str) -> dict[str, str]:
    """Read a list: reasons by view.

    Raises
    ------
    InputError
        It is missing, damaged (`remedy` says what to do) or cannot be read.
    """
    try:
        # A kill may have cut the last row short.
        whole = path.read_bytes().rpartition(b"\n")[0]
        rows = list(csv.reader(io.StringIO(whole.decode(), newline="")))
        if rows and tuple(rows[0]) != COLUMNS:
            raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
        return dict(rows[1:])
    except FileNotFoundError:
        raise InputError(f"{path}: missing; {remedy}") from None
    except OSError as error:
        raise files.unreadable(path, error) from None
    except (csv.Error, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); {remedy}") from None


def write(path: Path, failures: Mapping[str, str]) -> None:
    """Replace a list; one without rows is removed."""
    if failures:
        files.write_text(path, _rows([COLUMNS, *failures.items()]))
    else:
        path.unlink(missing_ok=True)


def append(path: Path, failures: Iterable[tuple[str, str]]) -> None:
    """Add rows and force them to disk.

    Raises
    ------
    GalmerhpcError
        The disk is full or cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            head = [] if file.tell() else [COLUMNS]
            file.write(_rows([*head, *failures]))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise files.unwritable(path, error) from error


def _rows(rows: Iterable[Iterable[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
