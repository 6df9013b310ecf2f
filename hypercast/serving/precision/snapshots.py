"""A run's snapshots made compact, by requests that they were trained on: all that is known when they begin to serve."""

from dataclasses import dataclass
from pathlib import Path

import torch

from foundation.inference import CandidateScorer
from foundation.model import FoundationModel
from hypercast.registry import Registry
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.stream import dataset_of
from hypercast.serving.precision.compact import CompactModel, Precision, compact
from hypercast.serving.precision.sample import recent_requests
from hypercast.snapshot import Snapshot
from streaming import config as configuration
from streaming.batch import RequestBatch

BATCH = 16
"""Requests that are scored at once."""


@dataclass(frozen=True, kw_only=True)
class CompactSnapshot:
    """A snapshot, and its model with other layers."""

    snapshot: Snapshot
    compacted: CompactModel[FoundationModel]


def compact_snapshot(run: Path, *, config: Precision, name: str | None, requests: int) -> CompactSnapshot:
    """Choose kernels for a foundation model as candidates are scored in serving.

    Args:
        run: a platform's folder.
        config: bounds and candidates.
        name: of the snapshot, such as ``FM@0007``; None for the newest.
        requests: how many of the last before the snapshot's watermark kernels are chosen by.

    Raises:
        ConfigError: ``run`` is no run.
        RegistryError: there is no such snapshot.
        DataError: no request was made before its watermark.
    """
    platform = configuration.load(run / "platform.yaml", PlatformConfig)
    workspace = platform.workspace(dataset_of(platform, run))
    registry = Registry(run / "registry")
    lineage = platform.foundation.publisher.lineage
    snapshot = registry.get(name) if name is not None else registry.latest(lineage, as_of=2**63 - 1)
    settings = platform.foundation.model
    model = settings.build(inputs=workspace.inputs, seed=0).eval()
    model.load_state_dict(snapshot.load())
    reader = workspace.reader({"all": (workspace.engagements, settings.history)})
    recent = recent_requests(workspace, before=snapshot.watermark, most=requests)
    sample = [(batch,) for batch in reader.batches(recent, size=BATCH)]
    return CompactSnapshot(snapshot=snapshot, compacted=compact(model, config, sample, logits=scored_logits))


def scored_logits(model: FoundationModel, batch: RequestBatch) -> torch.Tensor:
    """As candidates are scored in serving: over encoded histories."""
    return CandidateScorer.Config().build(model).score(batch).logit_CT
