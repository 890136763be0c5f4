import html
import http.client
import io
import signal
import socket
import string
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from galmerhpc.errors import InputError
from galmerhpc.preview import PATH, Preview
from galmerhpc.simulate.library import (
    SHIPPED,
    Component,
    Encounter,
    Library,
    library_path,
    merge,
    write_encounter,
)
from galmerhpc.simulate.mirror import serve
from galmerhpc.simulate.render import render
from tests.support import environment, galmerhpc, run

# FACTS: what the service's own page asks for.
QUERY = (
    "nbins=400&snap_id=27436&phi=30&theta=45&bins=0.16666666666666666&bri=4&xc=0&yc=0"
    "&gas=1&stars=1&halo=0&quantity=0"
)
SMALL = QUERY.replace("nbins=400", "nbins=48").replace("bins=0.16666666666666666", "bins=1.5")

untimed = settings(deadline=None)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a made-up library of three snapshots, the service's example among them."""
    folder = tmp_path_factory.mktemp("library")
    random = np.random.default_rng(0)
    count = 2000
    discs = random.normal(size=(3, 2 * count, 3)) * (5, 4, 0.5)
    discs[:, count:] += (12, 6, 2)
    encounter = Encounter(
        name="made-up",
        attributes={},
        time_myr=np.arange(3.0),
        position=discs,
        mass=np.full(2 * count, 5e7),
        component=random.choice([Component.STARS, Component.GAS], 2 * count).astype(np.uint8),
        galaxy=np.repeat([0, 1], count).astype(np.uint8),
    )
    write_encounter(folder / "encounter.h5", encounter, neighbours=32)
    merge(folder / "library.h5", {"made-up": folder / "encounter.h5"}, first_snapshot_id=27435)
    return folder / "library.h5"


# --- a real mirror and a plain client -------------------------------------------------------------


@dataclass
class Mirror:
    process: subprocess.Popen[str]
    host: str
    port: int

    def connect(self) -> closing[http.client.HTTPConnection]:
        return closing(http.client.HTTPConnection(self.host, self.port, timeout=60))


@dataclass
class Answer:
    status: int
    kind: str
    length: int
    body: bytes


def ask(connection: http.client.HTTPConnection, query: str, method: str = "GET") -> Answer:
    connection.request(method, f"{PATH}?{query}")
    return read(connection.getresponse())


def read(response: http.client.HTTPResponse) -> Answer:
    kind, length = response.headers.get_content_type(), int(response.headers["Content-Length"])
    return Answer(response.status, kind, length, response.read())


@contextmanager
def mirror_of(library: Path, **env: str) -> Iterator[Mirror]:
    """Start a mirror; at the end it must leave on SIGTERM, with no complaint on the way."""
    command = [sys.executable, "-m", "galmerhpc.cli", "mirror", "--library", str(library)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**env),
    ) as process:
        try:
            address = urlsplit(listening(process, library))
            assert address.hostname
            assert address.port
            yield Mirror(process, address.hostname, address.port)
        finally:
            process.terminate()
            _, complaints = process.communicate(timeout=60)
        assert complaints == ""
        assert process.returncode == 0


def listening(process: subprocess.Popen[str], library: Path) -> str:
    """Return the address from the line that a mirror prints when it is ready."""
    assert process.stdout
    words = process.stdout.readline().split(" ", 3)
    assert words[:2] == ["listening", "on"]
    assert words[3] == f"(library {library})\n"
    return words[2]


@pytest.fixture(scope="module")
def mirror(library: Path) -> Iterator[Mirror]:
    with mirror_of(library) as running:
        yield running


@pytest.fixture
def connection(mirror: Mirror) -> Iterator[http.client.HTTPConnection]:
    with mirror.connect() as connection:
        yield connection


# --- pictures -------------------------------------------------------------------------------------


