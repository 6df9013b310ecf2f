"""Publishing: a snapshot scores a window's requests before anything has trained on them."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
import torch

from foundation.inference import CandidateScorer
from foundation.model import FoundationModel, FoundationOutput
from hypercast import pins
from hypercast.codec import rows
from hypercast.registry import Registry, Snapshot
from hypercast.store.adapter import Adapter
from hypercast.store.segment import Segment
from hypercast.store.tae_log import TaeLog
from streaming.batch import RequestBatch
from streaming.config import Config as BaseConfig
from streaming.dataset import Window
from streaming.inputs import Inputs
from streaming.requests import Requests
from streaming.workspace import Workspace
from transfer.comparison import Comparison
from transfer.drift import DriftMeter

Representation = Literal["penultimate", "sequence", "user", "tower_input"]
REPRESENTATIONS: tuple[Representation, ...] = ("penultimate", "sequence", "user", "tower_input")
"""What can be published: see :class:`foundation.model.FoundationOutput`, and :meth:`FoundationModel.user`, whose vector
is repeated at each candidate of its request.
"""


class Publisher:
    """Writes the TAE log from snapshots in the registry; knows nothing of the model that is training."""

    class Config(BaseConfig):
        """Attributes: ``lineage``, the name snapshots are published under; ``dtype``, codec of the vectors in the log
        (:mod:`hypercast.codec.rows`); ``representations``, which vectors those are;
        ``batch_size``, requests encoded at once; ``scorer``, how many of their candidates at a time; ``keep``, how many
        of the newest snapshots stay on disk (at least 2: a run that was killed right after a release goes back to the
        snapshot before it); ``drift``, how snapshots are compared.
        """

        lineage: str = "FM"
        dtype: rows.Name = "float16"
        representations: list[Representation] = ["penultimate"]
        batch_size: int = pydantic.Field(default=64, ge=1)
        scorer: CandidateScorer.Config = CandidateScorer.Config()
        keep: int = pydantic.Field(default=4, ge=2)
        drift: DriftMeter.Config = DriftMeter.Config()

        @pydantic.field_validator("representations")
        @classmethod
        def _with_penultimate(cls, names: list[Representation]) -> list[Representation]:
            if "penultimate" not in names or len(set(names)) < len(names):
                raise ValueError("penultimate is always published, and each once. Example: [penultimate, user]")
            return names

    def __init__(
        self,
        *,
        config: Config,
        model: FoundationModel.Config,
        workspace: Workspace,
        registry: Registry,
        log: TaeLog,
        probe: Path | None = None,
    ) -> None:
        """``probe``: folder of the probe and of adapters; without it snapshots are not compared."""
        self.config = config
        self.workspace = workspace
        self.registry = registry
        self.log = log
        self.schema_hash = schema_hash(model, workspace.inputs)
        self.model = model.build(inputs=workspace.inputs, seed=0).eval()
        self.scorer = config.scorer.build(self.model)
        self.reader = workspace.reader({"all": (workspace.engagements, model.history)})
        self.released: str | None = None
        """Name of the snapshot that the training which is published here has released last; None before the first."""
        self._loaded: str | None = None
        self.comparison = (
            Comparison(config=config.drift, folder=probe, registry=registry, workspace=workspace, score=self._embed)
            if probe is not None
            else None
        )

    def release(self, model: FoundationModel, *, watermark: int, metrics: dict[str, float]) -> Snapshot:
        """Publish the weights of ``model`` as the snapshot that follows :attr:`released`; the same again returns it.

        Args:
            model: the one that is training.
            watermark: exclusive upper bound of every event time and label time that it has consumed (law L3).
            metrics: kept in the manifest.

        Raises:
            ConflictError: somebody else has published in between: of two trainings of one lineage one goes on.
            RegistryError: see :meth:`hypercast.registry.Registry.publish`.
        """
        snapshot = self.registry.publish(
            lineage=self.config.lineage,
            tensors=dict(model.state_dict()),
            watermark=watermark,
            schema_hash=self.schema_hash,
            dims=self.dims(model.config),
            dtype=self.config.dtype,
            tasks=self.workspace.inputs.tasks,
            metrics=metrics,
            parent=self.released,
            only_after_parent=True,
            metadata={"model": model.config.model_dump(mode="json")},
        )
        self.released = snapshot.name
        self.registry.prune(self.config.lineage, keep=self.config.keep)
        return snapshot

    @torch.inference_mode()
    def publish(self, window: Window, snapshot: Snapshot | None = None) -> Segment:
        """Score every candidate of ``window`` by ``snapshot``, or by the newest that has seen nothing of the window.

        The representations are those that the snapshot declares, whatever this publisher would let the next one
        declare. What it has published of the window already is returned as it is.

        Raises:
            StoreError: a snapshot of this name, but of other weights, has published the window.
        """
        snapshot = snapshot or self.registry.latest(self.config.lineage, as_of=window.start)
        digest = self.workspace.dataset.requests_digest(window.index)
        existing = self.log.find(snapshot.name, window.index)
        if existing is not None:
            existing.check_made_by(snapshot)
            if existing.requests_digest == digest:
                return existing
        self._load(snapshot)
        requests = self.workspace.requests(window.index)
        inputs = self.workspace.inputs
        dims: dict[str, int] = {name: snapshot.dims[name] for name in REPRESENTATIONS if name in snapshot.dims}
        parts = [
            self._said(batch, self.scorer.score(batch), dims)
            for batch in self.reader.batches(requests, size=self.config.batch_size)
        ]
        widths = {**dims, "logit": len(inputs.tasks)}
        said = {
            name: torch.cat([part[name] for part in parts]) if parts else torch.zeros(0, width)
            for name, width in widths.items()
        }
        logit_CT = said["logit"]
        table = self.log.rows(
            snapshot=snapshot,
            request_id=np.repeat(requests.request_id, np.diff(requests.offsets)),
            candidate_id=requests.candidate_id,
            item_id=requests.item_id,
            time=np.repeat(requests.time, np.diff(requests.offsets)),
            representations={name: said[name] for name in dims},
            teacher_logits={task: logit_CT[:, index] for index, task in enumerate(inputs.tasks)},
        )
        return self.log.write(snapshot=snapshot, window=window.index, table=table, requests_digest=digest)

    def publish_delayed(self, window: Window, delay: int) -> Segment:
        """Score ``window`` by the newest snapshot that had seen nothing of the ``delay`` windows before it.

        At first, by the first one. Each of :attr:`experts.steps.SurfaceLearner.Config.delays` is one: what experts may
        read vectors of, and what they may read labels of.

        Raises:
            RegistryError: no snapshot is as old as that any more.
        """
        dataset = self.workspace.dataset
        before = dataset.window(max(window.index - delay, dataset.windows[0].index))
        return self.publish(window, self.registry.latest(self.config.lineage, as_of=before.start))

    def pinned(self) -> list[Snapshot]:
        """Snapshots that an expert is pinned to by version."""
        held = [self.registry.pinned(expert) for expert in pins.experts(self.registry.root)]
        targets = {pin.target for pin in held if pin.version is not None and pin.lineage == self.config.lineage}
        return [self.registry.get(target) for target in sorted(targets)]

    def pinned_for(self, window: Window) -> list[Snapshot]:
        """Snapshots that an expert is pinned to by version and that have seen nothing of ``window``."""
        return [snapshot for snapshot in self.pinned() if snapshot.watermark <= window.start]

    def compare(self, snapshot: Snapshot) -> dict[str, float]:
        """How far embeddings have moved since the snapshot before; see :meth:`transfer.comparison.Comparison.compare`.

        Empty without a folder for it.
        """
        return self.comparison.compare(snapshot, pinned=self.pinned()) if self.comparison is not None else {}

    def adapters(self, snapshot: str) -> list[Adapter]:
        """Those from the snapshot of that name to others, fitted by :meth:`compare`."""
        return self.comparison.adapters(snapshot) if self.comparison is not None else []

    def dims(self, model: FoundationModel.Config) -> dict[str, int]:
        """Widths of what is published, by name."""
        widths = {"penultimate": model.representation, "sequence": model.width, "user": model.width}
        widths["tower_input"] = model.tower_shape(self.workspace.inputs).inputs
        return {name: widths[name] for name in self.config.representations}

    def _said(
        self, batch: RequestBatch, output: FoundationOutput, representations: Collection[str]
    ) -> dict[str, torch.Tensor]:
        """What is published of a batch's candidates: logits, and each representation."""
        said = {"logit": output.logit_CT, "penultimate": output.penultimate_CR}
        if "sequence" in representations:
            said["sequence"] = output.sequence_CD
        if "tower_input" in representations:
            said["tower_input"] = output.tower_input_CI
        if "user" in representations:
            said["user"] = self.model.user(batch)[batch.owner_C]
        return said

    @torch.inference_mode()
    def _embed(self, snapshot: Snapshot, requests: Requests) -> np.ndarray:
        self._load(snapshot)
        batches = self.reader.batches(requests, size=self.config.batch_size)
        return torch.cat([self.scorer.score(batch).penultimate_CR for batch in batches]).float().numpy()

    def _load(self, snapshot: Snapshot) -> None:
        if snapshot.name != self._loaded:
            self.model.load_state_dict(snapshot.load())
            self._loaded = snapshot.name


def schema_hash(model: FoundationModel.Config, inputs: Inputs) -> str:
    """Equal for snapshots whose weights and vectors are interchangeable in shape and meaning."""
    names = {name: value for name, value in vars(inputs).items() if name != "labels"}
    described = {"model": model.model_dump(mode="json"), "inputs": names}
    if any(head.correction for head in inputs.plan.heads):
        described["corrections"] = {head.name: head.correction for head in inputs.plan.heads}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
