"""A server in a thread of the test's process, and a client that writes what bytes it likes."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import uvicorn


@contextlib.contextmanager
def running(server: uvicorn.Server, listening: socket.socket) -> Iterator[int]:
    """The port of ``server``, which runs on ``listening`` until the end of the block."""
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
        listening.close()


def connect(port: int, *, timeout: float = 20.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=timeout)


def request(method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a request."""
    given = {"host": "x", "content-length": str(len(body)), "content-type": "application/json", **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def answer(connection: socket.socket) -> tuple[int, Any]:
    """Status and body (parsed, if it is JSON) of one answer; (0, None) if the connection was closed instead."""
    data = b""
    try:
        while b"\r\n\r\n" not in data:
            piece = connection.recv(1)  # never into a further answer
            if not piece:
                return 0, None
            data += piece
        body, lines = b"", data[:-4].decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        while len(body) < int(headers["content-length"]):
            piece = connection.recv(int(headers["content-length"]) - len(body))
            if not piece:
                return 0, None
            body += piece
    except ConnectionError:
        return 0, None
    value = json.loads(body) if headers.get("content-type") == "application/json" else body
    return int(lines[0].split(" ")[1]), value


def ask(port: int, method: str, path: str, value: Any = None, headers: Mapping[str, str] | None = None) -> Any:
    """Status and body of one request on a connection of its own."""
    body = b"" if value is None else json.dumps(value).encode()
    with connect(port) as connection:
        with contextlib.suppress(ConnectionError):  # whoever refuses a large body may not read it
            connection.sendall(request(method, path, body, headers))
        return answer(connection)


def closed(connection: socket.socket) -> bool:
    """Whether the other side ends the connection, without a further answer, before the socket's timeout."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False
