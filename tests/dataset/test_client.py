"""The client: what it accepts, what it tries again, what it says when it gives up."""

import gzip
import io
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from galmerhpc.dataset.client import Client, TryAgainError, ViewFailedError
from galmerhpc.errors import InputError
from galmerhpc.preview import Preview
from tests.servers import Reply, encode, gif, serve, well

SIDE = 16
NOISE = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
PAGE = b"<html><style>p {}</style><body><h1>Error</h1>No such\nsnapshot &amp; no luck</body></html>"


def preview(phi: float = 0) -> Preview:
    return Preview(SIDE, 27436, phi, 45, 1 / 6, 4, 0, 0, True, True, False, 0)


def animated() -> bytes:
    return encode(NOISE, save_all=True, append_images=[Image.fromarray(255 - NOISE)])


@contextmanager
def client(url: str, **settings: object) -> Iterator[Client]:
    defaults = {"connections": 2, "timeout_s": 5, "contact": ""}
    with closing(Client(url, **(defaults | settings))) as made:
        yield made


def test_a_picture_comes_as_it_is_and_connections_are_reused() -> None:
    with serve() as service, client(service.url, contact="me@example.org") as c:
        answers = [c.fetch(preview(phi)) for phi in range(10)]
    for phi, answer in enumerate(answers):
        query = preview(phi).query()
        assert answer.body == gif(query)
        assert answer.url == f"{service.url}/get_preview.cgi?{query}"
        assert answer.content_type == "image/gif"
    assert service.connections == 1
    assert service.asked.total() == 10
    (agent,) = service.agents
    assert agent.startswith("galmerhpc/")
    assert "me@example.org" in agent


def test_a_host_that_compresses_unasked_gives_the_same_picture() -> None:
    def packed(query: str, _: int) -> Reply:
        return Reply(gzip.compress(gif(query)), headers={"Content-Encoding": "gzip"})

    page = Reply(gzip.compress(PAGE), 404, "text/html", {"Content-Encoding": "gzip"})
    broken = Reply(gif(preview().query()), headers={"Content-Encoding": "gzip"})
    with serve(packed) as service, client(service.url) as c:
        assert c.fetch(preview()).body == gif(preview().query())
    for reply, error, says in (
        (page, ViewFailedError, "No such snapshot"),
        (broken, TryAgainError, "gzip"),
    ):
        with (
            serve(lambda *_, reply=reply: reply) as service,
            client(service.url) as c,
            pytest.raises(error, match=says),
        ):
            c.fetch(preview())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_other_picture_formats_are_accepted(kind: str) -> None:
    body = encode(NOISE, kind)
    with serve(lambda *_: Reply(body)) as service, client(service.url) as c:
        assert c.fetch(preview()).body == body


@pytest.mark.parametrize(
    ("fault", "why", "overload", "answered"),
    [
        pytest.param(Reply(PAGE, 500, "text/html"), "HTTP 500", False, True, id="500"),
        pytest.param(Reply(PAGE, 503, "text/html"), "HTTP 503", True, True, id="503"),
        pytest.param(
            Reply(b"", 429, headers={"Retry-After": "nonsense"}), "HTTP 429", True, True, id="429"
        ),
        pytest.param(
            Reply(b"", 500, headers={"Retry-After": "7"}), "HTTP 500", True, True, id="Retry-After"
        ),
        pytest.param(Reply(encode(NOISE), cut=100), "broken", False, True, id="cut short"),
        pytest.param(Reply(encode(NOISE), cut=0), "broken", False, True, id="no body"),
        pytest.param(
            Reply(encode(NOISE)[:-100]), "a broken image", False, True, id="broken picture"
        ),
        pytest.param(Reply(b""), "0 bytes", False, True, id="nothing"),
        pytest.param(
            Reply(b"\x00\x01\x02" * 50), "150 bytes that are not GIF", False, True, id="no picture"
        ),
        pytest.param(Reply(hang=True), "no whole answer within 0.5 s", True, False, id="no answer"),
        pytest.param(
            Reply(encode(NOISE), drip=True), "no whole answer within", True, True, id="drip"
        ),
        pytest.param(
            Reply(drip_header=True), "no whole answer within", True, False, id="dripping header"
        ),
    ],
)
def test_what_may_pass_is_told_from_what_shows_an_overload(
    fault: Reply, why: str, overload: bool, answered: bool
) -> None:
    with (
        serve(lambda *_: fault) as service,
        client(service.url, timeout_s=0.5) as c,
        pytest.raises(TryAgainError, match=why) as raised,
    ):
        c.fetch(preview())
    assert (raised.value.overload, raised.value.answered) == (overload, answered)
    assert raised.value.retry_after_s == (7 if fault.headers.get("Retry-After") == "7" else 0)
    assert str(raised.value).isprintable()
    assert service.asked.total() == 1


