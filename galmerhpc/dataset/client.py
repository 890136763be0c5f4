"""Views from the preview service: asked for once, checked to be pictures."""

import contextlib
import email.utils
import html
import io
import ipaddress
import re
import textwrap
import time
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import urllib3
from PIL import Image, UnidentifiedImageError
from urllib3 import exceptions

from galmerhpc import __version__
from galmerhpc.errors import InputError
from galmerhpc.preview import PATH, Preview

FORMATS = ("GIF", "PNG", "JPEG")
"""What is decoded; Pillow's other formats are no previews, and some start programs."""

# No picture of these formats needs more than its bare RGBA pixels, headers aside.
_BYTES_PER_PIXEL, _HEADER_BYTES = 4, 1 << 16
_BLOCK = 1 << 16
# A host that is there takes a connection within seconds; a firewall that drops it never answers.
_CONNECT_S = 10.0
_REDIRECTS = 5
_PAGE_BYTES, _PAGE_TEXT = 4096, 120

# A picture of more pixels than Pillow's limit is refused, not warned of.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class ViewFailedError(Exception):
    """The service has no right picture of a view; the text says why. Of others it may."""


class TryAgainError(Exception):
    """A fault that may pass; the text says what it is.

    Attributes
    ----------
    trouble : bool
        Whether it shows that the host is asked too much: statuses 429 and 503, Retry-After,
        time-outs, refused connections.
    heard : bool
        Whether the host answered at all.
    retry_after_s : float
        Seconds for which the host asks to be left alone.
    """

    def __init__(
        self, why: str, *, trouble: bool = False, heard: bool = True, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(why)
        self.trouble, self.heard, self.retry_after_s = trouble, heard, retry_after_s


@dataclass(frozen=True, slots=True)
class Answer:
    """A picture as it came.

    Attributes
    ----------
    url : str
        Address that was asked.
    body : bytes
        The response, untouched.
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
    """Asks one host for previews; several threads may share it.

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
        `source_url` is no address.
    """

    def __init__(
        self, source_url: str, *, connections: int, timeout_s: float, contact: str
    ) -> None:
        self._source = source_url.rstrip("/")
        self._host = _host(self._source)
        self._timeout_s, self._connect_s = timeout_s, min(_CONNECT_S, timeout_s)
        self._pool = _pool(self._source, self._host, connections, contact)

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
            Another status, a redirect elsewhere, or more bytes than a picture needs.
        """
        url = target = f"{self._source}{PATH}?{preview.query()}"
        deadline = time.monotonic() + self._timeout_s
        limit = _BYTES_PER_PIXEL * preview.nbins**2 + _HEADER_BYTES
        for _ in range(_REDIRECTS):
            with self._answer(target) as response:
                if location := response.get_redirect_location():
                    target = self._redirect(target, location)
                    continue
                body = self._read(response, limit, deadline)
                content_type = _plain(response.headers.get("Content-Type", ""))
                _check_status(response, body)
                now = datetime.now(timezone.utc).isoformat(timespec="seconds")
                return Answer(url, body, content_type, now)
        raise ViewFailedError(f"more than {_REDIRECTS} redirects")

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    @contextlib.contextmanager
    def _answer(self, url: str) -> Iterator[urllib3.BaseHTTPResponse]:
        """Give the response to one request; its connection is kept if it was read to the end."""
        heard = False
        try:
            response = self._pool.urlopen(
                "GET", url, redirect=False, preload_content=False,
                timeout=urllib3.Timeout(connect=self._connect_s, read=self._timeout_s),
            )  # fmt: skip
            heard = True
            try:
                yield response
            finally:
                response.close()  # one that was read to its end has given its connection back
        except exceptions.HTTPError as error:
            slow = isinstance(error, exceptions.TimeoutError)
            raise TryAgainError(self._why(error), trouble=slow, heard=heard) from error

    def _redirect(self, url: str, location: str) -> str:
        try:
            target = urljoin(url, location)
            parts = urlsplit(target)
        except ValueError:
            raise ViewFailedError(f"redirected to {_plain(location)}, no address") from None
        if parts.hostname != self._host or parts.scheme not in ("http", "https"):
            raise ViewFailedError(f"redirected to {_plain(target)}, another host: not followed")
        return target

    def _read(self, response: urllib3.BaseHTTPResponse, limit: int, deadline: float) -> bytes:
        """Read a response of at most `limit` bytes, whose bytes may not drip in for ever."""
        body = bytearray()
        while block := response.read1(_BLOCK, decode_content=False):
            body += block
            if len(body) > limit:
                raise ViewFailedError(f"the answer is longer than {limit} bytes")
            if time.monotonic() > deadline:
                raise TryAgainError(f"no whole answer within {self._timeout_s:g} s", trouble=True)
        return bytes(body)

    def _why(self, error: BaseException) -> str:
        """Name a transport fault in a few words; urllib3's own text repeats the whole address."""
        refused = isinstance(error, exceptions.NewConnectionError)  # a time-out too, to urllib3
        if isinstance(error, exceptions.ConnectTimeoutError) and not refused:
            return f"no connection within {self._connect_s:g} s"
        if isinstance(error, exceptions.TimeoutError) and not refused:
            return f"no answer within {self._timeout_s:g} s"
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and cause.strerror:
                return _plain(cause.strerror[0].lower() + cause.strerror[1:])
            cause = cause.__cause__ or cause.__context__
        return _plain(str(error))


def _host(source: str) -> str:
    with contextlib.suppress(exceptions.LocationValueError, ValueError):
        if urllib3.util.parse_url(source).host and (host := urlsplit(source).hostname):
            return host
    raise InputError(
        f"scrape.source: {source!r} is no address; give one such as http://galmer.obspm.fr"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _pool(source: str, host: str, connections: int, contact: str) -> urllib3.PoolManager:
    """Return the connections, through the site's proxy where the environment names one."""
    settings: dict[str, Any] = {
        "maxsize": connections,
        "retries": False,
        "headers": {
            "User-Agent": f"galmerhpc/{__version__}" + (f" ({contact})" if contact else ""),
            "Accept-Encoding": "identity",  # the bytes are kept as they come
        },
    }
    proxy = _proxy(source, host)
    if proxy is None:
        return urllib3.PoolManager(**settings)
    user = urllib3.util.parse_url(proxy).auth
    headers = urllib3.make_headers(proxy_basic_auth=unquote(user)) if user else None
    return urllib3.ProxyManager(proxy, proxy_headers=headers, **settings)


def _proxy(source: str, host: str) -> str | None:
    # A site's proxy does not lead to this machine.
    if _is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(urlsplit(source).scheme, proxies.get("all"))


def _check_status(response: urllib3.BaseHTTPResponse, body: bytes) -> None:
    status = response.status
    if status == 200:
        return
    text = f"HTTP {status} {_page(body)}".rstrip()
    if status in (408, 429) or status >= 500:
        pause_s = _retry_after(response)
        trouble = status in (429, 503) or pause_s > 0
        raise TryAgainError(text, trouble=trouble, retry_after_s=pause_s)
    raise ViewFailedError(text)


def _retry_after(response: urllib3.BaseHTTPResponse) -> float:
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
    """Accept one still picture of `nbins` x `nbins` pixels that shows something.

    Raises
    ------
    TryAgainError
        It is broken.
    ViewFailedError
        It is a page, or another picture than was asked for.
    """
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:
            size = image.size
            animated = getattr(image, "is_animated", False)
            # Only a picture of the right size is decoded: a bomb is told by its header.
            fits = size == (nbins, nbins) and not animated
            blank = fits and image.convert("RGB").getcolors(1) is not None
    except UnidentifiedImageError:
        if content_type.startswith("text/") or body.lstrip().startswith(b"<"):
            raise ViewFailedError(f"a page instead of a picture {_page(body)}".rstrip()) from None
        raise TryAgainError(f"{len(body)} bytes that are no picture") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ViewFailedError("a picture of far more pixels than asked for") from None
    except Exception as error:  # noqa: BLE001 - Pillow raises nearly anything on damaged files
        raise TryAgainError(f"a broken picture: {_plain(str(error))}") from None
    if animated:
        raise ViewFailedError("an animated picture")
    if size != (nbins, nbins):
        raise ViewFailedError(f"a picture of {size[0]} x {size[1]} pixels, not {nbins} x {nbins}")
    if blank:
        raise ViewFailedError("a blank picture")


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
