"""A platform that is fed by a broker: its data as messages, its file, and the same without what is late."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streaming import config as configuration
from streaming.dataset import Dataset
from streaming.history_check import COLUMN
from streaming.importers.synthetic import Synthetic
from streaming.sources.kafka import Topics
from streaming.sources.replay import Rehearsal, Sent, send
from streaming.sources.sink import KafkaSink
from streaming.writer import DatasetWriter, write_dataset

DAY = 86_400
PARTITIONS = 2
LATENESS = DAY


@dataclass(frozen=True)
class Rehearsed:
    """Messages of ``dataset`` in topics of their own, and the data set that is left when what is late is taken out."""

    dataset: Dataset
    on_time: Dataset
    sent: list[Sent]
    topics: Topics

    def late(self, kind: str) -> set[int]:
        return {message.id for message in self.sent if message.late and message.kind == kind}

    def stream(self, bootstrap: str) -> dict[str, object]:
        """Where it is found and how it is read."""
        found = {"bootstrap_servers": bootstrap, "topics": self.topics.model_dump(), "until": "end"}
        return {**found, "allowed_lateness_seconds": LATENESS}

    def lines(self, bootstrap: str) -> str:
        """The same, as a platform file says it."""
        return f"stream: {self.stream(bootstrap)!r}\n"

    def send(self, bootstrap: str, *, settings: Path | None = None, end: bool = True) -> None:
        sink = KafkaSink(bootstrap_servers=bootstrap, settings=settings)
        sink.create(self.topics.names(), partitions=PARTITIONS)
        send(self.sent, to=sink, topics=self.topics, partitions=PARTITIONS if end else 0)


def rehearse(folder: Path, prefix: str, *, late: float = 0.01, twice: float = 0.02, **data: int) -> Rehearsed:
    """A small data set: shuffled within the allowed lateness, some messages twice, some too late."""
    config = Synthetic.Config(**{"users": 16, "items": 24, "windows": 4, "candidates": 6, "surfaces": 2, **data})
    dataset = config.build(folder / "data")
    disorder = Rehearsal.Config(
        partitions=PARTITIONS, shuffle_within_seconds=LATENESS, duplicate_share=twice, late_share=late, seed=1
    )
    sent = disorder.build().arrange(dataset)
    return Rehearsed(dataset, without_late(folder / "on_time", dataset, sent), sent, Topics.prefixed(prefix))


def without_late(path: Path, dataset: Dataset, sent: list[Sent]) -> Dataset:
    """The data set without the requests and engagements that are late, and without labels that are."""
    late = {(message.kind, message.id) for message in sent if message.late}
    late_labels = {(message.id, message.time) for message in sent if message.late and message.kind == "labels"}

    def fill(writer: DatasetWriter) -> None:
        engagement_id = 0
        writer.items(dataset.items())
        writer.users(dataset.users())
        for window in dataset.windows:
            table = dataset.engagements(window.index)
            ids = range(engagement_id, engagement_id + table.num_rows)
            engagement_id += table.num_rows
            writer.engagements(window.index, table.filter(pa.array([("engagement", one) not in late for one in ids])))
            table = dataset.requests(window.index)
            kept = table.filter(pa.array([("request", one) not in late for one in table["request_id"].to_pylist()]))
            kept = kept.drop_columns([COLUMN] if COLUMN in kept.column_names else [])
            writer.requests(window.index, _without_labels(kept, late_labels, dataset))

    return write_dataset(path, dataset.config, fill)


def _without_labels(table: pa.Table, late: set[tuple[int, int]], dataset: Dataset) -> pa.Table:
    rows = table.to_pylist()
    for row in rows:
        for task in dataset.config.tasks:
            times = row["supervision"][f"label_time_{task.name}"]
            for place, known in enumerate(times):
                if known is not None and (row["request_id"], pc.cast(pa.scalar(known), pa.int64()).as_py()) in late:
                    times[place] = row["supervision"][f"label_{task.name}"][place] = None
    return pa.Table.from_pylist(rows, schema=table.schema)


def files_and_stream(
    platform_file: Callable[..., Path], rehearsed: Rehearsed, bootstrap: str, folder: Path
) -> tuple[Path, Path]:
    """Platform files that differ in where the data comes from: files without what is late, and the stream."""
    files, stream = platform_file(folder / "files"), platform_file(folder / "stream", rehearsed.lines(bootstrap))
    use(files, rehearsed.on_time.path)
    use(stream, catalogue(rehearsed.dataset, folder / "catalogue"))
    return files, stream


def use(file: Path, dataset: Path) -> None:
    """Let a platform file name another data set."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("dataset:")]
    file.write_text("\n".join([*lines, f"dataset: {{path: {dataset}}}"]), encoding="utf-8")


def catalogue(dataset: Dataset, folder: Path) -> Path:
    """What a stream is given beforehand: no logs."""
    folder.mkdir()
    for name in ("dataset.yaml", "items.parquet", "users.parquet"):
        (folder / name).write_bytes((dataset.path / name).read_bytes())
    assert configuration.load(folder / "dataset.yaml", type(dataset.config)) == dataset.config
    return folder


def request_ids(dataset: Dataset) -> np.ndarray:
    """All of them, sorted."""
    tables = [dataset.requests(window.index, columns=["request_id"]) for window in dataset.windows]
    return np.sort(pa.concat_tables(tables)["request_id"].to_numpy())
