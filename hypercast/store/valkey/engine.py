"""The engine for many machines: rows as strings on a server or cluster, everything else one hash in one place.

Row keys spread over a cluster's slots, each by itself (:mod:`hypercast.store.valkey.records`). What must not change
under one's hands — snapshots, their layouts, pointers — changes by scripts on the server, in one step each
(:mod:`hypercast.store.valkey.scripts`).

**Seeing.** Rows are seen by everybody when ``put`` returns. A read asks in the same breath whether the rows that it
reads are still the snapshot's.

**Keeping.** Acknowledged rows are as safe as the server is set to keep them: with ``appendonly yes``, ``commit`` waits
until they are on the primaries' disks, and on as many replicas as ``replicas`` says; without, until they are in as many
replicas' memory. A server that was killed and has lost rows in between is found out: ``commit`` then says so, and they
are put again (:mod:`hypercast.store.valkey.keeping`). Valkey and Redis from 7.2 on.

**Outages.** Calls wait up to ``patience`` for servers that are gone and send again what was not acknowledged: putting
twice is putting once. ``close`` loses nothing here.
"""

import hashlib
import json
import secrets
from typing import Any, NamedTuple

from hypercast.errors import StoreError
from hypercast.pins import parse_snapshot_name
from hypercast.store import engine
from hypercast.store.engine import (
    KEPT,
    Bytes,
    ConflictError,
    Damage,
    Integers,
    Layout,
    Rows,
    Stats,
)
from hypercast.store.valkey import records, scripts, wire
from hypercast.store.valkey.config import ValkeyConfig
from hypercast.store.valkey.keeping import MARK_SECONDS, Keeper
from hypercast.store.valkey.link import Link

SNAPSHOT, PENDING, POINTER, ROWS, RESERVED = "snapshot:", "pending:", "pointer:", "rows:", "reserved:"
MERGE = hashlib.sha1(scripts.MERGE.encode()).hexdigest().encode()  # the server's name for the script
TOKEN_BYTES = 8


class _Rows(NamedTuple):
    """Where the rows of a snapshot are: the metadata as the server has it, and what it says."""

    written: bytes
    generation: bytes
    layout: Layout


