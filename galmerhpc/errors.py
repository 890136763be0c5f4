"""Errors shown to users, and their exit codes."""

from collections.abc import Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every `galmerhpc` command."""

    COMPLETE = 0
    FAILED = 1
    WRONG_INPUT = 2
    VIEWS_MISSING = 3
    INTERRUPTED = 75
    """Stopped by a signal or time limit, with the work saved; run again (sysexits' EX_TEMPFAIL)."""


_LONGEST = 120


def brief(what: object) -> str:
    """Return the text of another library's error, or any text, as one short line."""
    return " ".join(str(what).split())[:_LONGEST]


_NAMED = 3


def first_few(items: Sequence[str], separator: str = ", ") -> str:
    """Return the first items of a list that a message may not give in full.

    Examples
    --------
    >>> first_few(["a", "b", "c", "d", "e"])
    'a, b, c, and 2 more'
    """
    more = [f"and {len(items) - _NAMED} more"] if len(items) > _NAMED else []
    return separator.join([*items[:_NAMED], *more])


class GalmerhpcError(Exception):
    """A failure explained by one line that names the file or key, the fault and the remedy.

    `cli.py` prints the message without a traceback and exits with `exit_code`.
    """

    exit_code = ExitCode.FAILED


class InputError(GalmerhpcError):
    """An invalid configuration, argument or input file."""

    exit_code = ExitCode.WRONG_INPUT


class ViewsMissingError(GalmerhpcError):
    """Some views of the catalogue could not be fetched."""

    exit_code = ExitCode.VIEWS_MISSING


class InterruptedRunError(GalmerhpcError):
    """The work so far is saved; the same command resumes it."""

    exit_code = ExitCode.INTERRUPTED
