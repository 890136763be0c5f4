"""The mirror: GalMer's preview service over a snapshot library, for places that cannot reach it.

It answers as such a CGI does: a GIF, or a page that says what was wrong, with status 200 all the
same. It serves neither ``halo=1`` nor another quantity than the surface density: a library holds
places and masses of luminous particles alone. Its gas is a collisionless disc, unlike GalMer's.
"""

import functools
import html
import os
import select
import signal
import socketserver
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from PIL import Image

from galmerhpc import __version__
from galmerhpc.errors import GalmerhpcError, InputError
from galmerhpc.preview import PATH, Preview
from galmerhpc.simulate.library import Library, Snapshot
from galmerhpc.simulate.render import NEUTRAL_BRIGHTNESS, render

_SNAPSHOTS_KEPT = 64  # about half a megabyte each
_IDLE_S = 120  # a silent connection is closed and its thread ends
_PENDING = 256  # connections that may wait to be accepted
_BUFFER = 1 << 20  # header and image leave in one piece: no wait for the client's acknowledgement

_GIF, _HTML = "image/gif", "text/html; charset=utf-8"
_PAGE = """<!DOCTYPE html>
<html><head><title>{title}</title></head>
<body><h1>{title}</h1><p>{text}</p></body></html>
"""


def serve(library: Path, host: str, port: int, until_stdin_closes: bool = False) -> None:
    """Answer preview requests until SIGTERM or SIGINT; to be called from the main thread.

    Prints ``listening on http://HOST:PORT/ (library FILE)`` to standard output once it answers.

    Parameters
    ----------
    library : Path
        Snapshot library.
    host : str
        Address to listen on.
    port : int
        Port; 0 takes a free one.
    until_stdin_closes : bool
        End as well when standard input ends. A parent process keeps the other end of a pipe:
        however it dies, the kernel closes the pipe, and the mirror ends too.

    Raises
    ------
    InputError
        The library cannot be read, or the address cannot be listened on.
    """
    with Library(library) as snapshots, _listen(host, port, snapshots) as server:
        _compile(snapshots)
        signals = _end_signals()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"listening on http://{host}:{server.port}/ (library {library})", flush=True)
        _await_end(signals, sys.stdin.fileno() if until_stdin_closes else None)
        server.shutdown()
        server.finish_pictures()


def _listen(host: str, port: int, library: Library) -> "_Server":
    try:
        return _Server(host, port, library)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"port {port} of {host}: cannot be listened on ({reason}); "
            "choose another --port, or 0 for a free one"
        ) from None


def _compile(library: Library) -> None:
    """Draw one small image, so that no client waits for the compiler."""
    view = Preview(
        nbins=16, snap_id=0, phi=0.0, theta=0.0, bins=4.0, bri=NEUTRAL_BRIGHTNESS, xc=0.0, yc=0.0,
        gas=True, stars=True, halo=False, quantity=0,
    )  # fmt: skip
    for snap_id in library.snapshot_ids[:1]:
        snapshot = library.snapshot(snap_id)
        try:
            render(snapshot, view)
        except OSError as error:
            raise GalmerhpcError(
                f"numba cannot keep its compiled code ({error}); "
                "make room, or set NUMBA_CACHE_DIR to a folder that can be written"
            ) from error


def _end_signals() -> int:
    """Return a descriptor that can be read from once SIGTERM or SIGINT has come."""
    # Through a pipe, since a signal that comes just before a wait does not end the wait.
    signals, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return signals


def _await_end(signals: int, stdin: int | None) -> None:
    """Return on a signal, or when standard input ends if it is given."""
    watched = [signals] if stdin is None else [signals, stdin]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if signals in ready or not os.read(ready[0], 4096):
            return


class _Server(socketserver.ThreadingTCPServer):
    """One thread per connection; http.server.ThreadingHTTPServer would ask DNS for its name."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = _PENDING

    def __init__(self, host: str, port: int, library: Library) -> None:
        super().__init__((host, port), _Handler)
        self._snapshot = functools.lru_cache(maxsize=_SNAPSHOTS_KEPT)(library.snapshot)
        self._cpus = len(os.sched_getaffinity(0))
        self._drawing = threading.Semaphore(self._cpus)

    @property
    def port(self) -> int:
        """The port that was taken."""
        return int(self.server_address[1])

    def picture(self, query: str) -> bytes:
        """Return the GIF that a query string asks for.

        Raises
        ------
        InputError
            It cannot be drawn; the message says why.
        """
        preview = _parse(query)
        with self._drawing:
            return _gif(preview, self._snapshot(preview.snap_id))

    def finish_pictures(self) -> None:
        """Let images being drawn finish and begin no more: compiled code must not be cut off."""
        for _ in range(self._cpus):
            self._drawing.acquire()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report what went wrong in a connection, unless the client only left or fell silent."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One connection, kept open for many requests."""

    server: _Server
    server_version = f"galmerhpc/{__version__}"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = _BUFFER
    timeout = _IDLE_S

    def do_GET(self) -> None:
        """Answer with an image, or with a page that says why not."""
        path, _, query = self.path.partition("?")
        if path != PATH:
            self._send_page(HTTPStatus.NOT_FOUND, "Not found", f"Images are only at {PATH}.")
            return
        try:
            picture = self.server.picture(query)
        except InputError as error:
            self._send_page(HTTPStatus.OK, "Error", str(error))
        except Exception:
            self._send_page(HTTPStatus.INTERNAL_SERVER_ERROR, "Error", "The image failed.")
            raise  # handle_error reports it here, not to the client
        else:
            self._send(HTTPStatus.OK, _GIF, picture)

    do_HEAD = do_GET  # noqa: N815

    def _send_page(self, status: HTTPStatus, title: str, text: str) -> None:
        page = _PAGE.format(title=html.escape(title), text=html.escape(text))
        self._send(status, _HTML, page.encode())

    def _send(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing: a scrape makes millions of requests."""


def _parse(query: str) -> Preview:
    try:
        preview = Preview.parse(query)
    except ValueError as error:
        raise InputError(str(error)) from None
    if preview.halo:
        raise InputError("halo=1 is not served: the library holds luminous particles only")
    if preview.quantity:
        raise InputError(f"quantity={preview.quantity} is not served: only 0, the surface density")
    return preview


def _gif(preview: Preview, snapshot: Snapshot) -> bytes:
    picture = Image.fromarray(render(snapshot, preview))
    # Into a file, though one in memory, Pillow encodes without holding up the other threads.
    with os.fdopen(os.memfd_create("preview.gif"), "w+b", buffering=0) as file:
        picture.save(file, "GIF", optimize=False, interlace=False)
        file.seek(0)
        return file.read()
