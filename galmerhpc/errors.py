"""What can go wrong, and the exit code that says so."""

from collections.abc import Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every `galmerhpc` command."""

    COMPLETE = 0
    FAILED = 1
    WRONG_INPUT = 2
    VIEWS_MISSING = 3
    INTERRUPTED = 75
    """Stopped by a signal or a time limit, the work saved: run again (sysexits' EX_TEMPFAIL)."""


_LONGEST = 120


def brief(what: object) -> str:
    """Return what another library's error says, or any text, in one short line."""
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
    """A failure that one line explains: it names the file or key, the fault and the remedy.

    `cli.py` prints the message without a traceback and leaves with `exit_code`.
    """

    exit_code = ExitCode.FAILED


class InputError(GalmerhpcError):
    """A wrong configuration, argument or input file."""

    exit_code = ExitCode.WRONG_INPUT


class ViewsMissingError(GalmerhpcError):
    """Some views of the catalogue could not be fetched."""

    exit_code = ExitCode.VIEWS_MISSING


class InterruptedRunError(GalmerhpcError):
    """The work so far is saved; the same command goes on from there."""

    exit_code = ExitCode.INTERRUPTED
