"""What was read and not used, one line of JSON each, so that nothing disappears without a trace.

::

    FOLDER/late.jsonl         came after their window was closed, or belong to no request: never trained on
    FOLDER/quarantine.jsonl   cannot be used

A message is told of once, however often it is read again. Lines are on disk before the window after them is sealed.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from streaming import files
from streaming.sources.positions import Partition, Position

Log = Literal["late", "quarantine"]
LOGS: tuple[Log, ...] = ("late", "quarantine")


class Ledger:
    """Both logs of one folder.

    Args:
        folder: made if absent.
        positions: where reading goes on: lines about earlier offsets will not come again and are not held in memory.
    """

    def __init__(self, *, folder: Path, positions: Mapping[Partition, Position]) -> None:
        self._folder = folder
        self._told: set[tuple[Partition, int, str]] = set()
        self._lines: dict[Log, list[str]] = {log: [] for log in LOGS}
        self.counts: dict[Log, int] = dict.fromkeys(LOGS, 0)
        folder.mkdir(parents=True, exist_ok=True)
        for log in LOGS:
            self._drop_torn_line(log)
            for entry in read(folder, log):
                partition = Partition(entry["topic"], entry["partition"])
                if partition not in positions or entry["offset"] >= positions[partition].offset:
                    self._told.add((partition, entry["offset"], entry["reason"]))
                self.counts[log] += 1

    def note(self, log: Log, partition: Partition, offset: int, reason: str, **named: Any) -> None:
        """Tell of a message, unless that was done; ``named``: what it was, JSON values."""
        if (key := (partition, offset, reason)) in self._told:
            return
        self._told.add(key)
        entry = {"topic": partition.topic, "partition": partition.index, "offset": offset, "reason": reason, **named}
        self._lines[log].append(json.dumps(entry))
        self.counts[log] += 1

    def flush(self) -> None:
        """Make all lines durable."""
        for log, lines in self._lines.items():
            if lines:
                with _path(self._folder, log).open("a", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line in lines)
                    file.flush()
                    os.fsync(file.fileno())
                lines.clear()
        files.fsync_directory(self._folder)

    def _drop_torn_line(self, log: Log) -> None:
        """What a killed writer had begun; it is read, and told of, once more."""
        path = _path(self._folder, log)
        if path.is_file():
            with path.open("r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)


def read(folder: Path, log: Log) -> list[dict[str, Any]]:
    """All entries of a log, in the order in which they were written; none if there is no such file."""
    path = _path(folder, log)
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def _path(folder: Path, log: Log) -> Path:
    return folder / f"{log}.jsonl"
