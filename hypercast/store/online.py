"""The online store: vectors by (surface, user, item) and by user, over any engine (:mod:`hypercast.store.engine`).

A read climbs down a ladder (:mod:`hypercast.store.ladder`), and every rung is counted: the key's own vector while
FRESH, or STALE; the NEAREST user's, with ``miss: nearest``; the user's aggregate; zeros with the mask bit off. Expiry
is checked when read, against the reader's clock. No vector that was computed after that clock is ever read, however it
is set: a reader whose clock went back reads what there was then, of the snapshot that had been published by then.

Readers that follow a lineage read the snapshot that a channel names (:mod:`hypercast.store.channels`), never one that
is still being put. Those that are pinned to a version read that; or what the channel names, through an adapter
(:mod:`hypercast.store.adapter`), if they ask for it.

Shape legend: N keys, D numbers of a vector, B bytes of an encoded one.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hypercast.codec import rows as codecs
from hypercast.errors import StoreError
from hypercast.pins import Pin, parse_snapshot_name
from hypercast.store import admission, choice, engine, ladder, own_keys
from hypercast.store.adapter import Adapter
from hypercast.store.adapter_rows import AdapterRows
from hypercast.store.channels import Channels
from hypercast.store.engine import Engine, Integers, Layout
from hypercast.store.followed import Followed
from hypercast.store.ladder import Counters, Lookup
from hypercast.store.neighbours import Neighbours
from hypercast.store.online_config import OnlineConfig
from hypercast.store.outage import Outage

if TYPE_CHECKING:
    from hypercast.snapshot import Snapshot


class OnlineStore:
    """Vectors of one representation, by snapshot. What was put is seen by others after :meth:`publish`."""

    class Config(OnlineConfig):
        """See :class:`hypercast.store.online_config.OnlineConfig`."""

        def build(self, root: Path | str | None = None) -> "OnlineStore":
            """The store over the engine that is named, or over a local one in ``root``.

            Raises:
                StoreError: neither is given.
            """
            engine = self.engine
            if engine is None:
                if root is None:
                    raise StoreError(f"online store: no engine is given. Example: engine: {choice.EXAMPLE}")
                engine = choice.config_class("local").model_validate({"path": Path(root)})
            return OnlineStore(config=self, engine=choice.build(engine))

    def __init__(self, *, config: Config, engine: Engine) -> None:
        self.config = config
        self.engine = engine
        self.channels = Channels(engine)
        self.counters = Counters()
        self._followed = Followed(self.channels, believed_for=config.believed_for)
        self._adapters = AdapterRows(engine)
        self._outage = Outage(wait=config.unreachable == "wait", ask_again=config.ask_again)
        self._fallback = Neighbours(engine=engine, freshness=config) if config.miss == "nearest" else None

    def put(
        self,
        *,
        snapshot: "Snapshot",
        surface: Integers,
        user_id: Integers,
        item_id: Integers,
        vector: NDArray[np.floating[Any]],
        computed_at: Integers,
        history_end: Integers,
    ) -> None:
        """Store N vectors by (surface, user, item). The same key and ``computed_at`` replaces what was there.

        Args:
            snapshot: that computed them.
            surface, item_id: integers [N], not negative.
            user_id: integers [N].
            vector: float [N, D] in the snapshot's width.
            computed_at: int64 [N], microseconds UTC, not before the snapshot's watermark.
            history_end: int64 [N], exclusive end of the history that was read, not after ``computed_at``.

        Raises:
            StoreError: another width than the snapshot's, lengths that differ, ids or times that are no integers, ids
                that are negative, a number that the codec cannot hold, or another codec or other weights than the
                snapshot's rows have.
            LeakageError: times out of order (law L3).
            UnreachableError: the server does not answer.
        """
        key = own_keys.of_candidates(surface, user_id, item_id)
        layout = self._put(snapshot, key, vector, computed_at, history_end)
        if self._fallback is not None and len(key):
            self._fallback.remember(snapshot.name, layout, key, np.asarray(computed_at))

    def put_users(
        self,
        *,
        snapshot: "Snapshot",
        user_id: Integers,
        vector: NDArray[np.floating[Any]],
        computed_at: Integers,
        history_end: Integers,
    ) -> None:
        """Store N users' aggregates; shapes, units and errors as for :meth:`put`."""
        self._put(snapshot, own_keys.of_users(user_id), vector, computed_at, history_end)

    def put_adapter(self, adapter: Adapter, *, at: int) -> None:
        """Keep an adapter beside its source's rows, so that whoever reads them can apply it; ``at``: microseconds UTC.

        Raises:
            StoreError: the source has no rows yet.
        """
        self._adapters.write(self.channels.layout(adapter.source), adapter, at=at)

    def adapter(self, source: str, target: str) -> Adapter | None:
        """The adapter from snapshot ``source`` to ``target``; None if there is none.

        Raises:
            StoreError: it is damaged.
        """
        return self._adapters.read(source, target)

    def check_model(self, snapshot: "Snapshot") -> None:
        """Refuse a snapshot if the rows that are there under its name are not like its own.

        Raises:
            StoreError: other weights computed them, or they have another width, codec or representation.
        """
        engine.check_layout("online store", snapshot.name, self._layout(snapshot), self.engine.layout(snapshot.name))

    def publish(self, snapshot: str, *, expected: str | None, at: int, channel: str = "latest") -> None:
        """Keep all that was put of ``snapshot`` and let ``LINEAGE/channel`` name it; once is as good as twice.

        Args:
            snapshot: its name.
            expected: what the channel names now, as far as the caller knows; None for nothing.
            at: microseconds UTC, from when on readers are taken to have read it (:meth:`get_as_of`).
            channel: a name, ``latest`` or ``stable`` for example.

        Raises:
            ConflictError: the channel names something else: somebody else has published.
            StoreError: the snapshot has no rows, or a bad name.
        """
        self.channels.publish(snapshot, channel, expected=expected, at=at)
        self._followed.forget()

    def rollback(self, lineage: str, *, channel: str = "latest") -> str:
        """Let the channel name again what it named before it was moved last; returns that.

        Raises:
            StoreError: it was moved back already, or only once at all.
            ConflictError: somebody else moves it at the same time.
        """
        before = self.channels.rollback(lineage, channel)
        self._followed.forget()
        return before

    def current(self, lineage: str, *, channel: str = "latest") -> str | None:
        """Name of the snapshot that the channel names; None for nothing."""
        return self._followed.current(lineage, channel)

    def drop(self, models: Mapping[str, str]) -> list[str]:
        """Drop snapshots, given with the digests of their weights, but those that a pointer names or others computed.

        Returns:
            Those that were dropped; what had no rows is none of them.
        """
        dropped = self.channels.drop(models)
        self._followed.forget()
        return dropped

    def get(
        self,
        *,
        pin: Pin,
        surface: Integers,
        user_id: Integers,
        item_id: Integers,
        now: int,
        width: int,
        channel: str = "latest",
        adapt: bool = False,
    ) -> Lookup:
        """Vectors of N keys as of ``now``, by the ladder.

        A fixed pin reads its snapshot's vectors, one that follows reads those of the snapshot that ``channel`` names,
        or named at ``now``, if that is before it was published.

        Args:
            pin: of the expert that reads.
            surface, user_id, item_id: integers [N].
            now: microseconds UTC. What was computed later is not there.
            width: D, which the expert was built for.
            channel: that a following pin reads.
            adapt: let a fixed pin read what ``channel`` names, by the adapter to its own snapshot.

        Raises:
            RegistryError: the pin refuses the vectors' lineage, snapshot, width or codec.
            StoreError: another width or representation than asked for, a ``now`` that is no integer of 64 bits; or
                ``adapt``, and there is no adapter, or one with a greater error than is allowed.
            UnreachableError: the server does not answer, and ``unreachable`` is ``wait``.
        """
        key = own_keys.of_candidates(surface, user_id, item_id)
        return self._answer(pin, key, lambda: self._serving(pin, channel, now, adapt), now=now, width=width)

    def get_as_of(
        self,
        time: int,
        *,
        pin: Pin,
        surface: Integers,
        user_id: Integers,
        item_id: Integers,
        width: int,
        channel: str = "latest",
    ) -> Lookup:
        """What :meth:`get` would have answered at ``time`` (microseconds UTC), as far as it is still kept.

        A following pin reads the newest snapshot, up to the one that the channel names now, that had been published
        in it by then: a rollback is taken to have been there all along. Of each key's rows the engine keeps the latest
        few only.
        """
        key = own_keys.of_candidates(surface, user_id, item_id)

        def then() -> str | None:
            return pin.target if pin.version is not None else self.channels.then(pin.lineage, channel, time)

        return self._answer(pin, key, then, now=time, width=width)

    def close(self) -> None:
        """Let go of the engine."""
        self.engine.close()

    def _serving(self, pin: Pin, channel: str, now: int, adapt: bool) -> str | None:
        if pin.version is not None and not adapt:
            return pin.target
        return self._followed.at(pin.lineage, channel, now) or (pin.target if pin.version is not None else None)

    def _put(
        self, snapshot: "Snapshot", key: Integers, vector: NDArray[Any], computed_at: Integers, history_end: Integers
    ) -> Layout:
        computed_at, history_end = np.asarray(computed_at), np.asarray(history_end)
        name = self.config.representation
        admission.check_rows(
            snapshot, name, rows=len(key), vector=vector, computed_at=computed_at, history_end=history_end
        )
        layout = self._layout(snapshot)
        payload = codecs.named(layout.codec).encode(vector)
        self.engine.put(
            snapshot.name, layout, key=key, computed_at=computed_at, history_end=history_end, payload=payload
        )
        return layout

    def _layout(self, snapshot: "Snapshot") -> Layout:
        return admission.layout_of(snapshot, self.config.representation, codec=self.config.codec)

    def _answer(self, pin: Pin, key: Integers, snapshot: Callable[[], str | None], *, now: int, width: int) -> Lookup:
        """Look up, count, and step to the bottom of the ladder if the engine is out of reach."""
        now = admission.check_now(now)

        def ask() -> Lookup:
            lookup = self._look_up(pin, key, snapshot(), now=now, width=width)
            if lookup is None:  # believed to be there, perhaps, or dropped in between
                self._followed.forget()
                lookup = self._look_up(pin, key, snapshot(), now=now, width=width)
            return lookup or ladder.nothing(len(key), width)

        lookup = self._outage.ask(ask)
        if lookup is None:
            lookup = ladder.nothing(len(key), width)
            self.counters.unreachable += len(key)
        self.counters.add(lookup)
        return lookup

    def _look_up(self, pin: Pin, key: Integers, snapshot: str | None, *, now: int, width: int) -> Lookup | None:
        """None if there is nothing to read."""
        layout = self.engine.layout(snapshot) if snapshot else None
        if snapshot is None or layout is None:
            return None
        adapter = None
        if pin.version is not None and snapshot != pin.target and parse_snapshot_name(snapshot)[0] == pin.lineage:
            found = self.adapter(snapshot, pin.target)
            adapter = admission.check_adapter(pin, snapshot, found, most=self.config.adapter_error)
        admission.check_reader(pin, snapshot, layout, adapter, representation=self.config.representation, width=width)
        lookup = ladder.climb(
            self.engine, snapshot, layout, key, now=now, freshness=self.config, fallback=self._fallback
        )
        if adapter is None or lookup is None:
            return lookup
        return replace(lookup, vector=np.where(lookup.present[:, None], adapter.apply(lookup.vector), np.float32(0)))
