"""Views from the preview service: asked for politely, tried again, checked to be pictures."""

import email.utils
import html
import http.cookiejar
import io
import ipaddress
import logging
import random
import re
import textwrap
import threading
import time
import warnings
from dataclasses import dataclass
from datetime import datetime, timezone
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from PIL import Image, UnidentifiedImageError

from galmerhpc import __version__
from galmerhpc.errors import GalmerhpcError, InputError
from galmerhpc.preview import PATH, Preview

log = logging.getLogger(__name__)

FORMATS = ("GIF", "PNG", "JPEG")
"""What is decoded; Pillow's other formats are no previews, and some start programs."""

# No picture of these formats needs more than its bare RGBA pixels, headers aside.
_BYTES_PER_PIXEL, _HEADER_BYTES = 4, 1 << 16
_BLOCK = 1 << 16
# A host that is there takes a connection within seconds; a firewall that drops it never answers.
_CONNECT_S = 10.0
_LONGEST_RETRY_AFTER_S = 3600.0
_REDIRECTS = 5
_PAGE_BYTES, _PAGE_TEXT = 4096, 120

# A picture of more pixels than Pillow's limit is refused, not warned of.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class ViewFailedError(Exception):
    """One view could not be fetched; the text says why. Others may well be."""


class _TryAgainError(Exception):
    """A fault that may pass.

    Attributes
    ----------
    retry_after_s : float
        Seconds for which the host asks to be left alone.
    """

    def __init__(self, why: str, retry_after_s: float = 0.0) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


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
    """Fetches previews from one host; several threads may share it.

    Parameters
    ----------
    source_url : str
        The host's address, without the path.
    connections : int
        Threads that will ask at once; as many connections are kept open.
    timeout_s : float
        Seconds that a whole answer may take.
    attempts : int
        Tries per view.
    backoff_s : float
        Mean pause before the second try; it doubles each time, up to `timeout_s`.
    contact : str
        Address to write to, named in User-Agent.

    Raises
    ------
    InputError
        `source_url` is no address.
    """

    def __init__(
        self,
        source_url: str,
        *,
        connections: int,
        timeout_s: float,
        attempts: int,
        backoff_s: float,
        contact: str,
    ) -> None:
        self._source = source_url.rstrip("/")
        self._timeout_s, self._attempts, self._backoff_s = timeout_s, attempts, backoff_s
        self._host = _host(self._source)
        self._session = _session(connections, contact)
        # A site's proxy does not lead to this machine.
        self._session.trust_env = not _is_loopback(self._host)
        self._last_answer = float("-inf")
        self._silent_until = float("-inf")
        self._closed = threading.Event()

    def fetch(self, preview: Preview) -> Answer:
        """Fetch one view.

        Time-outs, lost connections, statuses 408, 429 and 5xx and broken pictures are tried
        again; another status, a page or another picture than asked for is final.

        Raises
        ------
        ViewFailedError
            The service has no right picture for this view.
        GalmerhpcError
            The host cannot be reached, or asks to be left alone for long: nothing else will be
            fetched either.
        """
        url = f"{self._source}{PATH}?{preview.query()}"
        began, pause_s = time.monotonic(), self._backoff_s
        for attempt in range(1, self._attempts + 1):
            self._wait(self._silent_until - time.monotonic())
            try:
                return self._ask(url, preview.nbins)
            except _TryAgainError as error:
                failure = error
            self._keep_silent(failure.retry_after_s)
            if attempt < self._attempts:
                self._wait(pause_s * random.uniform(0.5, 1.5))
                pause_s = min(2 * pause_s, self._timeout_s)
        if self._last_answer < began:  # no request got an answer, not even an error
            raise GalmerhpcError(
                f"{self._source}: cannot be reached ({failure}); check scrape.source and this "
                "node's network, then run the same command again"
            )
        raise ViewFailedError(f"{failure} ({self._attempts} tries)")

    def close(self) -> None:
        """Give up what is waiting to be tried again, and close the connections."""
        self._closed.set()
        self._session.close()

    def _wait(self, seconds: float) -> None:
        if seconds > 0 and self._closed.wait(seconds):
            raise ViewFailedError("given up")

    def _keep_silent(self, seconds: float) -> None:
        """Heed the host's wish to get no request, of whatever view, for so long."""
        if seconds > _LONGEST_RETRY_AFTER_S:
            raise GalmerhpcError(
                f"{self._source}: asks to be left alone for {seconds:.0f} s (Retry-After); "
                "run the same command again then"
            )
        if seconds > self._timeout_s:
            log.warning("%s: asks for a pause of %.0f s", self._source, seconds)
        self._silent_until = max(self._silent_until, time.monotonic() + seconds)

    def _ask(self, url: str, nbins: int) -> Answer:
        """Ask once."""
        deadline = time.monotonic() + self._timeout_s
        target = url
        try:
            for _ in range(_REDIRECTS):
                with self._session.get(
                    target,
                    stream=True,
                    allow_redirects=False,
                    timeout=(min(_CONNECT_S, self._timeout_s), self._timeout_s),
                ) as response:
                    self._last_answer = time.monotonic()
                    if response.is_redirect:
                        target = self._redirect(target, response.headers["Location"])
                        continue
                    limit = _BYTES_PER_PIXEL * nbins**2 + _HEADER_BYTES
                    body = self._read(response, limit, deadline)
                    content_type = _plain(response.headers.get("Content-Type", ""))
                    _check_status(response, body)
                    _check_picture(body, content_type, nbins)
                    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
                    return Answer(url, body, content_type, now)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _TryAgainError(self._why(error)) from error
        raise ViewFailedError(f"more than {_REDIRECTS} redirects")

    def _redirect(self, url: str, location: str) -> str:
        try:
            target = urljoin(url, location)
            parts = urlsplit(target)
        except ValueError:
            raise ViewFailedError(f"redirected to {_plain(location)}, no address") from None
        if parts.hostname != self._host or parts.scheme not in ("http", "https"):
            raise ViewFailedError(f"redirected to {_plain(target)}, another host: not followed")
        return target

    def _read(self, response: requests.Response, limit: int, deadline: float) -> bytes:
        """Read a response of at most `limit` bytes, whose bytes may not drip in for ever."""
        body = bytearray()
        while block := response.raw.read1(_BLOCK, decode_content=False):
            body += block
            if len(body) > limit:
                raise ViewFailedError(f"the answer is longer than {limit} bytes")
            if time.monotonic() > deadline:
                raise _TryAgainError(f"no whole answer within {self._timeout_s:g} s")
        return bytes(body)

    def _why(self, error: BaseException) -> str:
        """Name a transport fault in a few words; requests' own text repeats the whole address."""
        if isinstance(error, requests.ConnectTimeout):
            return f"no connection within {min(_CONNECT_S, self._timeout_s):g} s"
        if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
            return f"no answer within {self._timeout_s:g} s"
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and cause.strerror:
                return _plain(cause.strerror[0].lower() + cause.strerror[1:])
            cause = cause.__cause__ or cause.__context__
        return _plain(str(error))


