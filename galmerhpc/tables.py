"""CSV tables written by users: read completely, or refused with file, line and column."""

import csv
import difflib
import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from galmerhpc.errors import InputError

Row = TypeVar("Row")

_LONGEST_MESSAGE = 300


def read_bytes(path: Path) -> bytes:
    """Return the content of a file named by the user.

    Raises
    ------
    InputError
        It cannot be read.
    """
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {why}") from None


def parse(
    path: Path,
    content: bytes,
    needed: Sequence[str],
    optional: Sequence[str] | None,
    row: Callable[[dict[str, str]], Row],
) -> list[Row]:
    """Parse a UTF-8 CSV table with a header, ignoring empty lines and rows of empty cells.

    Parameters
    ----------
    path : Path
        Name of the file, for messages.
    content : bytes
        Content of the file.
    needed : sequence of str
        Required columns.
    optional : sequence of str or None
        Further columns that are allowed; None allows any.
    row : callable
        Converts stripped cells by column to a row; raises ValueError if one is invalid.

    Raises
    ------
    InputError
        It is not such a table, or a row is invalid; the message names the line.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a UTF-8 text file") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(header, needed, optional)
        rows = [row(_by_column(header, cells)) for cells in reader if any(map(str.strip, cells))]
    except (csv.Error, ValueError) as error:
        # A quoted cell may have any length.
        why = textwrap.shorten(str(error), _LONGEST_MESSAGE, placeholder=" ...")
        raise InputError(f"{path}:{reader.line_num}: {why}") from None
    if not rows:
        raise InputError(f"{path}: the table has no rows")
    return rows


def _check_header(
    header: Sequence[str], needed: Sequence[str], optional: Sequence[str] | None
) -> None:
    for separator in (";", "\t"):
        if len(header) == 1 and separator in header[0]:
            raise ValueError(
                f"one column with {separator!r} in its name; separate columns by commas"
            )
    for name in needed:
        if name not in header:
            near = difflib.get_close_matches(name, set(header) - set(needed), 1)
            hint = f"is it {near[0]!r}?" if near else f"required: {', '.join(needed)}"
            raise ValueError(f"no column {name} ({hint})")
    if len(set(header)) < len(header):
        raise ValueError("duplicate column")
    if optional is not None:
        for name in header:
            if name not in (*needed, *optional):
                allowed = ", ".join((*needed, *optional))
                raise ValueError(f"unknown column {name!r} (allowed: {allowed})")


def _by_column(header: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    if len(cells) != len(header):
        raise ValueError(f"{len(cells)} cells, but the header has {len(header)}")
    return dict(zip(header, (cell.strip() for cell in cells), strict=True))
