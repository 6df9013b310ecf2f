"""Feeds the online store from the TAE log: what experts train on is what readers get.

Rows go in by snapshot and window, whole windows only: a mark says that one is complete, so that a feed that was killed,
or could not reach its server, catches up from the log. Readers move on when a window's rows are all there.
"""

import logging
from pathlib import Path

import numpy as np

from foundation.publish import Publisher
from hypercast.errors import StoreError
from hypercast.pins import Pin, parse_snapshot_name
from hypercast.snapshot import Snapshot
from hypercast.store.engine import UnreachableError
from hypercast.store.online import OnlineStore
from streaming.dataset import Window
from streaming.workspace import Workspace

_logger = logging.getLogger(__name__)


class OnlineFeed:
    """Puts published windows into an online store. Once is as good as twice."""

    def __init__(self, *, config: OnlineStore.Config, folder: Path, publisher: Publisher, workspace: Workspace) -> None:
        self.store = config.build(folder)
        self.publisher = publisher
        self.workspace = workspace

    def feed(self, window: Window) -> None:
        """Put what the log has up to ``window`` of every snapshot in the registry, and point readers to the newest.

        Readers are only ever pointed to a version above all that they were pointed to: a rollback holds until the next.
        Snapshots that this run has published, and that the registry has no more, are dropped. With ``unreachable:
        ladder`` a server that does not answer is left for the next window; with ``wait`` the run ends, and a rerun goes
        on here.

        Raises:
            UnreachableError: see above.
            StoreError: another run feeds the store with snapshots of this lineage, or the log and the registry are not
                of one run.
        """
        try:
            self._feed(window)
        except UnreachableError as error:
            if self.store.config.unreachable == "wait":
                raise
            _logger.warning("window %d is not in the online store yet, only in the log: %s", window.index, error)

    def _feed(self, window: Window) -> None:
        lineage = self.publisher.config.lineage
        listed = {snapshot.name: snapshot for snapshot in self.publisher.registry.list(lineage)}
        segments = [one for one in self.publisher.log.segments() if parse_snapshot_name(one.snapshot)[0] == lineage]
        models = {segment.snapshot: segment.facts.weights_digest for segment in segments}
        models |= {name: snapshot.manifest["weights_digest"] for name, snapshot in listed.items()}
        current = self.store.channels.current(lineage, "latest")
        if current is not None:
            self._check_own(current, models)
        newest: tuple[str, Window] | None = None
        for segment in segments:
            if segment.snapshot in listed and segment.window <= window.index and segment.facts.rows:
                segment.check_made_by(listed[segment.snapshot])
                of = self.workspace.dataset.window(segment.window)
                if self._put(listed[segment.snapshot], of):
                    newest = segment.snapshot, of
        reached = self.store.channels.reached(lineage, "latest")
        if newest is not None and (reached is None or _version(reached) < _version(newest[0])):
            self.store.publish(newest[0], expected=current, at=newest[1].end)
        self.store.drop({name: model for name, model in models.items() if name not in listed})

    def _check_own(self, current: str, models: dict[str, str]) -> None:
        """Refuse to feed a store whose readers follow another run; ``models``: this run's, weights by snapshot."""
        layout = self.store.engine.layout(current)
        model = models.get(current)
        newer = not models or _version(current) > max(map(_version, models))
        if layout is not None and (newer if model is None else layout.model != model):
            raise StoreError(
                f"online store: readers follow {current}, which this run has not published: another run of the lineage "
                "feeds the store. Give each run its own folder or prefix, or drop the other's snapshots."
            )

    def _put(self, snapshot: Snapshot, window: Window) -> bool:
        """One segment's rows, its users' aggregates and the snapshot's adapters, unless they are there.

        Returns:
            Whether there is anything to read; not if the log's own time to live has passed for all rows.
        """
        self.store.check_model(snapshot)
        done = f"window {window.index}"
        if self.store.channels.marked(snapshot.name, done) is not None:
            return True
        requests = self.workspace.requests(window.index)
        time, user_id = requests.time[requests.owner], requests.user_id[requests.owner]
        name = self.store.config.representation
        read = self.publisher.log.read(
            window=window.index,
            pin=Pin(expert="online", lineage=snapshot.lineage, version=snapshot.version),
            request_id=requests.request_id[requests.owner],
            candidate_id=requests.candidate_id,
            time=time,
            width=snapshot.dims[name],
            tasks=[],
            representation=name,
            requests_digest=self.workspace.dataset.requests_digest(window.index),
        )
        known = read.present  # a pinned snapshot's rows may be too old to be of use
        if not known.any():
            return False
        time, user_id, vector = time[known], user_id[known], read.vector[known]
        self.store.put(
            snapshot=snapshot,
            surface=requests.surface[known],
            user_id=user_id,
            item_id=requests.item_id[known],
            vector=vector,
            computed_at=time,
            history_end=time,
        )
        users, last, mean = _aggregate(user_id, time, vector)
        self.store.put_users(snapshot=snapshot, user_id=users, vector=mean, computed_at=last, history_end=last)
        for adapter in self.publisher.adapters(snapshot.name):
            self.store.put_adapter(adapter, at=snapshot.watermark)
        self.store.engine.commit(snapshot.name)
        # Last, and after what it speaks of is kept: a feed that is killed before this puts the window once more.
        self.store.channels.mark(snapshot.name, done, at=window.end)
        self.store.engine.commit(snapshot.name)
        return True


def _aggregate(user_id: np.ndarray, time: np.ndarray, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users int64 [U], the time of each one's last row int64 [U], and the mean of their vectors float32 [U, D].

    Args:
        user_id, time: int64 [N].
        vector: float32 [N, D].
    """
    users, place, rows = np.unique(user_id, return_inverse=True, return_counts=True)
    total, last = np.zeros((len(users), vector.shape[1])), np.zeros(len(users), np.int64)
    np.add.at(total, place, vector)
    np.maximum.at(last, place, time)
    return users, last, (total / rows[:, None]).astype(np.float32)


def _version(snapshot: str) -> int:
    return parse_snapshot_name(snapshot)[1]
