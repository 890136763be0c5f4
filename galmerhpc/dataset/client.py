"""Requests to the preview service: each view is asked for once and its image checked."""

import contextlib
import email.utils
import html
import http.cookiejar
import ipaddress
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from galmerhpc import __version__, provenance
from galmerhpc.dataset.pictures import (
    BrokenPictureError,
    NoPictureError,
    PictureError,
    decode,
    is_blank,
)
from galmerhpc.dataset.timed_http import TimedAdapter
from galmerhpc.errors import InputError
from galmerhpc.preview import PATH, Preview

# No image of these formats needs more than its bare RGBA pixels, headers aside.
_BYTES_PER_PIXEL, _HEADER_BYTES = 4, 1 << 16
_BLOCK = 1 << 16
# A live host accepts a connection within seconds; a firewall that drops it never answers.
_CONNECT_S = 10.0
_REDIRECTS = 5
_PAGE_BYTES, _PAGE_TEXT = 4096, 120


class ViewFailedError(Exception):
    """The service has no valid image of a view; the text says why. It may have others."""


class TryAgainError(Exception):
    """A fault that may pass; the text says what it is.

    Attributes
    ----------
    overload : bool
        Whether it shows that the host is overloaded: statuses 429 and 503, Retry-After,
        time-outs, refused connections.
    answered : bool
        Whether the host answered at all.
    retry_after_s : float
        Seconds for which the host asks to be left alone.
    """

    def __init__(
        self, why: str, *, overload: bool = False, answered: bool = True, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(why)
        self.overload, self.answered, self.retry_after_s = overload, answered, retry_after_s


@dataclass(frozen=True, slots=True)
class Answer:
    """An image as it came.

    Attributes
    ----------
    url : str
        Address that was asked.
    body : bytes
        The image, untouched; decoded, if the host compresses what it sends.
    content_type : str
        What the host calls it.
    fetched_utc : str
        Moment of arrival, ISO 8601.
    """

    url: str
    body: bytes
    content_type: str
    fetched_utc: str


class Client:
    """Asks one host for previews; threads may share it.

    Parameters
    ----------
    source_url : str
        The host's address, without the path.
    connections : int
        Threads that will ask at once; as many connections are kept open.
    timeout_s : float
        Seconds that a whole answer may take.
    contact : str
        Address to write to, named in User-Agent.

    Raises
    ------
    InputError
        `source_url` is not an address.
    """

    def __init__(
        self, source_url: str, *, connections: int, timeout_s: float, contact: str
    ) -> None:
        self._source = source_url.rstrip("/")
        self._host = _host(self._source)
        self._address = self._source + PATH  # another one once the service says that it has moved
        self._timeout_s, self._connect_s = timeout_s, min(_CONNECT_S, timeout_s)
        self._session = _session(connections, contact)
        # A site's proxy does not lead to this machine.
        self._session.trust_env = not _is_loopback(self._host)
        # What would be costly to determine for each request: headers, proxy, certificates.
        self._request = self._session.prepare_request(requests.Request("GET", self._source))
        self._settings = self._session.merge_environment_settings(
            self._source, {}, stream=True, verify=None, cert=None
        )

    def fetch(self, preview: Preview) -> Answer:
        """Ask for one view, once, and check what comes.

        Raises
        ------
        TryAgainError, ViewFailedError
            As `ask` and `check_picture` do.
        """
        answer = self.ask(preview)
        check_picture(answer.body, answer.content_type, preview.nbins)
        return answer

    def ask(self, preview: Preview) -> Answer:
        """Ask for one view, once; `check_picture` says what its answer is worth.

        Raises
        ------
        TryAgainError
            Lost connections, time-outs, statuses 408, 429 and 5xx.
        ViewFailedError
            Another status, a redirect elsewhere, or more bytes than an image needs.
        """
        query = f"?{preview.query()}"
        target = self._address + query
        limit = _BYTES_PER_PIXEL * preview.nbins**2 + _HEADER_BYTES
        for _ in range(_REDIRECTS):
            with self._answer(target) as response:
                if response.is_redirect:
                    target = self._redirect(target, response.headers["Location"])
                    if response.is_permanent_redirect and target.endswith(query):
                        self._address = target.removesuffix(query)
                    response.raw.read1(_PAGE_BYTES)  # after a short page the connection stays open
                    continue
                body = self._read(response, limit)
                content_type = _plain(response.headers.get("Content-Type", ""))
                _check_status(response, body)
                url = self._source + PATH + query
                return Answer(url, body, content_type, provenance.now())
        raise ViewFailedError(f"more than {_REDIRECTS} redirects")

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    @contextlib.contextmanager
    def _answer(self, url: str) -> Iterator[requests.Response]:
        """Give the response to one request; its connection is kept if it was read to the end."""
        request, answered = self._request.copy(), False
        request.url = url
        # A redirect to another port, or out of encryption, does not learn the password.
        if self._session.should_strip_auth(self._source, url):
            request.headers.pop("Authorization", None)
        try:
            with self._session.send(
                request,
                allow_redirects=False,
                timeout=(self._connect_s, self._timeout_s),
                **self._settings,
            ) as response:
                answered = True
                yield response
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            slow = _refused(error) or _timed_out(error)
            raise TryAgainError(self._why(error), overload=slow, answered=answered) from error

    def _redirect(self, url: str, location: str) -> str:
        try:
            target = urljoin(url, location)
            parts = urlsplit(target)
        except ValueError:
            raise ViewFailedError(f"redirected to {_plain(location)}, not an address") from None
        if parts.hostname != self._host or parts.scheme not in ("http", "https"):
            raise ViewFailedError(f"redirected to {_plain(target)}, another host: not followed")
        return target

    def _read(self, response: requests.Response, limit: int) -> bytes:
        """Read a response of at most `limit` bytes."""
        body = bytearray()
        # Decoded: some hosts compress although they were asked not to.
        while block := response.raw.read1(_BLOCK, decode_content=True):
            body += block
            if len(body) > limit:
                raise ViewFailedError(f"the answer is longer than {limit} bytes")
        return bytes(body)

    def _why(self, error: BaseException) -> str:
        """Name a transport fault in a few words; requests' own text repeats the address."""
        if isinstance(error, requests.ConnectTimeout):
            return f"no connection within {self._connect_s:g} s"
        if _timed_out(error):
            return f"no whole answer within {self._timeout_s:g} s"
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and cause.strerror:
                return _plain(cause.strerror[0].lower() + cause.strerror[1:])
            cause = cause.__cause__ or cause.__context__
        return _plain(str(error))


def _timed_out(error: BaseException) -> bool:
    return isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError)


