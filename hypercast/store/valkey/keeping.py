"""Whether a server has kept, and will keep, what it acknowledged.

A server that is killed comes back with all that it was sent up to some moment, and without what came later. Therefore
each batch of rows is followed, on the same connection to each primary, by a mark: a number, new for every try, that
joins a set. While the number is in the set, the rows before it are there; it does no harm if other threads' numbers
come between, or an answer is lost and the batch is sent again.
"""

import itertools
import threading
from collections import defaultdict
from typing import Any

import valkey

from hypercast.errors import StoreError
from hypercast.store.engine import Bytes
from hypercast.store.valkey import scripts, wire
from hypercast.store.valkey.config import ValkeyConfig
from hypercast.store.valkey.link import Link

MILLISECONDS = 1000
MARK_SECONDS = 7 * 86_400
MOST_MARKS = 1000
"""Of one snapshot on one primary; from then on one number stands for all of them."""
_EXPIRY = str(MARK_SECONDS).encode()


class Keeper:
    """Marks of one engine; threads may share one.

    Args:
        link: to the servers.
        name: what the marks' keys begin with, no other engine's.
    """

    def __init__(self, *, link: Link, config: ValkeyConfig, name: str) -> None:
        self._link, self._config, self._name = link, config, name
        self._numbers = itertools.count(1)
        # Numbers that were acknowledged since the last commit, by snapshot and the set's key.
        self._marks: defaultdict[str, defaultdict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        self._lock = threading.Lock()  # of the marks
        self._checking = threading.Lock()  # held while numbers leave sets: of two who ask, one would miss them

    def send(self, snapshot: str, command_NC: Bytes, key_NK: Bytes, *, load: str | None = None) -> list[Any]:
        """Replies to N commands that write rows; see :meth:`hypercast.store.valkey.link.Link.send`."""
        marks: dict[str, int] = {}

        def closing(tags: list[str]) -> list[list[bytes]]:
            nonlocal marks  # those of the last try count: of an earlier one some commands may have failed
            marks = {self._key(tag): next(self._numbers) for tag in tags}
            return [self._add(key, number) for key, number in marks.items()]

        replies = self._link.send(command_NC, key_NK, load=load, closing=closing)
        for key, number in marks.items():
            self.marked(snapshot, key, number)
        return replies

    def mark(self, tag: str) -> tuple[str, int]:
        """Key and number for a script to add, beside a key with the same tag; then say that it is :meth:`marked`."""
        return self._key(tag), next(self._numbers)

    def marked(self, snapshot: str, key: str, number: int) -> None:
        """A server has acknowledged a number, and the snapshot's rows before it."""
        with self._lock:
            numbers = self._marks[snapshot][key]
            numbers.add(number)
            full = len(numbers) >= MOST_MARKS
        if full:
            with self._checking:
                for key, numbers in self._marked(snapshot).items():
                    self._unite(snapshot, key, numbers)

    def keep(self, snapshot: str) -> None:
        """Return when all that was marked is as safe as the servers are set to make it.

        Raises:
            StoreError: a server has lost some of it.
        """
        with self._checking:
            marks = self._marked(snapshot)
            self._link.on_each(self._wait)
            # Asked after waiting: nothing that is there then can have been lost before it was safe.
            united = {key: self._unite(snapshot, key, numbers) for key, numbers in marks.items()}
            with self._lock:
                for key, (number, _) in united.items():
                    self._marks[snapshot][key].remove(number)
            if not all(kept for _, kept in united.values()):
                raise StoreError(
                    f"{self._link.where}: the server was restarted and has lost rows of {snapshot} that were put and "
                    "not yet committed: put them again. With `appendonly yes` and `appendfsync always` it loses none."
                )
            for key, (number, _) in united.items():
                self._link.call("SREM", key, number)

    def _marked(self, snapshot: str) -> dict[str, set[int]]:
        with self._lock:
            return {key: set(numbers) for key, numbers in self._marks[snapshot].items() if numbers}

    def _unite(self, snapshot: str, key: str, numbers: set[int]) -> tuple[int, bool]:
        """A number that stands for several, and whether it is there: it is not if one of them is not."""
        number = next(self._numbers)
        kept = self._link.call("EVAL", scripts.UNITE, 1, key, MARK_SECONDS, number, *numbers)
        with self._lock:
            self._marks[snapshot][key] -= numbers
            self._marks[snapshot][key].add(number)
        return number, bool(kept)

    def _key(self, tag: str) -> str:
        return f"{self._name}:{{{tag}}}"

    def _add(self, key: str, number: int) -> list[bytes]:
        name = key.encode()
        return [wire.one(b"SADD", name, b"%d" % number), wire.one(b"EXPIRE", name, _EXPIRY)]

    def _wait(self, node: Any, tag: str) -> None:
        """Until the primary has on disk, and its replicas have, what it was sent before."""
        local, replicas = int(node.info("persistence")["aof_enabled"]), self._config.replicas
        if not local and not replicas:
            return
        timeout = str(int(self._config.timeout * MILLISECONDS / 2)).encode()
        numbers = ([b"1"] if local else []) + [str(replicas).encode(), timeout]
        # Waiting is for what came before this connection's last write: hence a write, of no number in particular.
        commands = [*self._add(self._key(tag), 0), wire.one(b"WAITAOF" if local else b"WAIT", *numbers)]
        *_, reply = wire.exchange([(node, b"".join(commands), len(commands))])[0]
        kept, copies = reply if local else (0, reply)
        if kept < local or copies < replicas:
            raise valkey.TimeoutError(f"on disk: {kept} of {local}; replicas that have it: {copies} of {replicas}")
