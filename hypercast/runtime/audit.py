"""Who was trained on what: ids by window, chained, and bound to the weights that came of it.

::

    RUN/audit/NAME/window=00012.parquet   request_id int64, labels int32; NAME: foundation, or a surface

One row for every request that was handed to the training of the window, with the number of its labels that were new in
it; written before the window's checkpoint, which carries a digest of this file chained to that of the one before. So
a checkpoint vouches for the ids of all windows that its weights have seen, and a window that was trained on twice, or
passed over, has no place in the chain.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streaming import files
from streaming.dataset import Window, read_parquet
from streaming.requests import Requests
from streaming.workspace import Workspace


@dataclass(frozen=True)
class AuditedWorkspace(Workspace):
    """A workspace that remembers what it has handed to training since the list was last emptied."""

    handed: list[tuple[Window, Requests]] = field(default_factory=list, kw_only=True)

    def learned_in(self, window: Window) -> Iterator[tuple[int, Requests]]:
        for made, requests in super().learned_in(window):
            self.handed.append((window, requests))
            yield made, requests


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Writes down what one trainer was given.

    Attributes:
        run: folder of the run; name: of the trainer.
        workspace: what it reads from.
        surface: index of the only one that it trains on, None for all.
    """

    run: Path
    name: str
    workspace: AuditedWorkspace
    surface: int | None = None

    def record(self, window: Window, before: Mapping[str, Any]) -> dict[str, Any]:
        """Write the window's ids; returns what its checkpoint is to carry, given what the one before it carries.

        Returns:
            JSON values: ``digest`` of the chain so far, and ``requests`` and ``labels``, counted over all windows.
        """
        ids, counts = self._handed(window)
        table = pa.table({"request_id": pa.array(ids, pa.int64()), "labels": pa.array(counts, pa.int32())})
        files.write_file(path_of(self.run, self.name, window.index), partial(pq.write_table, table))
        return {
            "digest": chained(str(before.get("digest", "")), window.index, table),
            "requests": int(before.get("requests", 0)) + len(ids),
            "labels": int(before.get("labels", 0)) + int(counts.sum()),
        }

    def _handed(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Request ids and numbers of labels, int64 [N], in the order of training; the workspace forgets them."""
        ids, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for given, everything in self.workspace.handed:
            requests = everything if self.surface is None else everything.on_surface(self.surface)
            known = requests.supervision.known(since=given.start, before=given.end).sum(axis=1)
            assert given == window, "a trainer audits each window before it begins another"
            ids.append(requests.request_id)
            counts.append(np.bincount(requests.owner, weights=known, minlength=len(requests)).astype(np.int64))
        self.workspace.handed.clear()
        return np.concatenate(ids), np.concatenate(counts)


def path_of(run: Path, name: str, window: int) -> Path:
    """Where the ids of a window lie."""
    return run / "audit" / name / f"window={window:05d}.parquet"


def read(run: Path, name: str, window: int) -> pa.Table:
    """The ids of a window.

    Raises:
        DataError: there is no such file.
    """
    return read_parquet(path_of(run, name, window))


def chained(before: str, window: int, table: pa.Table) -> str:
    """Hexadecimal SHA-256 of the chain with the window's ids at its end."""
    digest = hashlib.sha256(f"{before} {window} ".encode())
    for column in table.columns:
        digest.update(np.ascontiguousarray(column.to_numpy()).tobytes())
    return digest.hexdigest()