def test_a_connection_is_good_after_a_fault() -> None:
    def at_first(query: str, attempt: int) -> Reply:
        return Reply(PAGE, 500, "text/html") if attempt == 0 else well(query, attempt)

    with serve(at_first) as service, client(service.url) as c:
        with pytest.raises(TryAgainError):
            c.fetch(preview())
        assert c.fetch(preview()).body == gif(preview().query())
    assert service.connections == 1


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Reply(PAGE, 200, "text/html"), r'a page .*"Error No such snapshot & no luck"'),
        (Reply(PAGE, 200, "image/gif"), r'a page .*"Error No such snapshot & no luck"'),
        (Reply(PAGE, 404, "text/html"), r'HTTP 404 "Error No such snapshot & no luck"'),
        (Reply(encode(NOISE), 203), "HTTP 203"),
        (Reply(encode(np.tile(NOISE, (2, 2)))), "32 x 32 pixels, not 16 x 16"),
        (Reply(encode(NOISE[:8])), "16 x 8 pixels, not 16 x 16"),
        (Reply(encode(np.full((SIDE, SIDE), 7, np.uint8))), "blank"),
        (Reply(animated()), "animated"),
        (Reply(encode(np.dstack([NOISE] * 4), "PNG")), "pixels of kind RGBA"),
        (Reply(encode(NOISE.astype(np.uint16) * 256, "PNG")), "16 bits per channel"),
        (Reply(encode(np.zeros((20000, 20000), bool), "PNG")), "pixels"),
        (Reply(encode(NOISE) + bytes(1 << 17)), "longer than"),
        (Reply(b"", 302, headers={"Location": "http://example.org/"}), "example.org.*another host"),
        (Reply(b"", 302, headers={"Location": "file:///etc/passwd"}), "not followed"),
        (Reply(b"", 301, headers={"Location": "http://[bad"}), "not an address"),
        (Reply(b"", 302, headers={"Location": "/get_preview.cgi?again"}), "redirects"),
        (Reply(b"<b>\x1b[31m\x07red</b>", 200, "text/html"), '"\\[31m red"'),
    ],
)
def test_what_is_wrong_for_good_is_named(reply: Reply, why: str) -> None:
    with (
        serve(lambda *_: reply) as service,
        client(service.url) as c,
        pytest.raises(ViewFailedError, match=why) as raised,
    ):
        c.fetch(preview())
    assert len(str(raised.value)) < 250
    assert set(service.asked.values()) <= {1, 4}  # 4: redirects to one's own address


def test_a_redirect_on_the_same_host_is_followed_and_its_page_is_not_read() -> None:
    def moved(query: str, _: int) -> Reply:
        if query.endswith("&moved"):
            return Reply(encode(NOISE))
        location = {"Location": f"/get_preview.cgi?{query}&moved"}
        return Reply(b"moved" * 100_000, 301, headers=location)

    with serve(moved) as service, client(service.url) as c:
        assert c.fetch(preview()).body == encode(NOISE)


@pytest.mark.parametrize(("status", "requests"), [(301, 5 + 1), (308, 5 + 1), (302, 2 * 5)])
def test_a_service_that_moved_for_good_is_asked_at_its_new_place(
    status: int, requests: int
) -> None:
    def moved(query: str, _: int) -> Reply:
        return Reply(b"moved", status, headers={"Location": f"{new.url}/get_preview.cgi?{query}"})

    with serve() as new, serve(moved) as old, client(old.url) as c:
        answers = [c.fetch(preview(phi)) for phi in range(5)]
    assert [a.url for a in answers] == [
        f"{old.url}/get_preview.cgi?{preview(phi).query()}" for phi in range(5)
    ]
    assert old.asked.total() + new.asked.total() == requests
    assert old.connections + new.connections == 2