def test_the_service_s_own_query_works_with_only_the_host_changed(library: Path) -> None:
    shipped = library_path(SHIPPED)
    running = mirror_of(shipped if shipped.is_file() else library)
    with running as mirror, mirror.connect() as connection:
        connection.request("GET", f"/get_preview.cgi?{QUERY}")
        answer = read(connection.getresponse())
    assert (answer.status, answer.kind) == (200, "image/gif")
    pixels = np.asarray(Image.open(io.BytesIO(answer.body)))
    assert pixels.shape == (400, 400)
    assert pixels.min() < 50
    assert pixels.max() > 200


def test_the_gif_shows_what_render_draws(
    library: Path, connection: http.client.HTTPConnection
) -> None:
    with Library(library) as opened:
        drawn = render(opened.snapshot(27436), Preview.parse(QUERY))
    shown = Image.open(io.BytesIO(ask(connection, QUERY).body)).convert("L")
    assert (np.asarray(shown) == drawn).all()
    assert drawn.std() > 10


def test_many_clients_at_once_get_what_one_gets(mirror: Mirror) -> None:
    queries = [
        SMALL.replace("phi=30", f"phi={phi}").replace("27436", str(27435 + phi % 3))
        for phi in range(40)
    ]
    with mirror.connect() as one_by_one:
        expected = [ask(one_by_one, query).body for query in queries]
    assert len(set(expected)) == len(queries)

    def fetch(turn: int) -> list[bytes]:
        with mirror.connect() as connection:
            bodies = [ask(connection, query).body for query in queries[turn:] + queries[:turn]]
        return bodies[-turn:] + bodies[:-turn] if turn else bodies

    with ThreadPoolExecutor(8) as clients:
        assert all(bodies == expected for bodies in clients.map(fetch, range(8)))


def test_another_mirror_without_a_place_for_compiled_code_draws_the_same(
    library: Path, connection: http.client.HTTPConnection
) -> None:
    # No place is a zip archive: as in a read-only installation of a user without a home.
    with (
        mirror_of(library, NUMBA_CACHE_LOCATOR_CLASSES="ZipCacheLocator") as other,
        other.connect() as theirs,
    ):
        assert ask(theirs, QUERY).body == ask(connection, QUERY).body


# --- the protocol ---------------------------------------------------------------------------------


def test_a_connection_is_kept_through_pictures_errors_and_head(
    connection: http.client.HTTPConnection,
) -> None:
    picture = ask(connection, SMALL)
    line = connection.sock
    assert ask(connection, "nonsense=1").kind == "text/html"
    head = ask(connection, SMALL, "HEAD")
    assert (head.status, head.kind, head.length, head.body) == (
        200,
        "image/gif",
        picture.length,
        b"",
    )
    connection.request("GET", "/elsewhere")
    assert read(connection.getresponse()).status == 404
    assert ask(connection, SMALL).body == picture.body
    assert connection.sock is line


@pytest.mark.parametrize(
    "path", ["/", "/get_preview.cgi/", "/get_preview", "//get_preview.cg", "*"]
)
def test_other_paths_are_not_found(path: str, connection: http.client.HTTPConnection) -> None:
    connection.request("GET", f"{path}?{SMALL}")
    answer = read(connection.getresponse())
    assert (answer.status, answer.kind) == (404, "text/html")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("snap_id=27436", "snap_id=1", "no snapshot 1 (available: 27435-27437)"),
        ("halo=0", "halo=1", "halo=1 is not served"),
        ("quantity=0", "quantity=3", "quantity=3 is not served"),
        ("nbins=48", "nbins=999999", "'nbins' is 999999"),
        ("&yc=0", "", "'yc' is missing"),
        (
            "bri=4",
            "bri=<script>alert(1)</script>",
            "'bri' is not a number: '<script>alert(1)</script>'",
        ),
    ],
)
def test_a_wrong_request_gets_a_page_that_says_what_was_wrong(
    old: str, new: str, says: str, connection: http.client.HTTPConnection
) -> None:
    answer = ask(connection, SMALL.replace(old, new))
    assert (answer.status, answer.kind) == (200, "text/html")
    assert says in html.unescape(answer.body.decode())
    assert b"<script>" not in answer.body


