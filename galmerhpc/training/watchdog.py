"""Ends a job in which one rank hangs: the others notice, report it, and end the job.

Horovod's own stall check works only as long as the hanging process's background thread answers. A
process that is stopped, swapped out or on a frozen node does not answer, and the others wait inside
MPI for ever. So every rank watches its own steps.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from galmerhpc import parallel
from galmerhpc.errors import ExitCode
from galmerhpc.training import horovod

T = TypeVar("T")

# The lowest rank that still runs reports for all: each higher one waits a second longer.
_STAGGER_S, _LONGEST_STAGGER_S = 1.0, 10.0
_LOOK_S = 1.0
# An MPI that hangs itself may not return from Abort.
_ABORT_S = 3.0


class Watchdog:
    """Context that ends the job once this rank has made no progress for `limit_s`.

    Parameters
    ----------
    limit_s : float
        Seconds without a step after which another rank counts as hanging.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._closed = threading.Event()
        self._last = time.monotonic()

    def __enter__(self) -> "Watchdog":
        """Begin to watch; a single rank waits for nobody and is not watched."""
        self.beat()
        if horovod.size() > 1:
            threading.Thread(target=self._watch, args=(horovod.rank(),), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._closed.set()

    def beat(self, ahead_s: float = 0.0) -> None:
        """Record that this rank progresses, and may be silent for `ahead_s` seconds more."""
        self._last = time.monotonic() + ahead_s

    def watched(self, steps: Iterable[T]) -> Iterator[T]:
        """Yield each of `steps`, with a beat before it."""
        for step in steps:
            self.beat()
            yield step

    def _watch(self, rank: int) -> None:
        limit_s = self._limit_s + min(rank * _STAGGER_S, _LONGEST_STAGGER_S)
        while (left := self._last + limit_s - time.monotonic()) > 0:
            look = time.monotonic()
            if self._closed.wait(min(left, _LOOK_S)):
                return
            if time.monotonic() - look > _LOOK_S + self._limit_s / 2:
                self.beat()  # this rank was stopped itself: the others report it
        exit_code = int(ExitCode.FAILED)
        end = threading.Timer(_ABORT_S, os._exit, (exit_code,))
        end.daemon = True
        end.start()
        parallel.end_job(
            f"galmerhpc: no step for {self._limit_s:g} s (training.stall_limit_s) on rank {rank}: "
            "another rank hangs, or its node is lost; run the same command again: it resumes from "
            "the last checkpoint",
            exit_code,
        )
