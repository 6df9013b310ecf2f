"""What has changed from one snapshot to the next: drift on the probe, and the adapters that undo it.

::

    FOLDER/probe.json                          what is scored (transfer.probe)
    FOLDER/FM@0008-to-FM@0007.adapter          lets experts of the one read the other (hypercast.store.adapter)

Shape legend: N candidates of the probe, R width of the embeddings.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hypercast.registry import Registry
from hypercast.snapshot import Snapshot
from hypercast.store import adapter
from hypercast.store.adapter import Adapter
from streaming import files
from streaming.requests import Requests
from streaming.workspace import Workspace
from transfer import probe as probes
from transfer.drift import DriftMeter, median_distance
from transfer.probe import Probe

Vectors = NDArray[np.float32]
Score = Callable[[Snapshot, Requests], Vectors]


class Comparison:
    """Compares snapshots of one registry; what it says follows from snapshots and data alone, whenever it is asked.

    Args:
        config: of the probe and of the alarm.
        folder: of the probe and the adapters.
        score: the embeddings float32 [C, R] that a snapshot gives the candidates of some requests.
    """

    def __init__(
        self, *, config: DriftMeter.Config, folder: Path, registry: Registry, workspace: Workspace, score: Score
    ) -> None:
        self.config = config
        self.folder = folder
        self.registry = registry
        self.workspace = workspace
        self.score = score
        self.meter = config.build()
        self._vectors: dict[str, Vectors] = {}

    def compare(self, snapshot: Snapshot, *, pinned: list[Snapshot]) -> dict[str, float]:
        """Drift since the snapshot before, and adapters from ``snapshot`` to that one and to those ``pinned``.

        Only snapshots of the same schema that had seen the probe's window take part: how they embed what they have
        not learned yet is no measure.

        Returns:
            ``drift/centroid``, ``drift/mmd``, ``drift/mmd_null``, ``drift/alarm`` (0 or 1), ``adapter/relative_error``
            and ``adapter/r2``, as far as they are defined; empty if there is nothing to compare with.
        """
        probe = Probe.read(self.folder) or self._draw(snapshot)
        if probe is None:
            return {}
        listed = self.registry.list(snapshot.lineage)
        earlier = [one for one in listed if one.watermark < snapshot.watermark]
        metrics: dict[str, float] = {}
        for target in {one.name: one for one in [*pinned, *earlier[-1:]]}.values():
            if self._comparable(snapshot, target, probe):
                before_NR, after_NR = self._embed(probe, target), self._embed(probe, snapshot)
                fitted = self._fit(snapshot, target, before_NR, after_NR, probe)
                if target.name == earlier[-1].name:
                    drift = self.meter.measure(before_NR, after_NR, group_N=probe.request_id, bandwidth=probe.bandwidth)
                    metrics = {f"drift/{name}": float(value) for name, value in vars(drift).items()}
                    metrics |= {"adapter/relative_error": fitted.relative_error, "adapter/r2": fitted.r2}
        self._forget({one.name for one in listed} | {snapshot.name})
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def adapters(self, snapshot: str) -> list[Adapter]:
        """Those from the snapshot of that name to others.

        Raises:
            StoreError: a file is damaged.
        """
        paths = sorted(self.folder.glob(f"{snapshot}-to-*.adapter"))
        return [Adapter.from_bytes(path.read_bytes(), where=str(path)) for path in paths]

    def _comparable(self, snapshot: Snapshot, target: Snapshot, probe: Probe) -> bool:
        same = target.manifest["schema_hash"] == snapshot.manifest["schema_hash"]
        return same and self.workspace.dataset.window(probe.window).end <= target.watermark < snapshot.watermark

    def _fit(
        self, snapshot: Snapshot, target: Snapshot, before_NR: Vectors, after_NR: Vectors, probe: Probe
    ) -> Adapter:
        fitted = adapter.fit(
            source=snapshot.name,
            target=target.name,
            source_ND=after_NR,
            target_NE=before_NR,
            group_N=probe.request_id,
        )
        files.write_bytes(self.folder / f"{snapshot.name}-to-{target.name}.adapter", fitted.to_bytes())
        return fitted

    def _draw(self, snapshot: Snapshot) -> Probe | None:
        """Draw the probe from the last window that ``snapshot`` has seen; None if that has no two requests."""
        seen = [window for window in self.workspace.dataset.windows if window.end <= snapshot.watermark]
        if not seen:
            return None
        probe = probes.draw(
            self.workspace.requests(seen[-1].index),
            window=seen[-1].index,
            size=self.config.requests,
            candidates=self.config.candidates,
            seed=self.config.seed,
        )
        if len(np.unique(probe.request_id)) < 2:
            return None
        probe = replace(probe, bandwidth=median_distance(self._embed(probe, snapshot)))
        probe.write(self.folder)
        return probe

    def _embed(self, probe: Probe, snapshot: Snapshot) -> Vectors:
        if snapshot.name not in self._vectors:
            requests = probe.requests_of(self.workspace.requests(probe.window))
            self._vectors[snapshot.name] = self.score(snapshot, requests)[probe.rows(requests)]
        return self._vectors[snapshot.name]

    def _forget(self, kept_names: set[str]) -> None:
        """Vectors and adapters of snapshots that are gone."""
        self._vectors = {name: vector for name, vector in self._vectors.items() if name in kept_names}
        for path in self.folder.glob("*.adapter"):
            if path.name.partition("-to-")[0] not in kept_names:
                path.unlink()
