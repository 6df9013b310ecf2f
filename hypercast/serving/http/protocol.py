"""HTTP connections that cannot be held for nothing: how many there are, how long and how large what they send may be.

uvicorn's own protocol waits for headers and bodies as long as a client likes, and takes headers of any size.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hypercast.serving.config import Limits
from hypercast.serving.metrics import Metrics


def guarded(limits: Limits, metrics: Metrics) -> type[HttpToolsProtocol]:
    """The protocol class with those limits, which counts what it refuses. Connections are counted a class."""

    class Guarded(HttpToolsProtocol):
        _open = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self._timer: asyncio.TimerHandle | None = None
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
            self.transport.abort()

    return Guarded


def settings(limits: Limits, metrics: Metrics) -> dict[str, Any]:
    """What ``uvicorn.Config`` is given for it."""
    return {
        "http": guarded(limits, metrics),
        "ws": "none",
        "timeout_keep_alive": max(1, round(limits.idle_seconds)),
        "server_header": False,
        "proxy_headers": False,
        "access_log": False,
    }
