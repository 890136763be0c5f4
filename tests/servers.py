"""Preview services of flesh and blood for tests: one that works and ones that do not."""

import hashlib
import io
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

from galmerhpc.preview import PATH, Preview


def gif(query: str, nbins: int | None = None) -> bytes:
    """Return the picture of a query string: noise that is always the same."""
    size = nbins or Preview.parse(query).nbins
    seed = int.from_bytes(hashlib.sha256(query.encode()).digest()[:8], "big")
    return encode(np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8))


def encode(pixels: np.ndarray, kind: str = "GIF", **options: object) -> bytes:
    """Encode a grey picture."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@dataclass
class Reply:
    """What a service answers.

    `cut` ends the connection after so many bytes of the body; `hang` sends nothing until the
    service ends; `drip` sends a byte at a time, and never the last one; `drip_header` does so from
    the first header on, without end; `reset` sends nothing and breaks the connection; `after_s` is
    what the service takes to think.
    """

    body: bytes = b""
    status: int = 200
    content_type: str = "image/gif"
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    hang: bool = False
    drip: bool = False
    drip_header: bool = False
    reset: bool = False
    after_s: float = 0.0


Behaviour = Callable[[str, int], Reply]
"""Query string and number of the try for it, from 0 -> the reply."""


def well(query: str, attempt: int) -> Reply:  # noqa: ARG001
    """Answer every view with its picture."""
    return Reply(gif(query))


class Service:
    """A running service: its address, and what it was asked.

    Attributes
    ----------
    url : str
        Its address.
    asked : Counter
        Requests by query string.
    arrivals : list of float
        When they came, by `time.monotonic`.
    agents : set of str
        User-Agents seen.
    credentials : set of str or None
        Authorization headers seen; None of requests without.
    connections : int
        Connections taken.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: Counter[str] = Counter()
        self.arrivals: list[float] = []
        self.agents: set[str] = set()
        self.credentials: set[str | None] = set()
        self.connections = 0
        self.ending = threading.Event()
        self._news = threading.Condition()

    def note(self, query: str, agent: str) -> int:
        """Count a request; return how often the same was asked before."""
        with self._news:
            self.asked[query] += 1
            self.arrivals.append(time.monotonic())
            self.agents.add(agent)
            self._news.notify_all()
            return self.asked[query] - 1

    def wait_for(self, requests: int, timeout: float = 60) -> None:
        """Wait until so many requests have come in all."""
        with self._news:
            if not self._news.wait_for(lambda: self.asked.total() >= requests, timeout):
                raise TimeoutError(f"{self.asked.total()} of {requests} requests came")


@contextmanager
def serve(behaviour: Behaviour = well, host: str = "127.0.0.1") -> Iterator[Service]:
    """Run a service on a free port of this machine, in threads of this process."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Else a body waits 40 ms for the headers' acknowledgement.
        disable_nagle_algorithm = True

        def setup(self) -> None:
            service.connections += 1
            super().setup()

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            attempt = service.note(query, self.headers["User-Agent"])
            service.credentials.add(self.headers["Authorization"])
            reply = behaviour(query, attempt) if path == PATH else Reply(status=404)
            if reply.after_s:
                service.ending.wait(reply.after_s)
            if reply.hang:
                service.ending.wait()
            if reply.reset:  # closing then sends RST
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            if reply.hang or reply.reset:
                self.close_connection = True
                return
            if reply.drip_header:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                while not service.ending.wait(0.05):
                    self.wfile.write(b"x")
                return
            self.send_response(reply.status)
            headers = {"Content-Type": reply.content_type, "Content-Length": len(reply.body)}
            for name, value in (headers | dict(reply.headers)).items():
                self.send_header(name, str(value))
            self.end_headers()
            if reply.drip:
                for byte in reply.body[:-1]:
                    self.wfile.write(bytes([byte]))
                    if service.ending.wait(0.05):
                        break
            else:
                self.wfile.write(reply.body[: reply.cut])
            self.close_connection |= reply.drip or reply.cut is not None

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: object) -> None:
            """A client that was killed or gave up is no fault of the service."""

    server = Server((host, 0), Handler)
    service = Service(f"http://{host}:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.ending.set()
        server.shutdown()
        server.server_close()
        thread.join()
