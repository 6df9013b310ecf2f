"""HTTP connections that cannot be held for nothing: how many there are, how long and how large what they send may be,
how long what they are sent may wait.

uvicorn's own protocol waits for headers and bodies as long as a client likes, takes headers of any size, and keeps
answers for a client that never reads them; its server gives TLS handshakes a minute.
"""

import asyncio
import socket
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hypercast.serving.config import Limits
from hypercast.serving.metrics import Metrics


def guarded(limits: Limits, metrics: Metrics) -> type[HttpToolsProtocol]:
    """The protocol class with those limits, which counts what it refuses. Connections are counted a class."""

    class Guarded(HttpToolsProtocol):
        _open = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self._timer: asyncio.TimerHandle | None = None
            self._reader_timer: asyncio.TimerHandle | None = None
            self._held = False
            self._header_bytes = 0
            self._in_headers = True
            self._counted = Guarded._open < limits.connections
            super().connection_made(transport)
            if not self._counted:
                self._refuse("connections")
                return
            Guarded._open += 1
            metrics.connections.set(Guarded._open)
            self._wait(limits.header_seconds, "slow headers")

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            self._reader_came()
            if self._counted:
                self._counted = False
                Guarded._open -= 1
                metrics.connections.set(Guarded._open)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            if self._in_headers:
                if not self._header_bytes and self._timer is None:  # the first bytes of a further request
                    self._wait(limits.header_seconds, "slow headers")
                self._header_bytes += len(data)
            super().data_received(data)
            if self._in_headers and self._header_bytes > limits.header_bytes:
                self._refuse("large headers")
            self._await_reader_of_the_last()

        def on_message_begin(self) -> None:
            self._in_headers = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_headers, self._header_bytes = False, 0
            self._wait(limits.body_seconds, "slow body")
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._in_headers = True
            self._stop_waiting()
            super().on_message_complete()

        def on_response_complete(self) -> None:
            self._held = self.flow.write_paused and not self.transport.is_closing()
            if self._held:  # no further request is begun before its client reads
                self.flow.pause_reading()
                return
            super().on_response_complete()
            self._await_reader_of_the_last()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._await_reader()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._reader_came()
            self._await_reader_of_the_last()
            if self._held:
                self.on_response_complete()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._await_reader_of_the_last()

        def _await_reader_of_the_last(self) -> None:
            """A connection that is being closed is closed once what is left to send has been read."""
            if self.transport.is_closing():
                self._await_reader()

        def _await_reader(self) -> None:
            if self._reader_timer is None:
                self._reader_timer = self.loop.call_later(limits.write_seconds, self._refuse, "slow reader")

        def _reader_came(self) -> None:
            if self._reader_timer is not None:
                self._reader_timer.cancel()
                self._reader_timer = None

        def _wait(self, seconds: float, reason: str) -> None:
            self._stop_waiting()
            self._timer = self.loop.call_later(seconds, self._refuse, reason)

        def _stop_waiting(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _refuse(self, reason: str) -> None:
            metrics.refused.labels(reason).inc()
            self._stop_waiting()
            self._reader_came()
            self.transport.abort()

    return Guarded


class GuardedServer(uvicorn.Server):
    """One whose TLS handshakes, and whose ends of TLS, have so long as headers and answers.

    Args:
        config: of uvicorn, with :func:`settings`.
        limits: of the service.
    """

    def __init__(self, config: uvicorn.Config, *, limits: Limits) -> None:
        super().__init__(config)
        self._limits = limits

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on ``sockets``, which must be given. uvicorn's own has no setting for handshakes."""
        assert sockets is not None
        protocol: Any = self.config.http_protocol_class
        connection = partial(
            protocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        options: dict[str, Any] = {"backlog": self.config.backlog}
        if self.config.ssl is not None:
            options |= {"ssl": self.config.ssl, "ssl_handshake_timeout": self._limits.header_seconds}
            options |= {"ssl_shutdown_timeout": self._limits.write_seconds}
        loop = asyncio.get_running_loop()
        self.servers = [await loop.create_server(connection, sock=each, **options) for each in sockets]
        self.started = True


def settings(limits: Limits, metrics: Metrics) -> dict[str, Any]:
    """What ``uvicorn.Config`` is given for it."""
    return {
        "http": guarded(limits, metrics),
        "ws": "none",
        "lifespan": "off",
        "timeout_keep_alive": max(1, round(limits.idle_seconds)),
        "server_header": False,
        "proxy_headers": False,
        "access_log": False,
    }
