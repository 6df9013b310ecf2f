"""A teacher that was trained once, published in other ways: older, in another codec, other vectors, or fewer examples.

What a snapshot says of a window depends on its weights alone, so that a study of publishing needs no second training.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from foundation.publish import Publisher
from hypercast.registry import Registry
from hypercast.runtime.config import PlatformConfig
from hypercast.store.tae_log import TaeLog
from streaming.dataset import Dataset
from streaming.workspace import Workspace


def publish_again(source: Path, config: PlatformConfig, *, run: Path) -> None:
    """Fill registry and TAE log of the new run folder ``run``, as ``config`` says, by the snapshots of run ``source``.

    ``source`` has kept all of them. Each keeps its watermark, so that nothing is scored by weights that have seen it
    (law L3).
    """
    workspace = Workspace(Dataset.open(config.dataset.path))
    how = config.publisher()
    registry, log = Registry(run / "registry"), config.log.build(run / "tae_log")
    model = config.foundation.model
    publisher = Publisher(config=how, model=model, workspace=workspace, registry=registry, log=log)
    for snapshot in Registry(source / "registry").list(how.lineage):
        said = {name: snapshot.manifest[name] for name in ("schema_hash", "metrics", "parent", "metadata")}
        registry.publish(
            lineage=how.lineage,
            tensors=snapshot.load(),
            watermark=snapshot.watermark,
            dims=publisher.dims(model),
            dtype=how.dtype,
            tasks=snapshot.tasks,
            **said,
        )
    for window in workspace.dataset.windows[: config.windows]:
        for delay in config.expert.delays:
            publisher.publish_delayed(window, delay)


def thin(source: TaeLog, target: TaeLog, registry: Registry, *, share: float, seed: int) -> None:
    """Copy a log with only a ``share`` of each segment's rows, drawn by ``seed``; the others read as MISS."""
    for segment in source.segments():
        table = segment.table
        drawn = np.random.default_rng([seed, segment.window]).random(len(table)) < share
        target.write(
            snapshot=registry.get(segment.snapshot),
            window=segment.window,
            table=table.filter(pa.array(drawn)),
            requests_digest=segment.requests_digest,
        )
