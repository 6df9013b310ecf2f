"""Whether a server has kept, and will keep, what it acknowledged.

A server that is killed comes back with all that it was sent up to some moment, and without what came later. Therefore a
mark follows the rows of each put, on every primary: while the mark is there, so are they.
"""

import itertools
import threading
from collections.abc import Callable
from typing import Any

import valkey

from hypercast.errors import StoreError
from hypercast.store.valkey import scripts, wire
from hypercast.store.valkey.config import ValkeyConfig
from hypercast.store.valkey.link import Link

MILLISECONDS = 1000
MARK_SECONDS = 7 * 86_400


class Keeper:
    """Marks of one engine.

    Args:
        link: to the servers.
        name: what the marks' keys begin with, no other engine's.
    """

    def __init__(self, *, link: Link, config: ValkeyConfig, name: str) -> None:
        self._link, self._config, self._name = link, config, name
        self._lock = threading.Lock()
        self._sequence = 0
        self._marks: dict[str, int] = {}  # of what was put since the last commit: key and value
        self._lost = False

    def mark(self) -> None:
        """Rows have been put."""
        with self._lock:
            self._sequence += 1
            for key in self._link.on_each(self._key):
                was = int(self._link.call("EVAL", scripts.MARK, 1, key, self._sequence, MARK_SECONDS))
                # Its own value it meets if the answer to a first try was lost.
                self._lost |= was not in (self._marks.get(key, was), self._sequence)
                self._marks[key] = self._sequence

    def keep(self) -> None:
        """Return when all that was marked is as safe as the servers are set to make it.

        Raises:
            StoreError: a server has lost some of it.
        """
        with self._lock:
            marks, self._marks = self._marks, {}
            lost, self._lost = self._lost, False
            lost |= any(int(self._link.call("GET", key) or 0) != value for key, value in marks.items())
            if lost:
                raise StoreError(
                    f"{self._link.where}: the server was restarted and has lost rows that were put and not yet "
                    "committed: put them again. With `appendonly yes` and `appendfsync always` it loses none."
                )
            self._link.on_each(self._wait)

    def _key(self, _: Any, owns: Callable[[bytes], bool]) -> str:
        """A key that this primary holds."""
        return next(key for key in (f"{self._name}:{number}" for number in itertools.count()) if owns(key.encode()))

    def _wait(self, node: Any, owns: Callable[[bytes], bool]) -> None:
        """Until the primary has on disk, and its replicas have, what it was sent before."""
        local, replicas = int(node.info("persistence")["aof_enabled"]), self._config.replicas
        if not local and not replicas:
            return
        timeout = str(int(self._config.timeout * MILLISECONDS / 2)).encode()
        # Waiting is for what came before this connection's last write: hence a write.
        write = wire.one(b"SET", self._key(node, owns).encode(), b"0", b"EX", b"%d" % MARK_SECONDS)
        numbers = ([b"1"] if local else []) + [str(replicas).encode(), timeout]
        _, reply = wire.exchange([(node, write + wire.one(b"WAITAOF" if local else b"WAIT", *numbers), 2)])[0]
        kept, copies = reply if local else (0, reply)
        if kept < local or copies < replicas:
            raise valkey.TimeoutError(f"on disk: {kept} of {local}; replicas that have it: {copies} of {replicas}")
