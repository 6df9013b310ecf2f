"""A platform that is fed by a stream: windows run as they are sealed, and a restart goes on where the weights are.

::

    RUN/stream/     streaming.sources.sealed: the data set that grows, records of its windows, late and quarantine logs
    RUN/audit/      hypercast.runtime.audit: what was trained on

A window is sealed, on disk, before any training on it begins, and the checkpoint that ends its training carries its
record: digests of its parts and where to go on reading in every partition. The broker is told of no position.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hypercast.lock import exclusive
from hypercast.runtime import expert_file
from hypercast.runtime.audit import Audit, AuditedWorkspace
from hypercast.runtime.config import PlatformConfig
from hypercast.training import checkpoint
from hypercast.training.loop import Keep
from streaming.dataset import Dataset, Window
from streaming.requests import Supervision
from streaming.sources.sealed import Sealed, SealedWindows, records
from streaming.sources.source import StreamConfig
from streaming.workspace import Workspace
from transfer import predictions

RECORD, AUDIT = "stream", "audit"
"""What a checkpoint of a streamed run carries beside the weights: the window's record, and the audit's chain."""


def folder_of(run: Path) -> Path:
    """The stream's folder in a run folder."""
    return run / "stream"


def data_of(run: Path) -> Path:
    """The data set of the windows sealed so far."""
    return folder_of(run) / "data"


def sealed_windows(config: StreamConfig, *, run: Path, catalogue: Dataset, most: int) -> Iterator[list[Window]]:
    """Windows as they are sealed; first those that were before a restart, together. Waits for the stream in between.

    Args:
        catalogue: the data set that is to come; its logs are not read.
        most: stop after so many windows.

    Raises:
        DataError: what was trained on is not what is sealed; see also :meth:`StreamSource.seal_next`.
    """
    folder = folder_of(run)
    with exclusive(folder):
        sealed = SealedWindows(folder=folder, catalogue=catalogue)
        for record in trained_on(run):
            sealed.require(record)
        if sealed.windows:
            yield sealed.windows[:most]
        if sealed.ended or len(sealed.windows) >= most < len(catalogue.windows):
            return
        with config.build(sealed) as source:
            while (window := source.seal_next()) is not None:
                yield [window]
                if len(sealed.windows) >= most < len(catalogue.windows):
                    break


def trained_on(run: Path) -> list[Sealed]:
    """Records of the windows that the run's trainers have last finished, oldest first."""
    root = run / "checkpoints"
    folders = [root / "foundation", *sorted((root / "experts").glob("*"))]
    states = [checkpoint.state(folder) for folder in folders if checkpoint.latest(folder) is not None]
    kept = [state["kept"][RECORD] for state in states if RECORD in state.get("kept", {})]
    found = {one.window: one for one in map(Sealed.from_json, kept)}
    return [found[window] for window in sorted(found)]


def dataset_of(config: PlatformConfig, run: Path) -> Dataset:
    """The data set's files, or the windows that are sealed by now."""
    return Dataset.open(config.dataset.path if config.stream is None else data_of(run))


def workspace_of(config: PlatformConfig, run: Path) -> Workspace:
    """What jobs read; of a stream, what they are handed to train on is remembered."""
    if config.stream is None:
        return config.workspace(dataset_of(config, run))
    return AuditedWorkspace(dataset_of(config, run), **config.workspace_settings())


def keeper(run: Path, name: str, workspace: Workspace, *, surface: int | None = None) -> Keep | None:
    """What the checkpoints of a trainer carry in a streamed run; None in a run from files.

    Args:
        name: of the trainer; surface: index of the only one that it trains on, None for all.
    """
    if not isinstance(workspace, AuditedWorkspace):
        return None
    audit = Audit(run=run, name=name, workspace=workspace, surface=surface)

    def keep(window: Window, before: Mapping[str, Any]) -> dict[str, Any]:
        sealed = next(sealed for sealed in records(folder_of(run)) if sealed.window == window.index)
        return {RECORD: sealed.to_json(), AUDIT: audit.record(window, before.get(AUDIT, {}))}

    return keep


def relabel(config: PlatformConfig, run: Path, *, since: Window) -> None:
    """Add to the predictions of windows before the last one what became known in ``since`` or later.

    Predictions, the run's own and those of experts that were spun up beside it, are written when their window is
    predicted, and hold the labels known then; what is reported counts those that came later as well.
    """
    workspace = config.workspace(Dataset.open(data_of(run)))
    folders = [run, *sorted((run / expert_file.FOLDER).glob("*/*"))]
    tasks = workspace.dataset.config.tasks
    delay = max(task.delay_seconds for task in tasks) * 1_000_000
    for window in workspace.dataset.windows:
        if window.end + delay <= since.start or not delay:
            continue
        requests = workspace.outcomes(workspace.requests(window.index))
        for index, surface in enumerate(workspace.dataset.config.surfaces):
            supervision = requests.on_surface(index).supervision
            for folder in folders:
                if predictions.path_of(folder, surface, window.index).is_file():
                    _relabel(folder, surface, window.index, supervision, tasks=[task.name for task in tasks])


def _relabel(folder: Path, surface: str, window: int, supervision: Supervision, *, tasks: Sequence[str]) -> None:
    """Give one table of predictions the labels that are known of its rows now."""
    table = predictions.read(folder, surface=surface, window=window)
    known_CT = supervision.known_time < supervision.NEVER
    relabelled = table
    for place, task in enumerate(tasks):
        column = table.schema.get_field_index(f"label_{task}")
        values = pa.array(supervision.label[:, place].astype(np.float32), mask=~known_CT[:, place])
        relabelled = relabelled.set_column(column, table.schema.field(column), values)
    if not relabelled.equals(table):
        predictions.write(folder, surface=surface, window=window, table=relabelled)
