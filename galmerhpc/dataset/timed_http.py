"""HTTP in which a whole answer has a time limit, however slowly its bytes drip in.

A socket's own time-out begins anew with each byte, so that a host that sends one now and then is
waited for without end; requests knows no other limit. Here each read may take only what is left of
it, status line, headers and sizes of chunks included.
"""

import http.client
import io
import time
from socket import socket
from typing import Any

import urllib3
from requests.adapters import HTTPAdapter

_NO_TIME = 1e-6  # for a socket 0 would mean not to wait at all


class _TimedReader(io.RawIOBase):
    """Reads a socket until a moment."""

    def __init__(self, connection: socket, limit_s: float) -> None:
        self._socket, self._end = connection, time.monotonic() + limit_s
        self._raw = connection.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(max(self._end - time.monotonic(), _NO_TIME))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    """A response of which urllib3 has set the time limit as the socket's time-out."""

    def __init__(self, sock: socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        limit_s = sock.gettimeout()
        if limit_s is not None:
            self.fp.close()
            self.fp = io.BufferedReader(_TimedReader(sock, limit_s))


class _Connection(urllib3.connection.HTTPConnection):
    response_class = _TimedResponse


class _SecureConnection(urllib3.connection.HTTPSConnection):
    response_class = _TimedResponse


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class TimedAdapter(HTTPAdapter):
    """Requests' adapter, whose read time-out is the limit of a whole answer, with proxies too."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Make the pools, as requests does."""
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def proxy_manager_for(self, *args: Any, **options: Any) -> urllib3.ProxyManager:
        """Return a proxy's pools, as requests does."""
        manager = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
        return manager
