"""Strangers, floods, slow senders and large bodies meet the guard before any handler; others do not notice."""

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from hypercast.serving.config import Limits, ServingConfig
from hypercast.serving.deploy import listen
from hypercast.serving.http.guard import Bucket, Guard, read_tokens
from hypercast.serving.http.protocol import GuardedServer, settings
from hypercast.serving.metrics import Metrics
from streaming.errors import ConfigError
from tests.hypercast.serving.memory import memory
from tests.hypercast.serving.wire import answer, ask, closed, connect, request, running
from tests.hypercast.serving.world import until

TOKEN = "a-token-of-thirty-two-characters"
OTHER = "another-token-of-enough-letters"
LIMITS = Limits(
    body_bytes=2048, header_bytes=1024, header_seconds=0.3, body_seconds=0.3, write_seconds=0.3, connections=8
)

MUCH = "x" * (1 << 20)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the number of bytes that came; on the path ``/much`` with a megabyte."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = json.dumps({"size": size, "much": MUCH if scope["path"] == "/much" else ""}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def serve(metrics: Metrics, *, tokens: list[str], limits: Limits = LIMITS, app: Any = echo, **options: Any) -> Any:
    config = ServingConfig(port=0, limits=limits)
    guard = Guard(app, config=config, tokens=tokens, metrics=metrics)
    uvicorn_config = uvicorn.Config(guard, **settings(limits, metrics), log_level="error", loop="uvloop", **options)
    return running(GuardedServer(uvicorn_config, limits=limits), listen(config))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def port(metrics: Metrics) -> Iterator[int]:
    with serve(metrics, tokens=[]) as where:
        yield where


def refused(metrics: Metrics, reason: str) -> float:
    return metrics.value("refused_total", reason=reason)


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"authorization": f"Bearer {TOKEN}"}, 200),
        ({"authorization": f"bearer {OTHER}"}, 200),
        ({}, 401),
        ({"authorization": f"Bearer {TOKEN}x"}, 401),
        ({"authorization": f"Basic {TOKEN}"}, 401),
        ({"authorization": TOKEN}, 401),
        ({"authorization": "Bearer "}, 401),
    ],
)
def test_only_a_token_lets_in(metrics: Metrics, given: dict[str, str], status: int) -> None:
    with serve(metrics, tokens=[TOKEN, OTHER]) as port:
        got, body = ask(port, "POST", "/v1/rank", {}, given)
        assert got == status and TOKEN not in json.dumps(body)
        assert ask(port, "GET", "/healthz/live")[0] == 200
        assert ask(port, "GET", "/healthzz")[0] == 401


def test_each_token_has_a_rate_of_its_own(metrics: Metrics) -> None:
    with serve(metrics, tokens=[TOKEN, OTHER], limits=LIMITS.model_copy(update={"rate": 1e-6})) as port:
        mine, yours = ({"authorization": f"Bearer {token}"} for token in (TOKEN, OTHER))
        assert [ask(port, "GET", "/v1/models", headers=mine)[0] for _ in range(2)] == [200, 429]
        assert ask(port, "GET", "/v1/models", headers=yours)[0] == 200


def test_a_bucket_refills() -> None:
    now = [0.0]
    bucket = Bucket(2.0, clock=lambda: now[0])
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    now[0] = 0.5
    assert [bucket.take() for _ in range(2)] == [True, False]
    now[0] = 99.0
    assert [bucket.take() for _ in range(3)] == [True, True, False]


def test_a_body_that_says_it_is_too_large_is_not_read(port: int, metrics: Metrics) -> None:
    with connect(port) as connection:
        connection.sendall(request("POST", "/", headers={"content-length": str(10**12)}))
        status, told = answer(connection)
        assert status == 413 and told["where"] == "body" and closed(connection)
    assert refused(metrics, "too large") == 1


