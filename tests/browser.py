"""A headless Chromium, spoken to over a pipe in its DevTools protocol."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome")
_SWITCHES = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             "--no-first-run", "--disable-background-networking", "--hide-scrollbars",
             "--remote-debugging-pipe")  # fmt: skip


def require_browser() -> None:
    """Skip a test where there is no browser, or fail it where there must be one."""
    if PROGRAM is None:
        reason = "needs Chromium (apt-get install chromium)"
        if os.environ.get("GALMERHPC_BROWSER_TESTS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)


@dataclass
class Browser:
    """One page of a running browser, and all that it did since it was opened."""

    commands: int
    """Descriptor to write to."""
    answers: int
    """Descriptor to read from."""
    session: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    _unread: bytes = b""
    _last: int = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result; events meanwhile are kept."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, path: Path, width: int, height: int) -> None:
        """Open a file in a window of this size and wait until all of it is loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Network", "Log", "Runtime", "Page"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=width < 500)  # fmt: skip
        self.call("Page.navigate", url=path.as_uri())
        while not self.of("Page.loadEventFired"):
            self.events.append(self._read())

    def of(self, *methods: str) -> list[dict[str, Any]]:
        """Return the events of some kinds so far."""
        return [e["params"] for e in self.events if e.get("method") in methods]

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"]["value"]

    def screenshot(self, path: Path) -> None:
        """Save a picture of the whole page."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(picture))

    def print_pdf(self) -> bytes:
        """Return the page as it is printed."""
        return base64.b64decode(self.call("Page.printToPDF")["data"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            part = os.read(self.answers, 1 << 20)
            assert part, "the browser has ended"
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start a browser, with its profile in a folder."""
    to_read, commands = map(_high, os.pipe())
    answers, to_write = map(_high, os.pipe())
    # The browser reads from descriptor 3 and writes to 4.
    shell = f'exec "$@" 3<&{to_read} 4>&{to_write}'
    command = ["bash", "-c", shell, "bash", str(PROGRAM), *_SWITCHES, f"--user-data-dir={profile}"]
    with subprocess.Popen(
        command, pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as process:
        os.close(to_read)
        os.close(to_write)
        page = Browser(commands, answers)
        try:
            yield page
            page.session = ""
            page.call("Browser.close")
            process.wait(60)
        finally:
            process.kill()
            os.close(commands)
            os.close(answers)


def _high(descriptor: int) -> int:
    """Move a descriptor away from the numbers that the browser wants."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved
