"""Import by a mapping file: any logs become a data set, whole and valid, or one clear error and nothing.

The source is read once, checked and spilled to a scratch folder beside the destination (:mod:`.prepare`); then windows
are built one after another (:mod:`.build`), validated and moved into place (:mod:`streaming.writer`). Bad rows go to
``OUT.quarantine.parquet``, which is also there when too many of them ended the import.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pyarrow as pa

from streaming.config import dump
from streaming.dataset import Dataset
from streaming.files import write_bytes
from streaming.importers.mapping.as_of import AsOfFeatures
from streaming.importers.mapping.build import Windows
from streaming.importers.mapping.config import MappingConfig
from streaming.importers.mapping.prepare import Prepared, Progress, prepare
from streaming.importers.mapping.profile import Profile, profile
from streaming.importers.mapping.quarantine import Quarantine
from streaming.importers.mapping.source import Reader, read_blocks
from streaming.schema import EPOCH, DatasetConfig, TaskConfig
from streaming.writer import DatasetWriter, refuse_existing, write_dataset

COUNTS = "import.json"
"""In ``extra/``: how many rows were read, and how many of them were bad."""


class Mapping:
    """Importer of what a mapping file describes.

    Args:
        folder: that the mapping's paths are relative to.
        read: how files are read; formats that no mapping can describe bring their own.

    >>> config = streaming.config.load(Path("shop.yaml"), MappingConfig)
    >>> dataset = Mapping(config=config, folder=Path(".")).build(Path("data/shop"))
    """

    def __init__(self, *, config: MappingConfig, folder: Path, read: Reader = read_blocks) -> None:
        self.config = config
        self.folder = folder
        self.read = read

    def build(self, out: Path, progress: Progress | None = None) -> Dataset:
        """Write the data set to the new folder ``out``.

        Raises:
            DataError: ``out`` exists already, or see :func:`streaming.importers.mapping.prepare.prepare`.
        """
        refuse_existing(out)
        report = progress or (lambda _what, _share: None)
        with _scratch(out) as scratch, self._quarantine(scratch, quarantine_file(out)) as quarantine:
            prepared = self._prepare(scratch, quarantine, report)
            config = dataset_config(self.config, prepared)
            windows = Windows(config=self.config, dataset=config, prepared=prepared)
            dataset = write_dataset(out, config, lambda writer: self._fill(writer, windows, prepared, report))
        report("done", 1.0)
        return dataset

    def profile(self, progress: Progress | None = None, *, beside: Path | None = None) -> Profile:
        """What :meth:`build` would make of the source, and what would go wrong; nothing is left on disk.

        Args:
            beside: the scratch folder is made here; None = in the system's folder for temporary files.

        Raises:
            DataError: what no import could get past, such as a file or a column that is missing.
        """
        report = progress or (lambda _what, _share: None)
        with tempfile.TemporaryDirectory(prefix=".hypercast-", dir=beside) as folder:
            quarantine = Quarantine(file=Path(folder) / "quarantine.parquet", max_share=1.0)
            try:
                found = profile(self.config, self._prepare(Path(folder), quarantine, report))
            finally:
                quarantine.close()
        report("done", 1.0)
        return found

    def _prepare(self, scratch: Path, quarantine: Quarantine, report: Progress) -> Prepared:
        return prepare(
            self.config, folder=self.folder, scratch=scratch, quarantine=quarantine, read=self.read, report=report
        )

    def _fill(self, writer: DatasetWriter, windows: Windows, prepared: Prepared, report: Progress) -> None:
        writer.items(pa.table({"item_id": windows.item_ids, **windows.item_attributes}))
        writer.users(pa.table({"user_id": windows.user_ids, **windows.user_attributes}))
        count = len(prepared.boundaries) - 1
        for window in range(count):
            report(f"window {window + 1} of {count}", 0.5 + 0.4 * window / count)
            requests, engagements = windows.build(window)
            writer.requests(window, requests)
            writer.engagements(window, engagements)
        extra = writer.path / "extra"
        extra.mkdir()
        for registry in (prepared.items, prepared.users):
            os.replace(registry.file, extra / registry.file.name)
        counts = {
            "rows": int(prepared.rows.rows.sum()),
            "bad_rows": prepared.quarantine.bad,
            "bad_rows_by_reason": dict(prepared.quarantine.reasons),
            "positives_outside_pools": windows.outside,
        }
        (extra / COUNTS).write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
        (extra / "mapping.yaml").write_text(dump(self.config), encoding="utf-8")
        report("validating", 0.9)

    @contextmanager
    def _quarantine(self, scratch: Path, file: Path) -> Iterator[Quarantine]:
        """A quarantine whose file is at ``file`` in the end, if there were bad rows, and no older one either way."""
        quarantine = Quarantine(file=scratch / "quarantine.parquet", max_share=self.config.max_bad_share)
        try:
            yield quarantine
        finally:
            quarantine.close()
            if quarantine.bad:
                write_bytes(file, quarantine.file.read_bytes())
            else:
                file.unlink(missing_ok=True)


def quarantine_file(out: Path) -> Path:
    """Where the bad rows of an import to ``out`` go."""
    return out.with_name(f"{out.name}.quarantine.parquet")


def dataset_config(config: MappingConfig, prepared: Prepared) -> DatasetConfig:
    """What ``dataset.yaml`` will say."""
    delay = prepared.tally.longest_delay.tolist()
    tasks = []
    for task, longest in zip(config.tasks, delay, strict=True):
        drawn = round(task.delay_seconds * 1e6) if config.negatives else 0
        # A label's delay counts from its request, whose earliest row may be as much earlier than the label's own.
        seconds = math.ceil((max(longest, drawn) + config.requests.within) / 1e6)
        tasks.append(TaskConfig(name=task.name, given=task.given, delay_seconds=seconds))
    attributes = list(config.items.attributes)
    return DatasetConfig(
        name=config.name,
        description=config.description,
        provenance=config.provenance or f"imported by mapping from {', '.join(config.rows.files)}",
        licence=config.licence,
        surfaces=sorted(prepared.surfaces.names),
        actions=[action.action for action in config.actions],
        tasks=tasks,
        dense=[*config.dense, *(AsOfFeatures.names(attributes) if config.with_as_of_features else [])],
        item_attributes=attributes,
        user_attributes=list(config.users.attributes),
        context=[*config.context, *config.clock],
        window_boundaries=[EPOCH + timedelta(microseconds=each) for each in prepared.boundaries.tolist()],
    )


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """An empty folder beside ``out`` that is gone afterwards; what a killed import left there goes first."""
    path = out.with_name(f".{out.name}.import")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path)