def test_a_password_is_not_passed_on_to_another_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    # For services of this machine no settings of the user are read; here it stands for another.
    monkeypatch.setattr("galmerhpc.dataset.client._is_loopback", lambda _: False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def moved(query: str, _: int) -> Reply:
        return Reply(b"moved", 302, headers={"Location": f"{new.url}/get_preview.cgi?{query}"})

    with serve() as new, serve(moved) as old, client(old.url) as c:
        assert c.fetch(preview()).body == gif(preview().query())
    (asked_with,) = old.credentials
    assert asked_with
    assert new.credentials == {None}


def test_a_sites_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve() as service, serve(lambda *_: Reply(PAGE, 407, "text/html")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        with client(service.url) as c:
            assert c.fetch(preview()).body == gif(preview().query())
        with client("http://galaxies.invalid") as c, pytest.raises(ViewFailedError):
            c.fetch(preview())
    assert proxy.connections > 0


@pytest.mark.parametrize(
    ("when", "least", "most"),
    [
        ("100000", 100000, 100000),
        ("Fri, 31 Dec 2100 23:59:59 GMT", 1e9, 1e10),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0, 0),
    ],
)
def test_retry_after_is_a_number_or_a_date(when: str, least: float, most: float) -> None:
    reply = Reply(b"", 503, headers={"Retry-After": when})
    with (
        serve(lambda *_: reply) as service,
        client(service.url) as c,
        pytest.raises(TryAgainError) as raised,
    ):
        c.fetch(preview())
    assert least <= raised.value.retry_after_s <= most


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://127.0.0.1:{port}", "connection refused"),
        ("http://galaxies.invalid", "resolve|known|name"),
    ],
)
def test_a_host_that_is_not_there_is_an_overload(
    address: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    with client(address.format(port=port)) as c, pytest.raises(TryAgainError, match=why) as raised:
        c.fetch(preview())
    assert raised.value.overload
    assert not raised.value.answered
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "address", ["http://", "http://[bad", "http://localhost:99999", "http://a b"]
)
def test_no_address_is_refused_before_anything_is_asked(address: str) -> None:
    with pytest.raises(InputError, match=r"scrape\.source: .* is not an address"), client(address):
        pass


@dataclass
class Changing:
    """A behaviour whose answer is set from outside."""

    body: bytes = b""
    asked: list[str] = field(default_factory=list)

    def __call__(self, query: str, attempt: int) -> Reply:  # noqa: ARG002
        return Reply(self.body)


@pytest.fixture(scope="module")
def answers() -> Iterator[Callable[[bytes], bytes]]:
    """Return a function that lets a client fetch these bytes."""
    behaviour = Changing()
    with serve(behaviour) as service, client(service.url) as c:

        def send(body: bytes) -> bytes:
            behaviour.body = body
            return c.fetch(preview()).body

        yield send


def pixels(body: bytes) -> bytes:
    with Image.open(io.BytesIO(body)) as image:
        return image.convert("RGB").tobytes()


@settings(deadline=None)
@given(end=st.integers(0, len(encode(NOISE)) - 1))
def test_a_truncated_picture_is_never_accepted_with_other_pixels(
    answers: Callable[[bytes], bytes], end: int
) -> None:
    try:
        body = answers(encode(NOISE)[:end])
    except (ViewFailedError, TryAgainError):
        return
    assert pixels(body) == pixels(encode(NOISE))  # only the trailer was missing


@settings(deadline=None)
@given(
    place=st.integers(0, len(encode(NOISE)) - 1),
    garbage=st.binary(min_size=1, max_size=8),
)
@example(place=0, garbage=b"%!PS-Ado")
def test_a_damaged_picture_is_refused_or_still_a_picture(
    answers: Callable[[bytes], bytes], place: int, garbage: bytes
) -> None:
    body = bytearray(encode(NOISE))
    body[place : place + len(garbage)] = garbage
    try:
        accepted = answers(bytes(body))
    except (ViewFailedError, TryAgainError) as error:
        shown = str(error)
    else:
        shown = ""
        assert accepted == bytes(body)
        assert len(pixels(accepted)) == 3 * SIDE * SIDE
    assert shown.isprintable()