def _refused(error: BaseException) -> bool:
    """Return whether the host refused the connection."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(reason, urllib3.exceptions.NewConnectionError)


def _host(source: str) -> str:
    host = None
    with contextlib.suppress(requests.RequestException, ValueError):
        requests.Request("GET", source + PATH).prepare()
        host = urlsplit(source).hostname
    if not host:
        raise InputError(
            f"scrape.source: {source!r} is not an address; give one such as http://galmer.obspm.fr"
        )
    return host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Session(requests.Session):
    """A session that leaves redirects alone: requests would read their pages, however long."""

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002
        return None


def _session(connections: int, contact: str) -> requests.Session:
    session = _Session()
    session.headers["User-Agent"] = f"galmerhpc/{__version__}" + (
        f" ({contact})" if contact else ""
    )
    session.headers["Accept-Encoding"] = "identity"  # the bytes are kept as they come
    # Without cookies threads share nothing in a session that they could corrupt.
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    # Two pools: the service, and where it redirects to.
    adapter = TimedAdapter(pool_connections=2, pool_maxsize=connections)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _check_status(response: requests.Response, body: bytes) -> None:
    status = response.status_code
    if status == 200:
        return
    text = f"HTTP {status} {_page(body)}".rstrip()
    if status in (408, 429) or status >= 500:
        pause_s = _retry_after(response)
        overload = status in (429, 503) or pause_s > 0
        raise TryAgainError(text, overload=overload, retry_after_s=pause_s)
    raise ViewFailedError(text)


def _retry_after(response: requests.Response) -> float:
    """Return the seconds of Retry-After, which is a number or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (ValueError, OverflowError, IndexError):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max(0.0, (moment - datetime.now(timezone.utc)).total_seconds())


def check_picture(body: bytes, content_type: str, nbins: int) -> None:
    """Accept one still image of `nbins` x `nbins` pixels that shows something.

    Raises
    ------
    TryAgainError
        It is broken.
    ViewFailedError
        It is a page, or another image than was asked for: `decode` says which are taken.
    """
    try:
        picture = decode(body, nbins, still=True)
    except BrokenPictureError as error:
        page = content_type.startswith("text/") or body.lstrip().startswith(b"<")
        if page and isinstance(error, NoPictureError):
            raise ViewFailedError(f"a page instead of an image {_page(body)}".rstrip()) from None
        raise TryAgainError(_plain(str(error))) from None
    except PictureError as error:
        raise ViewFailedError(str(error)) from None
    if is_blank(picture):
        raise ViewFailedError("a blank image")


def _page(body: bytes) -> str:
    """Return the beginning of a page's text in quotes, or nothing."""
    page = body[:_PAGE_BYTES].decode("utf-8", "replace")
    page = re.sub(r"(?is)<(script|style)\b.*?</\1\s*>", " ", page)
    text = _plain(html.unescape(re.sub(r"<[^>]*>", " ", page)))
    return f'"{text}"' if text else ""


def _plain(text: str) -> str:
    """Return a text of others as one short line that a terminal shows as it is."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return textwrap.shorten(printable, _PAGE_TEXT, placeholder=" ...")
