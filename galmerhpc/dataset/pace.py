"""How fast a job may ask one host: a pure function of what happened when.

All moments are seconds of one clock that the caller reads, so that it can be tested without one.
"""


class Pace:
    """The pace of all ranks together: a budget, and less of it while the host is overloaded.

    Requests start at slots 1 / rate apart; unused slots are lost, so that no burst follows.
    An overload halves the rate and the connections, at most once per round trip, down to one
    connection; each good answer gives back a fixed share (additive increase, multiplicative
    decrease: Chiu & Jain 1989). Where a single connection is too much for the host, pauses follow,
    each twice as long as the one before, until it answers.

    Parameters
    ----------
    connections : int
        Requests at once.
    rate_per_s : float or None
        Requests per second; None sets no limit.
    pause_s, longest_pause_s : float
        The first pause, and the longest one.
    """

    _RECOVERY = 1 / 64  # share of the full pace that a good answer gives back

    def __init__(
        self, connections: int, rate_per_s: float | None, pause_s: float, longest_pause_s: float
    ) -> None:
        self._connections, self._rate_per_s = connections, rate_per_s
        self._first_pause_s, self._longest_pause_s = pause_s, longest_pause_s
        self._share = 1.0
        self._pause_s = pause_s
        self._next = self._silent_until = self._slowed = float("-inf")

    @property
    def share(self) -> float:
        """Share of the full pace that is kept now, in (0, 1]."""
        return self._share

    @property
    def connections(self) -> int:
        """Requests that may be under way at once now."""
        return max(1, int(self._share * self._connections))

    def silence_s(self, now: float) -> float:
        """Return for how long no request may start."""
        return max(0.0, self._silent_until - now)

    def next_start(self, now: float) -> float:
        """Return the next free slot: the moment when a request may start."""
        return max(now, self._next, self._silent_until)

    def start(self, now: float) -> float:
        """Take the next free slot and return its moment."""
        moment = self.next_start(now)
        if self._rate_per_s is not None:
            self._next = moment + 1 / (self._rate_per_s * self._share)
        return moment

    def recover(self) -> None:
        """Take note of a good answer."""
        self._share = min(1.0, self._share + self._RECOVERY)
        self._pause_s = self._first_pause_s

    def back_off(self, now: float, began: float, silence_s: float = 0.0) -> bool:
        """Slow down, for a request that began at `began`; return whether it was a new overload.

        Parameters
        ----------
        now, began : float
            When it is known, and when the request started: one that had started before the last
            slowing down says nothing of the slower pace.
        silence_s : float
            Seconds for which the host asks to be left alone.
        """
        self._silent_until = max(self._silent_until, now + silence_s)
        if began < self._slowed:
            return False
        self._slowed = now
        if self._share > 1 / self._connections:
            self._share = max(1 / self._connections, self._share / 2)
        else:
            self._silent_until = max(self._silent_until, now + self._pause_s)
            self._pause_s = min(2 * self._pause_s, self._longest_pause_s)
        return True
