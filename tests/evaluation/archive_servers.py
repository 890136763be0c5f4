"""Stand-ins for SkyServer and HyperLEDA that know a few galaxies, over real HTTP."""

import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Galaxy:
    """What both services know about a galaxy."""

    ra_deg: float
    dec_deg: float
    magnitude: float = 16.0
    redshift: float | None = 0.03
    pa_deg: float | None = 30.0
    inclination_deg: float | None = 60.0


Answer = tuple[int, str, bytes]
"""Status, content type, body."""


@dataclass
class Sky:
    """The galaxies, the requests received, and how to misbehave.

    `instead` may take the place of an answer: it gets the request's path and query.
    """

    galaxies: list[Galaxy]
    asked: list[str] = field(default_factory=list)
    instead: Callable[[str, dict[str, str]], Answer | None] = lambda _path, _query: None

    def answer(self, path: str, query: dict[str, str]) -> Answer:
        """Answer as the service at this path."""
        self.asked.append(path)
        if other := self.instead(path, query):
            return other
        if path.endswith("/SearchTools/SqlSearch"):
            return 200, "text/csv", self.sql(query["cmd"], query["format"]).encode()
        if path.endswith("/ImgCutout/getjpeg"):
            return 200, "image/jpeg", self.picture({k: float(v) for k, v in query.items()})
        if path.endswith("/fG.cgi"):
            return 200, "text/plain", self.leda(query).encode()
        return 404, "text/html", b"<html>not found</html>"

    def sql(self, command: str, form: str) -> str:
        """Answer the only kind of query that SkyServer receives."""
        assert form == "csv"
        assert re.match(r"SELECT TOP 1 p\.modelMag_r AS magnitude, s\.z AS redshift FROM ", command)
        assert "WHERE p.type = 3 ORDER BY n.distance" in command
        found = re.search(r"fGetNearbyObjEq\((\S+), (\S+), (\S+)\)", command)
        ra, dec, radius = map(float, found.groups())
        near = sorted(
            (np.hypot((g.ra_deg - ra) * np.cos(np.radians(dec)), g.dec_deg - dec) * 60, i)
            for i, g in enumerate(self.galaxies)
        )
        rows = [self.galaxies[i] for distance, i in near[:1] if distance < radius]
        lines = [f"{g.magnitude},{'null' if g.redshift is None else g.redshift}" for g in rows]
        return "\n".join(["#Table1", "magnitude,redshift", *lines, ""])

    def picture(self, query: dict[str, float]) -> bytes:
        """Draw the galaxies as a cut-out shows them: north up, east left."""
        width, height, scale = int(query["width"]), int(query["height"]), query["scale"]
        y, x = np.mgrid[:height, :width]
        light = np.full((height, width), 8.0)
        for g in self.galaxies:
            east = (g.ra_deg - query["ra"]) * np.cos(np.radians(query["dec"])) * 3600
            north = (g.dec_deg - query["dec"]) * 3600
            column, row = (width - 1) / 2 - east / scale, (height - 1) / 2 - north / scale
            light += 180 * np.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * 15.0**2))
        buffer = io.BytesIO()
        Image.fromarray(np.clip(light, 0, 255).astype(np.uint8)).convert("RGB").save(buffer, "JPEG")
        return buffer.getvalue()

    def leda(self, query: dict[str, str]) -> str:
        """Answer a query of HyperLEDA's mean data; right ascension is in hours."""
        assert query["n"] == "meandata"
        assert query["a"] == "csv[,]"
        (low_ra, high_ra), (low_dec, high_dec) = (
            map(float, re.search(rf"{name} between (\S+) and (\S+)", query["sql"]).groups())
            for name in ("al2000", "de2000")
        )
        lines = ["# HyperLEDA - a stand-in", "#", query["d"]]
        for k, g in enumerate(self.galaxies):
            if low_ra <= g.ra_deg / 15 <= high_ra and low_dec <= g.dec_deg <= high_dec:
                cells = (g.ra_deg / 15, g.dec_deg, g.pa_deg, g.inclination_deg)
                shown = ("" if v is None else f"{v:.6f}" for v in cells)
                lines.append(f"PGC{k:07d},{','.join(shown)}")
        return "\n".join([*lines, "# end", ""])


@contextmanager
def serve(sky: Sky) -> Iterator[str]:
    """Serve a sky on a free port; yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            try:
                status, kind, body = sky.answer(parts.path, query)
            except Exception as error:  # noqa: BLE001 - the client is to see it
                status, kind, body = 501, "text/plain", json.dumps(repr(error)).encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