class ValkeyEngine:
    """See :class:`hypercast.store.engine.Engine` and the module; threads may share one.

    Every method raises StoreError if the server refuses, and UnreachableError if it does not answer in time.
    """

    class Config(ValkeyConfig):
        """See :class:`hypercast.store.valkey.config.ValkeyConfig`."""

        def build(self) -> "ValkeyEngine":
            """An engine; nothing is sent yet."""
            return ValkeyEngine(config=self)

    def __init__(self, *, config: ValkeyConfig) -> None:
        self._config = config
        self._link = Link(config)
        self._where = self._link.where
        self._meta = f"{{{config.prefix}}}:meta"
        self._known: dict[str, _Rows] = {}
        self._keeper = Keeper(
            link=self._link, config=config, name=f"{config.prefix}:mark:{secrets.token_hex(TOKEN_BYTES)}"
        )

    def put(
        self,
        snapshot: str,
        layout: Layout,
        *,
        key: Integers,
        computed_at: Integers,
        history_end: Integers,
        payload: Bytes,
    ) -> None:
        known = self._known.get(snapshot) or self._look(snapshot)
        if known and known.layout != layout:
            known = self._look(snapshot)  # it may have been dropped and put anew
        arrays = engine.check_put(
            self._where,
            snapshot,
            layout,
            known.layout if known else None,
            arrays=(key, computed_at, history_end, payload),
        )
        if not len(key):
            return
        described = json.dumps(layout.to_json(), sort_keys=True)
        settled = 0
        while not settled:  # if not, the snapshot was dropped meanwhile: to the next generation
            token = secrets.token_hex(TOKEN_BYTES)
            known = self._parse(self._script(scripts.REGISTER, snapshot, described, token, len(key)))
            engine.check_put(self._where, snapshot, layout, known.layout, arrays=arrays)
            repeats = self._link.repeats
            added = self._write(snapshot, known, *arrays)
            if self._link.repeats != repeats:
                added = len(key)  # some may be rows whose first answer was lost: count too many, not too few
            settled = self._settle(snapshot, known, token, added)
            self._known[snapshot] = known

    def commit(self, snapshot: str) -> None:
        parse_snapshot_name(snapshot)
        self._keeper.keep(snapshot)

    def get(self, snapshot: str, key: Integers, *, as_of: int | None = None) -> Rows:
        key = engine.check_key(self._where, key)
        known = self._known.get(snapshot) or self._look(snapshot)
        while known:
            values: list[bytes | None] = []
            keys = self._keys(known, key)
            ask = (b"HGET", self._meta.encode(), (SNAPSHOT + snapshot).encode())
            for start in range(0, len(key), self._config.batch):
                got, written = self._link.get(keys[start : start + self._config.batch], last=ask)
                if written != known.written:
                    break
                values += got
            else:
                return self._read(snapshot, key, values, row_bytes=known.layout.row_bytes, as_of=as_of)
            known = self._look(snapshot)
        return engine.no_rows(len(key), 0)

    def layout(self, snapshot: str) -> Layout | None:
        known = self._look(snapshot)
        return known.layout if known else None

    def snapshots(self) -> list[str]:
        return sorted(self._fields(SNAPSHOT), key=parse_snapshot_name)

    def stats(self, snapshot: str) -> Stats:
        known = self._look(snapshot)
        if known is None:
            return Stats(rows=0, bytes=0, segments=0)
        reserved = self._fields(f"{RESERVED}{snapshot}:").values()
        rows = int(self._link.call("HGET", self._meta, ROWS + snapshot) or 0) + sum(map(int, reserved))
        return Stats(rows=rows, bytes=rows * records.record_bytes(known.layout.row_bytes), segments=1)

    def drop(self, snapshot: str) -> None:
        known = self._look(snapshot)
        if known is None or not self._script(scripts.DROP, snapshot, known.written):
            raise StoreError(engine.cannot_drop(self._where, snapshot, self.pointers()))
        self._known.pop(snapshot, None)

    def collect(self) -> int:
        self._script(scripts.ABANDON)
        living: set[bytes] = set()

        def unlink(node: Any, keys: list[bytes]) -> list[int]:
            nonlocal living
            if not living.issuperset(map(records.generation_of, keys)):
                living = self._living()  # asked once the keys are seen: who writes rows has registered before
            dead = [key for key in keys if records.generation_of(key) not in living]
            with node.pipeline(transaction=False) as pipeline:
                for key in dead:
                    pipeline.strlen(key)
                for key in dead:
                    pipeline.unlink(key)
                return pipeline.execute()[: len(dead)]

        return sum(self._link.sweep(records.pattern(self._config.prefix), unlink))

    def pointers(self) -> dict[str, str]:
        return self._fields(POINTER)

    def move(self, pointer: str, *, expected: str | None, to: str | None) -> None:
        engine.check_pointer(self._where, pointer)
        if to is not None:
            parse_snapshot_name(to)
        outcome, actual = self._script(scripts.MOVE, pointer, expected or "", to or "", secrets.token_hex(TOKEN_BYTES))
        if outcome == b"no rows":
            raise StoreError(engine.no_such_rows(self._where, pointer, str(to)))
        if outcome == b"elsewhere":
            raise ConflictError(
                engine.moved_meanwhile(self._where, pointer, expected=expected, actual=actual.decode() or None)
            )

    def verify(self) -> list[Damage]:
        snapshots = {name: self._parse(value.encode()) for name, value in self._fields(SNAPSHOT).items()}

        def check(node: Any, keys: list[bytes]) -> list[Damage]:
            found = []
            for name, known in snapshots.items():
                its = [key for key in keys if records.generation_of(key) == known.generation]
                if not its:
                    continue
                with node.pipeline(transaction=False) as pipeline:
                    for key in its:
                        pipeline.get(key)
                    values = pipeline.execute()
                key_N3 = records.decode_keys(its)
                _, damaged = records.decode(values, key_N3=key_N3, row_bytes=known.layout.row_bytes)
                found += [self._damage(name, one) for one in key_N3[damaged].tolist()]
            return found

        return list(dict.fromkeys(self._link.sweep(records.pattern(self._config.prefix), check)))

    def close(self) -> None:
        self._link.close()

    def _write(
        self,
        snapshot: str,
        known: _Rows,
        key: Integers,
        computed_at: Integers,
        history_end: Integers,
        payload: Bytes,
    ) -> int:
        """Rows that are new. Plainly, where a key has none yet; by a script, where one must be merged into others."""
        added, mostly_new = 0, True
        for start in range(0, len(key), self._config.batch):
            part = slice(start, start + self._config.batch)
            key_NK = self._keys(known, key[part])
            record_NR = records.encode(
                key_N3=key[part],
                computed_at=computed_at[part],
                history_end=history_end[part],
                payload_NB=payload[part],
            )
            count = len(key_NK)
            if mostly_new:
                replies = self._keeper.send(snapshot, wire.pack(b"SET", key_NK, record_NR, b"NX"), key_NK)
                there = [place for place, reply in enumerate(replies) if reply is None]
                key_NK, record_NR = key_NK[there], record_NR[there]
                added += count - len(there)
            if len(key_NK):
                mostly_new = 2 * len(key_NK) < count
                commands = wire.pack(b"EVALSHA", MERGE, b"1", key_NK, record_NR, str(KEPT).encode())
                added += sum(self._keeper.send(snapshot, commands, key_NK, load=scripts.MERGE))
        return added

    def _settle(self, snapshot: str, known: _Rows, token: str, added: int) -> int:
        """Let the rows of a put be the snapshot's; 0 if it was dropped since they were registered."""
        key, number = self._keeper.mark(self._config.prefix)  # the metadata too may be lost
        arguments = snapshot, known.written, token, added, number, MARK_SECONDS
        settled = int(self._link.call("EVAL", scripts.SETTLE, 2, self._meta, key, *arguments))
        if settled:
            self._keeper.marked(snapshot, key, number)
        return settled

    def _read(
        self, snapshot: str, key_N3: Integers, values: list[bytes | None], *, row_bytes: int, as_of: int | None
    ) -> Rows:
        rows, damaged = records.decode(values, key_N3=key_N3, row_bytes=row_bytes, as_of=as_of)
        if len(damaged):
            damage = self._damage(snapshot, key_N3[damaged[0]].tolist())
            more = f" (so are {len(damaged) - 1} more of these keys)" if len(damaged) > 1 else ""
            raise StoreError(f"{damage.where}: {damage.what}{more}. {damage.remedy}")
        return rows

    def _damage(self, snapshot: str, key: list[int]) -> Damage:
        return Damage(
            where=f"{self._where}, {snapshot}, key {tuple(key)}",
            what="the value is not what was put",
            remedy=f"Drop {snapshot} and publish it again; `hypercast store verify` names all damaged keys.",
        )

    def _living(self) -> set[bytes]:
        """Generations whose rows are there, or being written."""
        written = [*self._fields(SNAPSHOT).values(), *self._fields(PENDING).values()]
        return {self._parse(one.encode()).generation for one in written}

    def _keys(self, known: _Rows, key_N3: Integers) -> Bytes:
        return records.encode_keys(records.row_head(self._config.prefix, known.generation), key_N3)

    def _look(self, snapshot: str) -> _Rows | None:
        """What the server says now of a snapshot's rows."""
        parse_snapshot_name(snapshot)
        written = self._link.call("HGET", self._meta, SNAPSHOT + snapshot)
        if written is None:
            self._known.pop(snapshot, None)
            return None
        self._known[snapshot] = self._parse(written)
        return self._known[snapshot]

    def _parse(self, written: bytes) -> _Rows:
        generation, layout = written.split(b" ", 1)
        return _Rows(written, bytes.fromhex(generation.decode()), Layout(**json.loads(layout)))

    def _fields(self, kind: str) -> dict[str, str]:
        """Metadata of one kind by name."""
        fields = {name.decode(): value.decode() for name, value in self._link.call("HGETALL", self._meta).items()}
        return {name.removeprefix(kind): value for name, value in sorted(fields.items()) if name.startswith(kind)}

    def _script(self, script: str, *arguments: str | bytes | int) -> Any:
        return self._link.call("EVAL", script, 1, self._meta, *arguments)