def test_a_body_that_does_not_say_so_is_cut_off(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    with connect(port) as connection:
        connection.sendall(head + b"800\r\n" + b"x" * 2048 + b"\r\n" + b"1\r\nx\r\n")
        assert answer(connection)[0] == 413
    with connect(port) as connection:
        connection.sendall(head + b"800\r\n" + b"x" * 2048 + b"\r\n0\r\n\r\n")
        assert answer(connection)[1]["size"] == 2048


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded"])
def test_only_json_is_posted(port: int, kind: str) -> None:
    assert ask(port, "POST", "/", {}, {"content-type": kind})[0] == 415


def test_headers_that_come_byte_by_byte_are_cut_off(port: int, metrics: Metrics) -> None:
    with connect(port) as connection, connect(port) as silent:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        assert closed(connection) and closed(silent)
    assert refused(metrics, "slow headers") == 2


def test_so_are_those_of_a_further_request(port: int, metrics: Metrics) -> None:
    with connect(port) as connection:
        connection.sendall(request("POST", "/", b"{}"))
        assert answer(connection)[0] == 200
        connection.sendall(b"GET")
        assert closed(connection)
    assert refused(metrics, "slow headers") == 1


def test_a_body_that_does_not_come_is_not_waited_for(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(request("POST", "/", headers={"content-length": "10"}) + b"x")
        assert answer(connection)[0] in (0, 408)
        assert closed(connection)


def test_headers_without_end_are_cut_off(port: int, metrics: Metrics) -> None:
    with connect(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx: " + b"y" * 4096)
        assert closed(connection)
    assert refused(metrics, "large headers") == 1


def test_a_connection_too_many_is_closed_and_the_others_are_not(port: int, metrics: Metrics) -> None:
    held = [connect(port) for _ in range(LIMITS.connections)]
    for connection in held:
        connection.sendall(request("POST", "/", b"{}"))
    assert all(answer(connection)[0] == 200 for connection in held)
    with connect(port) as one_more:
        assert closed(one_more)
    assert refused(metrics, "connections") == 1
    for connection in held:
        connection.sendall(request("POST", "/", b"{}"))
        assert answer(connection)[0] == 200
        connection.close()


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00", b"{}\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 64])
def test_garbage_ends_the_connection(port: int, garbage: bytes) -> None:
    with connect(port) as connection:
        connection.sendall(request("POST", "/", b"{}"))
        assert answer(connection)[0] == 200
        connection.sendall(garbage)
        assert answer(connection)[0] in (0, 400) and closed(connection)
    with connect(port) as connection:
        connection.sendall(request("POST", "/", b"{}") + garbage)
        assert answer(connection)[0] in (200, 400)
    assert ask(port, "POST", "/", {})[0] == 200


def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    with connect(port) as connection:
        connection.sendall(b"".join(request("POST", "/", b"x" * size) for size in (3, 1, 2)))
        assert [answer(connection)[1]["size"] for _ in range(3)] == [3, 1, 2]


def test_answers_that_are_not_read_are_not_kept_for_ever(port: int, metrics: Metrics) -> None:
    """As many connections as there may be, all of which ask and never read; then there is room for others."""
    held = [connect(port) for _ in range(LIMITS.connections)]
    for connection in held:
        connection.sendall(request("POST", "/much", b"{}") * 16)  # more than the kernel keeps
    until(lambda: refused(metrics, "slow reader") == len(held))
    until(lambda: metrics.value("connections") == 0)
    assert ask(port, "POST", "/", {})[0] == 200
    for connection in held:
        connection.close()


@pytest.mark.parametrize("read", [False, True])
def test_a_connection_that_is_being_closed_does_not_wait_for_its_reader_for_ever(metrics: Metrics, read: bool) -> None:
    """Here what is left to send is too little for the transport to say that it waits."""

    class Waiting(asyncio.Transport):
        closing = aborted = False

        def write(self, data: Any) -> None: ...

        def close(self) -> None:
            self.closing = True

        def is_closing(self) -> bool:
            return self.closing

        def abort(self) -> None:
            self.closing = self.aborted = True

    async def ends() -> bool:
        config = uvicorn.Config(echo, **settings(LIMITS.model_copy(update={"write_seconds": 0.05}), metrics))
        config.load()
        protocol = config.http_protocol_class(config=config, server_state=ServerState(), app_state={})  # type: ignore[call-arg]
        transport = Waiting()
        protocol.connection_made(transport)
        protocol.data_received(b"no request\r\n\r\n")  # type: ignore[attr-defined]
        assert transport.closing and not transport.aborted
        if read:
            protocol.connection_lost(None)
        await asyncio.sleep(0.2)
        return transport.aborted

    assert asyncio.run(ends()) is not read
    assert refused(metrics, "slow reader") == (not read)


def test_no_request_is_begun_before_the_answers_to_others_are_read(metrics: Metrics) -> None:
    begun: list[float] = []

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        begun.append(time.monotonic())
        await echo(scope, receive, send)

    limits = LIMITS.model_copy(update={"write_seconds": 60.0})
    with serve(metrics, tokens=[], limits=limits, app=counting) as port, connect(port) as connection:
        connection.sendall(request("POST", "/much", b"{}") * 16)
        connection.sendall(request("POST", "/", b"{}") * 4)
        until(lambda: bool(begun) and time.monotonic() - begun[-1] > 0.5)
        assert len(begun) < 16
        told = [answer(connection)[1] for _ in range(20)]
    assert [bool(each["much"]) for each in told] == [True] * 16 + [False] * 4 and len(begun) == 20
    assert refused(metrics, "slow reader") == 0


def test_a_flood_leaves_memory_as_it_was(port: int) -> None:
    """Bodies that are cut off: a server that kept what it had read of them would keep some 13 MiB."""
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    body = head + b"100000\r\n" + b"x" * (1 << 20)

    def flood() -> None:
        for _ in range(200):
            with connect(port) as connection, contextlib.suppress(ConnectionError):
                connection.sendall(body)
                assert answer(connection)[0] in (0, 413)

    flood()
    with memory() as used:
        flood()
    assert used.grown < 4 << 20 and used.most < 8 << 20


def test_without_uvicorn_a_slow_body_is_told(metrics: Metrics) -> None:
    """As behind Ray Serve, where connections are not ours."""
    app = Guard(echo, config=ServingConfig(limits=LIMITS), tokens=[], metrics=metrics)
    sent: list[Any] = []

    async def never() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", b"application/json")]}
    asyncio.run(app(scope, never, send))
    assert sent[0]["status"] == 408


def test_tokens_are_read_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\n{OTHER}\n")
    assert read_tokens(ServingConfig(token_file=file)) == [TOKEN, OTHER]
    monkeypatch.setenv("RANK_TOKEN", TOKEN)
    assert read_tokens(ServingConfig(token_env="RANK_TOKEN")) == [TOKEN]
    assert read_tokens(ServingConfig()) == []


@pytest.mark.parametrize("text", ["", "short", "ünïcödé-enough-letters", f"{TOKEN} short"])
def test_tokens_that_are_none_are_refused(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tokens"
    file.write_text(text, encoding="utf-8")
    monkeypatch.setenv("RANK_TOKEN", text)
    for config in (ServingConfig(token_file=file), ServingConfig(token_env="RANK_TOKEN")):
        with pytest.raises(ConfigError) as told:
            read_tokens(config)
        assert TOKEN not in str(told.value)
    with pytest.raises(ConfigError):
        read_tokens(ServingConfig(token_file=tmp_path / "none"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "ranking.example"])
def test_others_are_let_in_only_with_a_token_or_when_told(host: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="open_to_all"):
        ServingConfig(host=host)
    assert ServingConfig(host=host, token_file=tmp_path).host == host
    assert ServingConfig(host=host, open_to_all=True).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_needs_no_token(host: str) -> None:
    assert ServingConfig(host=host).host == host


def test_half_of_tls_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="certificate and key"):
        ServingConfig(key=tmp_path)


def test_with_certificate_and_key_the_service_speaks_tls(metrics: Metrics, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    with serve(metrics, tokens=[], ssl_certfile=certificate, ssl_keyfile=key) as port:
        with connect(port) as plain:
            plain.sendall(request("POST", "/", b"{}"))
            assert answer(plain)[0] == 0
        context = ssl.create_default_context(cafile=str(certificate))
        with context.wrap_socket(connect(port), server_hostname="127.0.0.1") as connection:
            connection.sendall(request("POST", "/", b"{}"))
            assert answer(connection)[1]["size"] == 2


def test_a_tls_handshake_that_does_not_come_is_not_waited_for(metrics: Metrics, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    with serve(metrics, tokens=[], ssl_certfile=certificate, ssl_keyfile=key) as port:
        silent = [connect(port) for _ in range(2 * LIMITS.connections)]
        silent[0].sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of one
        assert all(closed(connection) for connection in silent)  # within 20 s: asyncio's own limit is 60 s
        context = ssl.create_default_context(cafile=str(certificate))
        with context.wrap_socket(connect(port), server_hostname="127.0.0.1") as connection:
            connection.sendall(request("POST", "/", b"{}"))
            assert answer(connection)[1]["size"] == 2


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    x509 = pytest.importorskip("cryptography.x509", reason="needs cryptography, to make certificates")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "own.crt", folder / "own.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    return paths
