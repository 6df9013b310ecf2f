"""Imports a folder by one of the formats and looks at what came out, as plain values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from streaming.dataset import Dataset, part_file
from streaming.importers.formats.layout import Layout
from streaming.importers.mapping.importer import Mapping


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A data set with every candidate as one row, in the order of time, and every engagement."""

    dataset: Dataset
    candidates: list[dict[str, Any]]
    engagements: list[dict[str, Any]]

    def entity(self, name: str) -> dict[int, dict[str, Any]]:
        """Rows of items.parquet or users.parquet by id."""
        key = {"items": "item_id", "users": "user_id"}[name]
        return {row[key]: row for row in pq.read_table(self.dataset.path / f"{name}.parquet").to_pylist()}


def import_layout(layout: Layout, source: Path, out: Path) -> Imported:
    dataset = Mapping(config=layout.mapping, folder=source, read=layout.reader).build(out)
    candidates, engagements = [], []
    for window in dataset.windows:
        for request in pq.read_table(part_file(out, "requests", window.index)).to_pylist():
            lists = {name: request.pop(name) for name in ("candidate_id", "item_id", "surface", "dense")}
            lists |= request.pop("supervision")
            for index in range(len(lists["item_id"])):
                cells = {name: values[index] for name, values in lists.items()}
                cells["surface"] = dataset.config.surfaces[cells["surface"]]
                candidates.append({**request, **cells, "window": window.index})
        engagements += pq.read_table(part_file(out, "engagements", window.index)).to_pylist()
    for engagement in engagements:
        engagement["surface"] = dataset.config.surfaces[engagement["surface"]]
        engagement["action"] = dataset.config.actions[engagement["action"]]
    return Imported(dataset=dataset, candidates=candidates, engagements=engagements)
