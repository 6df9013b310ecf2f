"""The way to the server or cluster, which waits while they are gone.

Shape legend: N keys, K bytes of a key, C bytes of a command.
"""

import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from valkey import exceptions

from hypercast.errors import StoreError
from hypercast.store.engine import Bytes, UnreachableError
from hypercast.store.valkey import wire
from hypercast.store.valkey.config import ValkeyConfig
from hypercast.store.valkey.servers import Servers, connect

logger = logging.getLogger(__name__)

T = TypeVar("T")

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
        self._servers: Servers | None = None
        self._lock = threading.Lock()
        self._gone_since: float | None = None
        self.repeats = 0

    def call(self, *arguments: Any) -> Any:
        """One command, which in a cluster goes where its key is."""
        return self._patiently(lambda servers: servers.client.execute_command(*arguments))

    def get(self, key_NK: Bytes, *, last: tuple[bytes, ...]) -> tuple[list[bytes | None], Any]:
        """Values of N keys, and the reply to one command more, the second word of which is its key, sent after them."""

        def attempt(servers: Servers) -> tuple[list[Any], Any]:
            if servers.node_of_slot is None:
                commands = wire.pack_mget(key_NK) + wire.one(*last)
                values, reply = wire.exchange([(servers.nodes[0], commands, 2)])[0]
                return values, reply
            home = int(servers.places([last[1]])[0])
            command_NC = wire.pack(b"GET", key_NK)
            values, replies = self._spread(servers, command_NC, _split(key_NK), after={home: [wire.one(*last)]})
            return values, replies[home][0]

        return self._patiently(attempt)

    def send(
        self,
        command_NC: Bytes,
        key_NK: Bytes,
        *,
        load: str | None,
        closing: Callable[[list[str]], list[list[bytes]]],
    ) -> list[Any]:
        """Replies to N commands, each on its key; a script that they call is loaded before them.

        In the same breath, after them, each primary that has any of the keys is sent what ``closing`` returns for its
        tag; each try asks again.
        """
        keys = _split(key_NK)
        before = [wire.one(b"SCRIPT", b"LOAD", load.encode())] if load else []

        def attempt(servers: Servers) -> list[Any]:
            places = np.unique(servers.places(keys)).tolist()
            after = dict(zip(places, closing([servers.tags[place] for place in places]), strict=True))
            return self._spread(servers, command_NC, keys, before=before, after=after)[0]

        return self._patiently(attempt)

    def sweep(self, pattern: str, visit: Callable[[Any, list[bytes]], list[T]]) -> list[T]:
        """What ``visit`` makes of all keys that match, some at a time; a key may come twice."""

        def attempt(servers: Servers) -> list[T]:
            made = []
            for node in servers.nodes:
                cursor: Any = None
                while cursor != 0:
                    cursor, keys = node.scan(cursor or 0, match=pattern, count=SCAN_COUNT)
                    if keys:
                        made += visit(node, keys)
            return made

        return self._patiently(attempt)

    def on_each(self, command: Callable[[Any, str], T]) -> list[T]:
        """What ``command`` returns for each primary and its tag."""
        return self._patiently(
            lambda servers: [command(node, tag) for node, tag in zip(servers.nodes, servers.tags, strict=True)]
        )

    def close(self) -> None:
        """Let go of all connections."""
        with self._lock:
            servers, self._servers = self._servers, None
        if servers is not None:
            servers.client.close()

    def _spread(
        self,
        servers: Servers,
        command_NC: Bytes,
        keys: list[bytes],
        *,
        before: Sequence[bytes] = (),
        after: dict[int, list[bytes]],
    ) -> tuple[list[Any], dict[int, list[Any]]]:
        """Replies to N commands, sent to the primaries of their keys all at once, and by primary to those ``after``."""
        place_N = servers.places(keys)
        places = sorted({*np.unique(place_N).tolist(), *after})
        rows = {place: np.flatnonzero(place_N == place) for place in places}
        requests = []
        for place in places:
            commands = [*before, command_NC[rows[place]].tobytes(), *after.get(place, [])]
            count = len(before) + len(rows[place]) + len(after.get(place, []))
            requests.append((servers.nodes[place], b"".join(commands), count))
        replies: list[Any] = [None] * len(keys)
        replies_after = {}
        for place, got in zip(places, wire.exchange(requests), strict=True):
            end = len(before) + len(rows[place])
            for row, value in zip(rows[place].tolist(), got[len(before) : end], strict=True):
                replies[row] = value
            replies_after[place] = got[end:]
        return replies, replies_after

    def _patiently(self, attempt: Callable[[Servers], T]) -> T:
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

    def _connected(self) -> Servers:
        servers = self._servers
        if servers is None:
            with self._lock:
                if self._servers is None:
                    self._servers = connect(self._config)
                servers = self._servers
        return servers

    def _forget(self, servers: Servers | None) -> None:
        """Learn a cluster anew; a single server's client connects by itself."""
        if servers is not None and servers.node_of_slot is not None:
            with self._lock:
                if self._servers is servers:
                    self._servers = None


def _split(key_NK: Bytes) -> list[bytes]:
    data, width = key_NK.tobytes(), key_NK.shape[1]
    return [data[start : start + width] for start in range(0, len(data), width)]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
