"""What answers at one moment: one set of snapshots and experts that fit each other, and how the next one is found.

Of each surface serves what its alias names (``hypercast expert promote``), or else the newest export of the run with
the arm that is asked for. The snapshot whose vectors it reads is the one that it is pinned to, or the newest of its
lineage. A set is loaded whole, beside the one that answers, or not at all.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hypercast import pins
from hypercast.errors import RegistryError
from hypercast.pins import Pin, parse_snapshot_name
from hypercast.registry import Registry
from hypercast.runtime import expert_file, promotion
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.trainings import Version
from hypercast.serving.config import ServingConfig
from hypercast.serving.features.rates import RateTables
from hypercast.serving.models.expert import ExpertScorer
from hypercast.serving.models.foundation import FoundationScorer
from hypercast.snapshot import Snapshot
from streaming.workspace import Workspace
from transfer.gain import CONTROL

ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What is to serve one surface.

    Attributes:
        folder: of the export, without the arm.
        arm: that serves.
        pin: that says whose vectors it reads.
        snapshot: whose those are; None where the lineage has published none.
        window: last window that it has learned.
        training: what the alias names, ``NAME@NNNN``; None without one.
    """

    folder: Path
    arm: str
    pin: Pin
    snapshot: Snapshot | None
    window: int
    training: str | None

    def version(self) -> dict[str, Any]:
        """To be reported."""
        return {"arm": self.arm, "window": self.window, "training": self.training, "pin": self.pin.target}


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """One consistent set; nothing in it ever changes.

    Attributes:
        version: differs whenever anything in it does.
        foundation: the newest snapshot's scorer; None where the run has published none.
        pinned: scorers of other snapshots, by surface: of experts that are pinned to one, or to another lineage.
        experts: by surface.
        fallback: by surface, the arm that reads nothing of the foundation model, where it was exported.
        versions: what answers, to be reported; JSON-able.
    """

    version: str
    foundation: FoundationScorer | None
    pinned: Mapping[str, FoundationScorer]
    experts: Mapping[str, ExpertScorer]
    fallback: Mapping[str, ExpertScorer]
    versions: Mapping[str, Any]

    @property
    def snapshot(self) -> Snapshot | None:
        """The newest snapshot."""
        return self.foundation.snapshot if self.foundation is not None else None

    @property
    def watermark(self) -> int | None:
        """Up to when the newest snapshot and the experts have learned: earlier requests they must not answer (law L3).

        Microseconds.
        """
        learned = [expert.as_of for expert in self.experts.values()]
        learned += [self.foundation.snapshot.watermark] if self.foundation is not None else []
        return max(learned, default=None)

    @property
    def kept_bytes(self) -> int:
        """Of encoded histories."""
        scorers = {scorer for scorer in (self.foundation, *self.pinned.values()) if scorer is not None}
        return sum(scorer.kept.nbytes for scorer in scorers if scorer.kept is not None)

    def logits(self, vector_CR: np.ndarray) -> np.ndarray:
        """The newest snapshot's logits of ``penultimate`` vectors: :meth:`FoundationScorer.logits`."""
        if self.foundation is None:
            raise RegistryError(f"bundle {self.version}: there is no snapshot, and so nobody's logits.")
        return self.foundation.logits(vector_CR)

    def foundation_of(self, surface: str) -> FoundationScorer | None:
        """The scorer whose vectors the surface's expert reads."""
        return self.pinned.get(surface, self.foundation)


