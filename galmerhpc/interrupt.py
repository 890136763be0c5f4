"""Requests to stop a long stage: a signal handler sets a flag, which the loop checks."""

import signal
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Context in which SIGTERM, SIGUSR1, SIGINT and a time limit only set `reason`.

    A second signal ends the process at once.

    Parameters
    ----------
    time_limit_s : float, optional
        Seconds from now.
    """

    def __init__(self, time_limit_s: float | None = None) -> None:
        self._end = None if time_limit_s is None else time.monotonic() + time_limit_s
        self._signal: signal.Signals | None = None
        self._former: dict[int, object] = {}

    @property
    def reason(self) -> str:
        """What asks this rank to stop; empty if nothing does."""
        if self._signal is not None:
            return self._signal.name
        if self._end is not None and time.monotonic() >= self._end:
            return "the time limit"
        return ""

    def __enter__(self) -> "StopRequest":
        """Install the handlers."""
        for number in SIGNALS:
            self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the handlers."""
        for number, handler in self._former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._signal = signal.Signals(number)
        # Not Python's own handlers: these would wait for the thread that writes a checkpoint.
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