names = [pair.partition("=")[0] for pair in SMALL.split("&")]
queries = st.text() | st.builds(
    lambda own, other: urlencode({**dict(p.split("=") for p in SMALL.split("&")), **own, **other}),
    st.dictionaries(st.sampled_from(names), st.text() | st.floats().map(str), max_size=3),
    st.just({}) | st.dictionaries(st.text(), st.text(), max_size=1),
)


@untimed
@given(queries)
def test_any_query_gets_a_picture_or_a_page(mirror: Mirror, query: str) -> None:
    with mirror.connect() as connection:
        answer = ask(connection, quoted(query))
    assert answer.status == 200
    assert answer.length == len(answer.body)
    if answer.kind == "image/gif":
        Image.open(io.BytesIO(answer.body)).load()
    else:
        assert answer.body.startswith(b"<!DOCTYPE html>")
        assert b"Traceback" not in answer.body


def quoted(query: str) -> str:
    """Percent-encode what cannot stand on a request line, and nothing else."""
    return quote(query, safe=string.punctuation)


@untimed
@given(st.binary(min_size=1, max_size=200))
def test_garbage_on_the_line_does_no_harm(mirror: Mirror, garbage: bytes) -> None:
    with socket.create_connection((mirror.host, mirror.port), timeout=60) as line:
        line.sendall(garbage + b"\r\n\r\n")
        line.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    assert b"Traceback" not in answer
    with mirror.connect() as connection:
        assert ask(connection, SMALL).kind == "image/gif"


def test_clients_that_hang_up_are_no_error(mirror: Mirror) -> None:
    request = f"GET {PATH}?{QUERY} HTTP/1.1\r\nHost: mirror\r\n\r\n".encode()
    for _ in range(10):
        line = socket.create_connection((mirror.host, mirror.port))
        line.sendall(request * 5)
        # Closing resets the connection while pictures are on their way.
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line.close()
    with mirror.connect() as connection:
        assert ask(connection, SMALL).kind == "image/gif"
    # mirror_of checks that nothing was complained of.


# --- beginning and end ----------------------------------------------------------------------------


def test_a_port_in_use_is_named(library: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = galmerhpc("mirror", "--library", str(library), "--port", port)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert f"port {port} of 127.0.0.1" in ended.stderr
    assert "--port" in ended.stderr


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99999), ("192.0.2.1", 0)])
def test_an_impossible_address_is_named(library: Path, host: str, port: int) -> None:
    with pytest.raises(InputError, match=f"^port {port} of {host}: .* --port"):
        serve(library, host, port)


@pytest.mark.parametrize("content", [None, b"", b"no library", b"\x89HDF\r\n\x1a\n" + bytes(500)])
def test_a_missing_or_damaged_library_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "library.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path}: "):
        serve(path, "127.0.0.1", 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well_also_under_load(library: Path, number: signal.Signals) -> None:
    with mirror_of(library) as running, ExitStack() as connections:
        for _ in range(8):
            connection = connections.enter_context(running.connect())
            connection.request("GET", f"{PATH}?{QUERY}")
        running.process.send_signal(number)
        assert running.process.wait(timeout=60) == 0  # mirror_of checks that nothing is printed


PARENT = """
import signal, subprocess, sys
mirror = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
signal.pause()
"""


def test_it_dies_with_a_parent_that_was_killed(library: Path) -> None:
    command = [sys.executable, "-m", "galmerhpc.cli", "mirror", "--library", str(library)]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *command, "--until-stdin-closes"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as parent:
        assert parent.stdout
        listening(parent, library)
        parent.kill()
        # Parent and mirror share this pipe: it ends when both are gone.
        assert parent.stdout.read() == ""


def test_it_needs_neither_mpi_nor_tensorflow() -> None:
    code = (
        "import sys, galmerhpc.simulate.mirror; print(*{m.partition('.')[0] for m in sys.modules})"
    )
    imported = run(sys.executable, "-c", code).stdout.split()
    assert "galmerhpc" in imported
    assert not {"mpi4py", "tensorflow", "keras", "horovod"} & set(imported)
