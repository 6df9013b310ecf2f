"""What stands before every handler: tokens, rates, and bodies that are too large, too slow or no JSON.

Works the same behind uvicorn and behind Ray Serve; what concerns connections is :mod:`hypercast.serving.http.protocol`.
"""

import asyncio
import hashlib
import hmac
import json
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect

from hypercast.serving.config import ServingConfig
from hypercast.serving.http.parsing import Refusal
from hypercast.serving.metrics import Metrics
from streaming.errors import ConfigError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN = "/healthz"
"""The path, and what lies below it, that needs no token: who watches a service need not be trusted with it."""
PATHS = ("/v1/rank", "/v1/events", "/v1/models", "/metrics", OPEN)
"""Paths that are counted one by one."""
SHORTEST = 16
"""Characters of a token."""


def read_tokens(config: ServingConfig) -> list[str]:
    """The tokens that are let in: one a line of the file, or of the environment variable. Empty: none is needed.

    Raises:
        ConfigError: the file or variable is missing or empty, or a token is short or not ASCII.
    """
    if config.token_file is not None:
        source, text = str(config.token_file), _read(config.token_file)
    elif config.token_env is not None:
        source, text = f"environment variable {config.token_env}", os.environ.get(config.token_env, "")
    else:
        return []
    tokens = text.split()
    if not tokens or any(len(token) < SHORTEST or not token.isascii() for token in tokens):
        raise ConfigError(
            f"{source}: needed is at least one token, each of {SHORTEST} or more ASCII characters, one a line. Make "
            "one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return tokens


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token_file {path}: cannot be read ({error.__class__.__name__}).") from None


class Bucket:
    """So many a second, and as many at once after a rest."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._most, self._clock = rate, max(1.0, rate), clock
        self._left, self._at = self._most, clock()

    def take(self) -> bool:
        """Whether one more is let through now."""
        now = self._clock()
        self._left, self._at = min(self._most, self._left + (now - self._at) * self._rate), now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Guard:
    """ASGI middleware; see the module. Each token has a rate of its own; without tokens all share one."""

    def __init__(self, app: App, *, config: ServingConfig, tokens: list[str], metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, config.limits, metrics
        self._digests = [_digest(token.encode()) for token in tokens]
        rate = config.limits.rate
        self._buckets = [Bucket(rate) for _ in self._digests or [b""]] if rate is not None else []

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if not started:
                started = True
                path = scope["path"] if scope["path"] in PATHS else "other"
                self._metrics.requests.labels(path, message["status"]).inc()
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, self._bounded(receive), sending)
        except ClientDisconnect:  # nobody is there to be told
            self._metrics.refused.labels("gone").inc()
        except Refusal as refusal:
            self._metrics.refused.labels(refusal.reason).inc()
            if not started:
                await refuse(refusal, sending)

    def _check(self, scope: Message) -> None:
        headers = dict(scope["headers"])
        path = scope["path"]
        if path == OPEN or path.startswith(f"{OPEN}/"):
            return
        caller = self._caller(headers.get(b"authorization", b""))
        if self._buckets and not self._buckets[caller].take():
            raise Refusal(
                429, "too many requests", where="rate", allowed=f"{self._limits.rate:g} a second", example="wait"
            )
        if scope["method"] != "POST":
            return
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind != b"application/json":  # which also keeps web pages from posting here unasked
            raise Refusal(
                415,
                "not JSON",
                where="header content-type",
                allowed="application/json",
                example="content-type: application/json",
            )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self._limits.body_bytes:
            raise self._too_large()

    def _caller(self, authorization: bytes) -> int:
        """Index of the token; compared with all of them, in a time that does not tell how much of one was right."""
        if not self._digests:
            return 0
        scheme, _, token = authorization.partition(b" ")
        given = _digest(token.strip())
        same = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != b"bearer" or not any(same):
            raise Refusal(
                401,
                "no valid token",
                where="header authorization",
                allowed="a token of this service",
                example="authorization: Bearer TOKEN",
            )
        return same.index(True)

    def _bounded(self, receive: Receive) -> Receive:
        """``receive`` that counts bytes and seconds until the body is there."""
        taken, ends, whole = 0, time.monotonic() + self._limits.body_seconds, False

        async def receiving() -> Message:
            nonlocal taken, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), ends - time.monotonic())
            except TimeoutError:
                raise Refusal(
                    408,
                    "the body did not come in time",
                    where="body",
                    allowed=f"{self._limits.body_seconds:g} seconds",
                    example="send it at once",
                ) from None
            taken += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if taken > self._limits.body_bytes:
                raise self._too_large()
            return message

        return receiving

    def _too_large(self) -> Refusal:
        allowed = f"at most {self._limits.body_bytes} bytes"
        return Refusal(413, "the body is too large", where="body", allowed=allowed, example="fewer items")


async def refuse(refusal: Refusal, send: Send) -> None:
    """Send it, and close the connection: what is left of the body is not read."""
    body = json.dumps(refusal.told).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
