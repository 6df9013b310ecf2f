"""Was every event trained on once and only once? Asked of the files that a streamed run leaves."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hypercast.runtime import audit
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.stream import AUDIT, RECORD, data_of, folder_of
from hypercast.training import checkpoint
from streaming import config as configuration
from streaming.dataset import Dataset
from streaming.errors import DataError
from streaming.files import sha256_of
from streaming.sources import ledger
from streaming.sources.sealed import LOGS, records
from streaming.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class TrainerCheck:
    """One trainer's ids against the sealed windows up to the last that it has finished.

    Attributes:
        windows: how many it has finished.
        requests, labels: it was trained on; a request once for every window in which some label of it became known.
        missing, repeated: labels that became known in those windows and were not trained on, or more than once.
        chained: whether the files are those that its weights came of.
    """

    windows: int
    requests: int
    labels: int
    missing: int
    repeated: int
    chained: bool


def check(run: Path) -> dict[str, Any]:
    """Compare what the trainers of ``run`` were given with what the stream has brought.

    Returns:
        ``exact``, whether all is well, with numbers: windows sealed, their rows, what was late or put into quarantine,
        and a :class:`TrainerCheck` a trainer, by name.

    Raises:
        DataError: it is no run of a stream, or a sealed part is not what was sealed.
    """
    folder = folder_of(run)
    sealed = records(folder)
    if not sealed:
        raise DataError(f"{folder}: no window was sealed here. Give the folder of a run whose platform has `stream:`.")
    dataset = Dataset.open(data_of(run))
    workspace = configuration.load(run / "platform.yaml", PlatformConfig).workspace(dataset)
    for one in sealed:
        parts = (dataset.request_file(one.window), dataset.engagement_file(one.window), dataset.label_file(one.window))
        for log, path in zip(LOGS, parts, strict=True):
            if sha256_of(path) != one.digests[log]:
                raise DataError(f"{path}: not what was sealed (its SHA-256 differs).")
    trainers = {name: _trainer(run, name, surface, workspace) for name, surface in _trainers(run, dataset).items()}
    lines = {log: ledger.read(folder, log) for log in ledger.LOGS}
    return {
        "exact": all(each.chained and not each.missing and not each.repeated for each in trainers.values()),
        "windows": len(sealed),
        **{log: sum(one.rows[log] for one in sealed) for log in LOGS},
        "copies": sum(one.copies for one in sealed),
        **{log: len(found) for log, found in lines.items()},
        "trainers": {name: asdict(each) for name, each in trainers.items()},
    }


def _trainers(run: Path, dataset: Dataset) -> dict[str, int | None]:
    """Names of the trainers that have finished a window, and the surfaces that they train on."""
    named = {"foundation": None, **{surface: index for index, surface in enumerate(dataset.config.surfaces)}}
    return {name: surface for name, surface in named.items() if checkpoint.latest(_checkpoints(run, name)) is not None}


def _trainer(run: Path, name: str, surface: int | None, workspace: Workspace) -> TrainerCheck:
    kept = checkpoint.state(_checkpoints(run, name))["kept"]
    last = int(kept[RECORD]["window"])
    windows = [window for window in workspace.dataset.windows if window.index <= last]
    chain, missing, repeated, requests, labels = "", 0, 0, 0, 0
    for window in windows:
        table = audit.read(run, name, window.index)
        chain = audit.chained(chain, window.index, table)
        requests, labels = requests + table.num_rows, labels + int(table["labels"].to_numpy().sum())
        wanted_id, wanted = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for _, everything in workspace.became_known_in(window):
            found = everything if surface is None else everything.on_surface(surface)
            known = found.supervision.known(since=window.start, before=window.end).sum(axis=1)
            wanted_id.append(found.request_id)
            wanted.append(np.bincount(found.owner, weights=known, minlength=len(found)).astype(np.int64))
        ids = np.unique(np.concatenate([table["request_id"].to_numpy(), *wanted_id]))
        surplus = np.zeros(len(ids), np.int64)
        np.add.at(surplus, np.searchsorted(ids, table["request_id"].to_numpy()), table["labels"].to_numpy())
        np.subtract.at(surplus, np.searchsorted(ids, np.concatenate(wanted_id)), np.concatenate(wanted))
        missing, repeated = missing - int(surplus[surplus < 0].sum()), repeated + int(surplus[surplus > 0].sum())
    return TrainerCheck(
        windows=len(windows),
        requests=requests,
        labels=labels,
        missing=missing,
        repeated=repeated,
        chained=chain == kept[AUDIT]["digest"],
    )


def _checkpoints(run: Path, name: str) -> Path:
    root = run / "checkpoints"
    return root / name if name == "foundation" else root / "experts" / name
