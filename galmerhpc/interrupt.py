"""Requests to stop a long stage: a signal's handler sets a flag, the loop looks at it."""

import signal
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Context in which SIGTERM, SIGUSR1 and SIGINT, and a time limit, only make a `reason`.

    A second signal ends the process at once, whatever it is doing.

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
        """What asks this rank to stop; empty where nothing does."""
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
        """Give the signals back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._signal = signal.Signals(number)
        # Not Python's own handlers: they would wait for the thread that writes a checkpoint.
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
