"""The way to the server or cluster, which waits while they are gone.

Shape legend: N keys, K bytes of a key, C bytes of a command.
"""

import binascii
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import valkey
from valkey import exceptions
from valkey.cluster import ClusterNode

from hypercast.errors import StoreError
from hypercast.store.engine import Bytes, Integers, UnreachableError
from hypercast.store.valkey import wire
from hypercast.store.valkey.config import ValkeyConfig

logger = logging.getLogger(__name__)

T = TypeVar("T")

SLOTS = 16_384
SCAN_COUNT = 1000
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0

# What passes: servers that are down, start, fail over, or hand slots to each other.
_PASSING = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ClusterError,
    exceptions.AskError,
    exceptions.TryAgainError,
    exceptions.ReadOnlyError,
    exceptions.ValkeyClusterException,
)
_REFUSING = (
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.NoPermissionError,
    exceptions.AuthenticationWrongNumberOfArgsError,
)


@dataclass(frozen=True)
class _Servers:
    """A client, the primaries, and in a cluster the number of the primary for each slot."""

    client: Any
    nodes: list[Any]
    node_of_slot: Integers | None = None


class Link:
    """Sends commands; every method waits up to ``patience`` for servers that do not answer, then tries no more.

    What is sent may be sent again if no answer came: commands must be such that this does no harm.

    Attributes:
        where: what errors call the servers.
        repeats: how often anything was sent again.

    Raises:
        UnreachableError: no answer in time.
        StoreError: the server refuses: password, certificate, rights, memory.
    """

    def __init__(self, config: ValkeyConfig) -> None:
        self._config = config
        self.where = "valkey " + ", ".join(config.urls)
        self._servers: _Servers | None = None
        self._lock = threading.Lock()
        self._gone_since: float | None = None
        self.repeats = 0

    def call(self, *arguments: Any) -> Any:
        """One command, which in a cluster goes where its key is."""
        return self._patiently(lambda servers: servers.client.execute_command(*arguments))

    def get(self, key_NK: Bytes, *, last: tuple[bytes, ...]) -> tuple[list[bytes | None], Any]:
        """Values of N keys, and the reply to one command more, the second word of which is its key, sent after them."""

        def attempt(servers: _Servers) -> tuple[list[Any], Any]:
            if servers.node_of_slot is not None:
                return self._spread(servers, wire.pack(b"GET", key_NK), key_NK, last=last)
            commands = wire.pack_mget(key_NK) + wire.one(*last)
            values, reply = wire.exchange([(servers.nodes[0], commands, 2)])[0]
            return values, reply  # type: ignore[return-value]

        return self._patiently(attempt)

    def send(self, command_NC: Bytes, key_NK: Bytes, *, load: str | None = None) -> list[Any]:
        """Replies to N commands, each on its key; a script that they call is loaded before them."""
        return self._patiently(lambda servers: self._spread(servers, command_NC, key_NK, load=load)[0])

    def sweep(self, pattern: str, visit: Callable[[Any, list[bytes]], list[T]]) -> list[T]:
        """What ``visit`` makes of all keys that match, some at a time; a key may come twice."""

        def attempt(servers: _Servers) -> list[T]:
            made = []
            for node in servers.nodes:
                cursor: Any = None
                while cursor != 0:
                    cursor, keys = node.scan(cursor or 0, match=pattern, count=SCAN_COUNT)
                    if keys:
                        made += visit(node, keys)
            return made

        return self._patiently(attempt)

    def on_each(self, command: Callable[[Any, Callable[[bytes], bool]], T]) -> list[T]:
        """What ``command`` returns for each primary, told which keys are that primary's."""

        def attempt(servers: _Servers) -> list[T]:
            table = servers.node_of_slot
            return [
                command(node, lambda key, place=place: table is None or table[slot_of(key)] == place)  # type: ignore[misc]
                for place, node in enumerate(servers.nodes)
            ]

        return self._patiently(attempt)

    def close(self) -> None:
        """Let go of all connections."""
        with self._lock:
            servers, self._servers = self._servers, None
        if servers is not None:
            servers.client.close()

    def _spread(
        self,
        servers: _Servers,
        command_NC: Bytes,
        key_NK: Bytes,
        *,
        last: tuple[bytes, ...] | None = None,
        load: str | None = None,
    ) -> tuple[list[Any], Any]:
        """Replies to N commands, sent to the primaries of their keys all at once, and to ``last``."""
        table = servers.node_of_slot
        before = wire.one(b"SCRIPT", b"LOAD", load.encode()) if load else b""
        after = wire.one(*last) if last else b""
        if table is None:
            node_N, home = np.zeros(len(key_NK), np.int64), 0
        else:
            node_N = table[[slot_of(key) for key in _split(key_NK)]]
            home = int(table[slot_of(last[1])]) if last else 0
        requests, asked = [], []
        for place, node in enumerate(servers.nodes):
            rows = np.flatnonzero(node_N == place)
            start, end = (before if len(rows) else b""), (after if place == home else b"")
            if len(rows) or end:
                commands = start + command_NC[rows].tobytes() + end
                requests.append((node, commands, bool(start) + len(rows) + bool(end)))
                asked.append((rows.tolist(), bool(start), bool(end)))
        replies: list[Any] = [None] * len(key_NK)
        reply = None
        for (its, starts, ends), got in zip(asked, wire.exchange(requests), strict=True):
            if ends:
                reply = got.pop()
            for row, value in zip(its, got[starts:], strict=True):
                replies[row] = value
        return replies, reply

    def _patiently(self, attempt: Callable[[_Servers], T]) -> T:
        started, pause, tries = time.monotonic(), FIRST_PAUSE, 0
        while True:
            servers = None
            try:
                servers = self._connected()
                result = attempt(servers)
            except (exceptions.ValkeyError, exceptions.ValkeyClusterException) as error:
                problem = self._refusal(error)
                if problem:
                    raise StoreError(f"{self.where}: {problem}") from error
                self._forget(servers)
                tries += 1
                self.repeats += 1
                if tries == 1:  # an idle connection that the server has closed meanwhile: nothing to speak of
                    continue
                waited = time.monotonic() - started
                self._gone(error, waited)
                time.sleep(min(pause, max(0.0, self._config.patience - waited)))
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self._back()
                return result

    def _refusal(self, error: Exception) -> str | None:
        """What to tell of an error that waiting does not mend; None if it may."""
        chain = list(_chain(error))
        if any(isinstance(one, _REFUSING) for one in chain):
            variable = self._config.password_env
            source = (
                f"the password comes from the environment variable {variable}" if variable else "no password is set"
            )
            return f"access refused ({error}). User: {self._config.username or 'default'}; {source} (password_env)."
        if any(isinstance(one, ssl.SSLCertVerificationError) for one in chain):
            return f"the server's certificate is not accepted ({error}). Name who signed it under tls.ca."
        if any(isinstance(one, exceptions.OutOfMemoryError) for one in chain):
            return (
                f"its memory is full ({error}); nothing is evicted, rows in place stay readable. Drop and collect "
                "snapshots that are not needed, or raise maxmemory."
            )
        if isinstance(error, _PASSING):
            return None
        return f"the server refuses a command, or is none of this kind: {error}."

    def _gone(self, error: Exception, waited: float) -> None:
        if waited >= self._config.patience:
            raise UnreachableError(
                f"{self.where}: no answer in {self._config.patience:g} s ({error}). Start the server, or correct "
                "urls; what was acknowledged is as safe as the server's own settings make it. A longer wait: patience."
            ) from error
        with self._lock:
            first = self._gone_since is None
            if first:
                self._gone_since = time.monotonic() - waited
        if first:
            logger.warning("%s: no answer (%s); trying for up to %g s", self.where, error, self._config.patience)

    def _back(self) -> None:
        if self._gone_since is None:
            return
        with self._lock:
            since, self._gone_since = self._gone_since, None
        if since is not None:
            logger.info("%s: answers again after %.1f s", self.where, time.monotonic() - since)

    def _connected(self) -> _Servers:
        servers = self._servers
        if servers is None:
            with self._lock:
                if self._servers is None:
                    self._servers = self._connect()
                servers = self._servers
        return servers

    def _forget(self, servers: _Servers | None) -> None:
        """Learn a cluster anew; a single server's client connects by itself."""
        if servers is not None and servers.node_of_slot is not None:
            with self._lock:
                if self._servers is servers:
                    self._servers = None

    def _connect(self) -> _Servers:
        options = self._config.options(os.environ)
        addresses = self._config.addresses
        if not self._config.cluster:
            client = valkey.Valkey(host=addresses[0][0], port=addresses[0][1], db=self._config.database, **options)
            return _Servers(client, [client])
        cluster = valkey.ValkeyCluster(
            startup_nodes=[ClusterNode(*address) for address in addresses], cluster_error_retry_attempts=0, **options
        )
        primaries = cluster.get_primaries()
        place = {node.name: number for number, node in enumerate(primaries)}
        slots = cluster.nodes_manager.slots_cache
        if len(slots) < SLOTS:
            raise exceptions.ClusterError(f"only {len(slots)} of {SLOTS} slots are served")
        table = np.array([place[slots[slot][0].name] for slot in range(SLOTS)], np.int64)
        return _Servers(cluster, [cluster.get_valkey_connection(node) for node in primaries], table)


def _split(key_NK: Bytes) -> list[bytes]:
    data, width = key_NK.tobytes(), key_NK.shape[1]
    return [data[start : start + width] for start in range(0, len(data), width)]


def slot_of(key: bytes) -> int:
    """Of a key by the cluster's rule: the CRC of what the first braces hold, or of all of it."""
    opening = key.find(b"{")
    closing = key.find(b"}", opening + 1)
    if opening >= 0 and closing > opening + 1:
        key = key[opening + 1 : closing]
    return binascii.crc_hqx(key, 0) % SLOTS


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