def _host(source: str) -> str:
    try:
        requests.Request("GET", source + PATH).prepare()
        host = urlsplit(source).hostname
    except (requests.RequestException, ValueError):
        host = None
    if not host:
        raise InputError(
            f"scrape.source: {source!r} is no address; give one such as http://galmer.obspm.fr"
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
    # Without cookies a session holds nothing that threads could get in each other's way with.
    session.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    adapter = requests.adapters.HTTPAdapter(pool_connections=1, pool_maxsize=connections)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _check_status(response: requests.Response, body: bytes) -> None:
    status = response.status_code
    if status == 200:
        return
    text = f"HTTP {status} {_page(body)}".rstrip()
    if status in (408, 429) or status >= 500:
        raise _TryAgainError(text, retry_after_s=_retry_after(response))
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
    return (moment - datetime.now(timezone.utc)).total_seconds()


def _check_picture(body: bytes, content_type: str, nbins: int) -> None:
    """Accept one still picture of the asked size that shows something."""
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
        raise _TryAgainError(f"{len(body)} bytes that are no picture") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ViewFailedError("a picture of far more pixels than asked for") from None
    except Exception as error:  # noqa: BLE001 - Pillow raises nearly anything on damaged files
        raise _TryAgainError(f"a broken picture: {_plain(str(error))}") from None
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
