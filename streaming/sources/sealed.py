"""Windows that are complete: a data set on disk that grows by a window at a time and never changes otherwise.

::

    FOLDER/
      data/                      a data set of the windows sealed so far, as streaming.schema has it, and
        labels/window=00012/     the labels that became known in that window (streaming.label_parts)
      sealed/window=00012.json   digests of the window's parts, counts, and where to go on reading
      ended                      how many windows there were when the stream had ended
      late.jsonl quarantine.jsonl

Parts are written first, then the window's record in ``sealed/``, by a rename: that is the moment from which the window
is sealed. Parts without a record are of a writer that was killed; they are written again.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streaming import config as configuration
from streaming import files, label_parts
from streaming.dataset import Dataset, Window, part_file, read_parquet
from streaming.errors import ConfigError, DataError
from streaming.schema import DatasetConfig
from streaming.sources import tables
from streaming.sources.ledger import Ledger
from streaming.sources.positions import Positions, from_json, to_json
from streaming.sources.windows import OpenWindow
from streaming.writer import DatasetWriter

LOGS = ("requests", "engagements", "labels")


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """What is recorded of a sealed window.

    Attributes:
        window: its index.
        digests: hexadecimal SHA-256 of its parts, by name of the log.
        rows: rows of its parts, likewise.
        copies: messages that repeated one of the window's.
        positions: where to go on reading for the windows after it.
    """

    window: int
    digests: dict[str, str]
    rows: dict[str, int]
    copies: int
    positions: Positions

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "positions": to_json(self.positions)}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Sealed":
        """The inverse of :meth:`to_json`."""
        return Sealed(**{**values, "positions": from_json(values["positions"])})


class SealedWindows:
    """The folder of one stream.

    Args:
        folder: made if absent; one process at a time writes to it.
        catalogue: the data set that is to come: its configuration, items and users; its logs are not read.

    Raises:
        ConfigError: the folder was begun under another configuration.
        DataError: a record's parts are missing.
    """

    def __init__(self, *, folder: Path, catalogue: Dataset) -> None:
        self.folder = folder
        self.catalogue = catalogue
        self.path = folder / "data"
        self._records = {sealed.window: sealed for sealed in records(folder)}
        if [*self._records] != [window.index for window in catalogue.windows[: len(self._records)]]:
            raise DataError(f"{folder}: sealed windows are {[*self._records]}, not the first ones of {catalogue}.")
        self._check()
        self._copy_catalogue()

    @property
    def latest(self) -> Sealed | None:
        """The record of the last sealed window, None before the first."""
        return self._records[max(self._records)] if self._records else None

    @property
    def windows(self) -> list[Window]:
        """The sealed windows, in order."""
        return self.catalogue.windows[: len(self._records)]

    def record(self, window: int) -> Sealed | None:
        """What is recorded of a window; None if it is not sealed."""
        return self._records.get(window)

    def dataset(self) -> Dataset:
        """The windows sealed so far.

        Raises:
            DataError: there is none yet.
        """
        return Dataset.open(self.path)

    def seal(self, window: Window, opened: OpenWindow, positions: Positions, ledger: Ledger) -> Sealed:
        """Write the parts of the window after the last sealed one, and then its record."""
        config = self.catalogue.config
        parts = {
            "requests": tables.request_table(config, opened),
            "engagements": tables.engagement_table(config, opened),
        }
        parts["labels"] = self._labels(window, opened, parts["requests"], ledger)
        ledger.flush()
        paths = self._write(window, parts)
        sealed = Sealed(
            window=window.index,
            digests={log: files.sha256_of(path) for log, path in paths.items()},
            rows={log: table.num_rows for log, table in parts.items()},
            copies=opened.copies,
            positions=positions,
        )
        self._record(sealed)
        return sealed

    @property
    def ended(self) -> bool:
        """Whether the stream had ended, and no window was added since."""
        path, windows = self.folder / "ended", len(self.catalogue.windows)
        return len(self._records) == windows and path.is_file() and path.read_text() == f"{windows}\n"

    def end(self) -> None:
        """Note that there is nothing more to read for the windows that there are."""
        files.write_text(self.folder / "ended", f"{len(self.catalogue.windows)}\n")

    def require(self, trained: Sealed) -> None:
        """Make sure that what was trained on is what is sealed; a record that was lost is restored.

        Args:
            trained: the record that a training checkpoint carries.

        Raises:
            DataError: they differ, or windows before it are missing.
        """
        record = self.record(trained.window)
        following = self.catalogue.windows[len(self._records) :]
        if record is None and following and following[0].index == trained.window:
            self._require_parts(trained)
            self._record(trained)
        elif record is None or record.digests != trained.digests:
            found = "is not there" if record is None else "has other contents"
            raise DataError(
                f"{self.folder}: the run has trained on window {trained.window}, which {found}. Restore the folder, or "
                "give another run folder to train from the beginning."
            )

    def _require_parts(self, sealed: Sealed) -> None:
        for log, digest in sealed.digests.items():
            path = self._part(log, sealed.window)
            if not path.is_file() or files.sha256_of(path) != digest:
                raise DataError(
                    f"{path}: missing, or not what was sealed (its SHA-256 differs). Restore the file, or give another "
                    "run folder to read everything from the beginning of the topics."
                )

    def _record(self, sealed: Sealed) -> None:
        files.write_text(
            self.folder / "sealed" / f"window={sealed.window:05d}.json", json.dumps(sealed.to_json(), indent=1) + "\n"
        )
        self._records[sealed.window] = sealed
        self._describe()

    def _labels(self, window: Window, opened: OpenWindow, requests: pa.Table, ledger: Ledger) -> pa.Table:
        """The window's labels of candidates that were accepted; the others are told of as late."""
        ordered = tables.ordered_labels(self.catalogue.config, opened)
        table = tables.label_table(self.catalogue.config, ordered)
        starts = [other.start for other in self.catalogue.windows]
        made_L = np.searchsorted(starts, table["request_time"].cast(pa.int64()).to_numpy(), side="right") - 1
        accepted_L = np.zeros(len(ordered), bool)
        for place in np.unique(made_L[made_L >= 0]):
            made = self.catalogue.windows[place].index
            if made == window.index:
                known = requests
            else:  # a label's request is never later than the label
                known = read_parquet(self._part("requests", made), columns=["request_id", "candidate_id"])
            here_L = made_L == place
            accepted_L[here_L] = label_parts.places(known, table.filter(pa.array(here_L))) >= 0
        for (key, held), accepted in zip(ordered, accepted_L, strict=True):
            if not accepted:
                reason = "labels of a candidate that was not accepted"
                ledger.note("late", *held.at, reason, kind="labels", id=key[0], time=held.row[1])
        return table.filter(pa.array(accepted_L))

    def _write(self, window: Window, parts: Mapping[str, pa.Table]) -> dict[str, Path]:
        """Write parts beside their places, then move each there; returns their paths."""
        beside = self.folder / ".sealing"
        shutil.rmtree(beside, ignore_errors=True)
        writer = DatasetWriter(path=beside, config=self.catalogue.config)
        writer.requests(window.index, parts["requests"])
        writer.engagements(window.index, parts["engagements"])
        labels = label_parts.path_of(beside, window.index)
        labels.parent.mkdir(parents=True)
        pq.write_table(parts["labels"], labels, compression="zstd", compression_level=1)
        paths = {log: self._part(log, window.index) for log in LOGS}
        for log, path in paths.items():
            files.write_file(path, partial(os.replace, part_file(beside, log, window.index)))
        shutil.rmtree(beside)
        return paths

    def _part(self, log: str, window: int) -> Path:
        return part_file(self.path, log, window)

    def _describe(self) -> None:
        """Say in ``dataset.yaml`` which windows there are."""
        config = self.catalogue.config
        until = config.window_boundaries[: len(self._records) + 1]
        text = configuration.dump(config.model_copy(update={"window_boundaries": until}))
        files.write_text(self.path / "dataset.yaml", text)

    def _check(self) -> None:
        """Is what was sealed before of this catalogue, and is everything there?"""
        if not self._records:
            return
        if (self.path / "dataset.yaml").is_file() and not self._continues(Dataset.open(self.path).config):
            raise ConfigError(
                f"{self.path}: this stream was begun under another dataset.yaml than {self.catalogue.path}'s. Only "
                "window boundaries may be added, at the end. Restore dataset.yaml, or give another run folder."
            )
        for path in (self._part(log, window) for window in self._records for log in LOGS):
            if not path.is_file():
                raise DataError(
                    f"{path}: missing, though its window is sealed. Restore the file, or give another run folder to "
                    "read everything from the beginning of the topics."
                )
        self._describe()

    def _continues(self, before: DatasetConfig) -> bool:
        now = self.catalogue.config
        same = now.window_boundaries[: len(before.window_boundaries)]
        return before == now.model_copy(update={"window_boundaries": same})

    def _copy_catalogue(self) -> None:
        for name in ("items.parquet", "users.parquet"):
            source, copy = self.catalogue.path / name, self.path / name
            if not copy.is_file() or files.sha256_of(copy) != files.sha256_of(source):
                files.write_file(copy, partial(shutil.copyfile, source))


def records(folder: Path) -> list[Sealed]:
    """Records of the windows that were sealed in a stream's folder, in order."""
    paths = sorted((folder / "sealed").glob("window=*.json"))
    return [Sealed.from_json(json.loads(path.read_bytes())) for path in paths]
