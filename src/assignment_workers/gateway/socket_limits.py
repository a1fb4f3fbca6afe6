"""Limits below HTTP: the size of a request's head and the time of a request.

Without these limits, a client without a token could use up memory with an endless head, or occupy
connections by sending a byte now and then. uvicorn itself closes a connection that is idle between
two requests.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 32 * 1024
"""The greatest size, in bytes, of a request's first line and headers together."""
ARRIVE_SECONDS = 20.0
"""The longest time, in seconds, for a request to arrive completely. It begins when the connection
opens or, for a further request, with its first byte.
"""
CONNECTIONS = 5_000
"""The greatest number of open connections of a gateway process. A further one is closed."""


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, changed to disconnect clients with too large or slow requests."""

    _arrives: asyncio.TimerHandle | None = None
    _head: int = 0
    """The number of bytes of the request's address and complete headers parsed so far.

    The method and the HTTP version, which are also in the first line, are not counted here.
    """
    _unread: int = 0
    """The number of bytes received of a header that is not complete yet."""
    _parsed: int = 0
    """The number of bytes of address and headers that were parsed with the last received data.

    The parser reports the address piece by piece, as the pieces arrive. So of the address, only the
    bytes in the last received data count. The parser reports a header only once it has arrived
    completely. So if a header ends in the last received data, all its bytes count, also those that
    came with earlier data.
    """
    _ended: bool = False
    """True if the last received data contain the end of a request."""
    _is_body: bool = False
    _is_whole: bool = False
    _too_large: bool = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._arrives is None and self._is_whole:
            self._wait()  # the data may be no more than line ends
        self._parsed, self._ended = 0, False
        super().data_received(data)
        if self.transport.is_closing() or self._is_body or self._is_whole or self._ended:
            return
        self._unread = max(0, self._unread + len(data) - self._parsed)
        if self._head + self._unread > HEAD_BYTES:
            self._too_large = True
            self.send_400_response("")

    def on_message_begin(self) -> None:
        self._head, self._unread = 0, 0
        self._is_body, self._is_whole = False, False
        if self._arrives is None:
            self._wait()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_whole = self._ended = True
        self._arrived()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if not self._too_large:
            super().send_400_response(msg)
            return
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        said = f"the head of a request may have {HEAD_BYTES} bytes"
        self.transport.write(
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: text/plain\r\n"
            f"content-length: {len(said)}\r\nconnection: close\r\n\r\n{said}".encode()
        )
        self.transport.close()

    def _count(self, size: int) -> None:
        self._head += size
        self._parsed += size
        if self._head > HEAD_BYTES:
            self._too_large = True
            raise ValueError("the head is too large")  # the parser then ends the request

    def _wait(self) -> None:
        self._arrives = self.loop.call_later(ARRIVE_SECONDS, self._hang_up)

    def _arrived(self) -> None:
        if self._arrives is not None:
            self._arrives.cancel()
            self._arrives = None

    def _hang_up(self) -> None:
        self._arrives = None
        if not self.transport.is_closing():
            self.transport.abort()
