"""The threads of one rank that ask for views and check what comes."""

import contextlib
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from galmerhpc.catalogue import View, Views
from galmerhpc.config import Scrape
from galmerhpc.dataset.client import Answer, Client, TryAgainError, ViewFailedError, check_picture
from galmerhpc.dataset.raw import Response
from galmerhpc.dataset.scheduler import (
    LATE_S,
    Assignment,
    Failed,
    Outcome,
    Report,
    Retryable,
    Skipped,
    duplicate,
)

SPARE = 2
"""Views that wait behind each request, so that a slow disk keeps no connection idle."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A view's image, to be written."""

    number: int
    response: Response


@dataclass(frozen=True, slots=True)
class _Came:
    """The unchecked result of a request."""

    number: int
    view: View
    began: float
    answer: Answer | Exception


Result = Picture | Failed | Retryable | Skipped


class FetchPool:
    """The threads of a rank: some ask, with one request each at a time, and one checks what came.

    With a rate limit each request starts at its moment or not at all; without one each thread has
    its next views at hand.

    Parameters
    ----------
    settings : config.Scrape
        How to fetch.
    source : str
        The host's address.
    views : Views
        All views.
    threads : int
        How many ask; may be 0.

    Attributes
    ----------
    in_flight : int
        Views taken on whose results were not taken yet.
    """

    def __init__(self, settings: Scrape, source: str, views: Views, threads: int) -> None:
        self.in_flight = 0
        self._views, self._threads = views, threads
        self._paced = settings.rate_per_s is not None
        self._client = Client(
            source,
            connections=max(1, threads),
            timeout_s=settings.timeout_s,
            contact=settings.contact,
        )
        self._todo: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()
        self._came: queue.SimpleQueue[_Came | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Result | Exception] = queue.SimpleQueue()
        self._silent_until = float("-inf")
        self._duplicates: set[bytes] = set()
        # Daemons: a rank that must end does not wait for answers.
        for _ in range(threads):
            threading.Thread(target=self._ask, daemon=True).start()
        threading.Thread(target=self._check, daemon=True).start()

    def report(self, outcomes: Sequence[Outcome], stop: bool) -> Report:
        """Return what to tell the coordinator."""
        return Report(
            outcomes=tuple(outcomes),
            room=self._threads * (1 if self._paced else 1 + SPARE) - self.in_flight,
            duplicates_known=len(self._duplicates),
            stop=stop,
            clock=time.monotonic(),
        )

    def submit(self, assignment: Assignment) -> None:
        """Hand views to the threads."""
        now = time.monotonic()
        self._be_silent(assignment.silence_s)
        self._duplicates.update(assignment.duplicates)
        for number, delay_s in assignment.views:
            self._todo.put((number, now + delay_s))
        self.in_flight += len(assignment.views)

    def stop(self) -> None:
        """Let the requests that are under way be the last."""
        self._be_silent(float("inf"))
        for _ in range(self._threads):
            self._todo.put(None)

    def close(self) -> None:
        """Close the connections."""
        self._came.put(None)
        self._client.close()

    def results(self, wait_s: float) -> list[Result]:
        """Wait so long for a result; return it with all others that are ready."""
        results: list[Result] = []
        with contextlib.suppress(queue.Empty):
            results.append(self._result(wait_s))
            while True:
                results.append(self._result(0))
        self.in_flight -= len(results)
        return results

    def _result(self, wait_s: float) -> Result:
        result = self._done.get(timeout=wait_s) if wait_s else self._done.get_nowait()
        if isinstance(result, Exception):
            raise result
        return result

    def _be_silent(self, seconds: float) -> None:
        self._silent_until = max(self._silent_until, time.monotonic() + seconds)

    def _ask(self) -> None:
        """Ask for views at their moments; a connection does not wait while an answer is checked."""
        while (task := self._todo.get()) is not None:
            number, moment = task
            time.sleep(max(0.0, moment - time.monotonic()))
            began = time.monotonic()
            if began < self._silent_until or (self._paced and began > moment + LATE_S):
                self._done.put(Skipped(number))
            else:
                view = self._views[number]
                self._came.put(_Came(number, view, began, self._answer(view)))

    def _answer(self, view: View) -> Answer | Exception:
        try:
            return self._client.ask(view.preview)
        except Exception as error:  # noqa: BLE001 - `_judge` tells them apart
            return error

    def _check(self) -> None:
        """Check what came."""
        while (came := self._came.get()) is not None:
            self._done.put(self._judge(came))

    def _judge(self, came: "_Came") -> Result | Exception:
        try:
            answer = came.answer
            if isinstance(answer, Exception):
                raise answer
            check_picture(answer.body, answer.content_type, came.view.render.nbins)
            response = Response.of(
                came.view, answer.url, answer.content_type, answer.fetched_utc, answer.body
            )
        except ViewFailedError as error:
            return Failed(came.number, str(error))
        except TryAgainError as error:
            self._be_silent(error.retry_after_s)
            return Retryable(
                came.number,
                str(error),
                came.began,
                error.overload,
                error.answered,
                error.retry_after_s,
            )
        except Exception as error:  # noqa: BLE001 - raised again by the rank's main thread
            return error
        sha256 = response.sha256.encode()
        if sha256 in self._duplicates:
            return Failed(came.number, duplicate(sha256))
        return Picture(came.number, response)