class BundleLoader:
    """Finds and loads what a run folder has to serve.

    What is in the set that was loaded last is not loaded again. For one thread at a time.

    Args:
        config: the platform's; ``run`` is the folder.
        workspace: as the run's jobs have it (:func:`hypercast.runtime.stream.workspace_of`).
        arm: that serves surfaces without an alias; None for the first of :data:`hypercast.runtime.promotion.PREFERRED`.
    """

    def __init__(self, *, config: PlatformConfig, workspace: Workspace, arm: str | None = None) -> None:
        self.config = config
        self.workspace = workspace
        self.arm = arm
        self.registry = Registry(config.run / "registry")
        self._lineage = config.foundation.publisher.lineage
        self._loaded: dict[tuple[Any, ...], Any] = {}
        self._tables = RateTables(workspace)

    def newest(self) -> str:
        """The version that :meth:`load` would give now; reads a few small files.

        Raises:
            RegistryError: see :meth:`load`.
        """
        return self._plan()[0]

    def load(self) -> Bundle:
        """The newest set, loaded.

        Raises:
            RegistryError: no surface has an export, an expert's pin or widths refuse the snapshot, something is damaged
                or was trained on another data set. What was loaded before is not touched.
        """
        for attempt in range(ATTEMPTS):
            version, newest, chosen = self._plan()
            try:
                return self._load(version, newest, chosen)
            except RegistryError:
                # What was pruned or rolled back while it was being read is not what would be found now.
                if attempt + 1 == ATTEMPTS or self._plan()[0] == version:
                    raise
        raise AssertionError("unreachable")

    def _plan(self) -> tuple[str, Snapshot | None, dict[str, Chosen]]:
        newest = self._newest(self._lineage)
        found = {surface: self._choose(surface) for surface in self.workspace.inputs.surfaces}
        chosen = {surface: choice for surface, choice in found.items() if choice is not None}
        if not chosen:
            raise RegistryError(
                f"{self.config.run}: no expert of any surface was exported there. Run the platform to its end, or "
                "train and promote one: hypercast expert train NAME, hypercast expert promote NAME."
            )
        said: list[Any] = [_weights(newest)]
        said += [
            (surface, str(each.folder), each.version(), _weights(each.snapshot)) for surface, each in chosen.items()
        ]
        digest = hashlib.sha256(repr(said).encode()).hexdigest()[:12]
        return f"{newest.name if newest is not None else 'none'}+{digest}", newest, chosen

    def _choose(self, surface: str) -> Chosen | None:
        run = self.config.run
        alias = promotion.serving(run, surface)
        if alias is not None:
            name, number = parse_snapshot_name(alias)
            folder = expert_file.path_of(run, name).with_suffix("") / f"{number:04d}" / "model"
            trained = Version(name=name, number=number, path=folder.parent).training
            return self._chosen(name, folder=folder, arm=trained.expert.mode, window=trained.last, training=alias)
        own = promotion.own(run, surface, arm=self.arm)
        if own is None:
            return None
        return self._chosen(surface, folder=own.folder, arm=own.arm, window=own.window, training=None)

    def _chosen(self, expert: str, *, folder: Path, arm: str, window: int, training: str | None) -> Chosen:
        pin = Pin(expert=expert, lineage=self._lineage)
        if expert in pins.experts(self.registry.root):
            pin = self.registry.pinned(expert)
        snapshot = self._newest(pin.lineage) if pin.version is None else self.registry.get(pin.target)
        return Chosen(folder=folder, arm=arm, pin=pin, snapshot=snapshot, window=window, training=training)

    def _newest(self, lineage: str) -> Snapshot | None:
        return self.registry.current(lineage) if self.registry.channels(lineage) else None

    def _load(self, version: str, newest: Snapshot | None, chosen: Mapping[str, Chosen]) -> Bundle:
        before, self._loaded = self._loaded, {}
        try:
            foundation = self._foundation(newest, before) if newest is not None else None
            pinned, experts, fallback = {}, {}, {}
            for surface, choice in chosen.items():
                if choice.snapshot is not None and choice.snapshot != newest:
                    pinned[surface] = self._foundation(choice.snapshot, before)
                experts[surface] = self._expert(surface, choice, choice.arm, before)
                if choice.arm == CONTROL:
                    fallback[surface] = experts[surface]
                elif (choice.folder / CONTROL).is_dir():
                    fallback[surface] = self._expert(surface, choice, CONTROL, before)
        except BaseException:
            self._loaded = before
            raise
        return Bundle(
            version=version,
            foundation=foundation,
            pinned=pinned,
            experts=experts,
            fallback=fallback,
            versions={
                "bundle": version,
                "snapshot": newest.name if newest is not None else None,
                "experts": {surface: choice.version() for surface, choice in chosen.items()},
            },
        )

    def _foundation(self, snapshot: Snapshot, before: Mapping[tuple[Any, ...], Any]) -> FoundationScorer:
        key = (snapshot.name, snapshot.manifest["weights_digest"])
        found = self._loaded.get(key) or before.get(key)
        if found is None:
            found = FoundationScorer(
                snapshot=snapshot,
                workspace=self.workspace,
                ages=self.config.log,
                scorer=self.config.foundation.publisher.scorer,
                keep_bytes=(self.config.serving or ServingConfig()).live.user_cache_mib << 20,
            )
        self._loaded[key] = found
        return found

    def _expert(
        self,
        surface: str,
        choice: Chosen,
        arm: str,
        before: Mapping[tuple[Any, ...], Any],
    ) -> ExpertScorer:
        snapshot = choice.snapshot
        dims = snapshot.dims if snapshot is not None else {}
        key = (surface, choice.folder, arm, tuple(sorted(dims.items())))
        found = self._loaded.get(key) or before.get(key)
        if found is None:
            found = ExpertScorer(
                folder=choice.folder / arm,
                surface=surface,
                workspace=self.workspace,
                dims=dims,
                as_of=self.workspace.dataset.window(choice.window).end,
                tables=self._tables,
            )
        self._loaded[key] = found
        if snapshot is not None and found.representation is not None:
            name = found.representation
            choice.pin.check(snapshot=snapshot.name, representation=name, width=dims[name], dtype=snapshot.dtype)
        return found


def _weights(snapshot: Snapshot | None) -> str | None:
    return snapshot.manifest["weights_digest"] if snapshot is not None else None
