"""A shop's log of rows that were shown, the mapping that imports it, and what an import made."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from streaming.config import parse
from streaming.dataset import Dataset
from streaming.importers.mapping.config import MappingConfig
from streaming.importers.mapping.importer import Mapping

START = 1_700_000_000  # 2023-11-14 22:13:20 UTC
DAY = 86_400

SHOP: dict[str, Any] = {
    "name": "shop",
    "rows": {"files": "log.csv"},
    "user": "user",
    "item": "item",
    "time": "ts",
    "surface": "page",
    "tasks": [
        {"name": "click", "column": "clicked"},
        {"name": "buy", "column": "bought", "given": "click", "delay_seconds": 3600},
    ],
    "context": {"store": "store"},
    "items": {"attributes": {"genre": "genre"}},
    "windows": "2d",
}


def shop_log(rows: int = 400, seed: int = 0) -> pa.Table:
    """Rows over ten days, sorted by time; several of a user share a time."""
    random = np.random.default_rng(seed)
    time = np.sort(random.integers(0, 10 * DAY // 600, rows)) * 600 + START
    item = random.integers(0, 30, rows)
    click = random.random(rows) < 0.4
    return pa.table(
        {
            "user": [f"user {each}" for each in random.integers(0, 12, rows)],
            "item": item,
            "ts": time,
            "page": np.array(["home", "search"])[random.integers(0, 2, rows)],
            "clicked": click.astype(np.int64),
            "bought": (click & (random.random(rows) < 0.5)).astype(np.int64),
            "store": [f"store {each}" for each in random.integers(0, 3, rows)],
            "genre": [f"genre {each % 5}" for each in item],
        }
    )


def write_csv(table: pa.Table, path: Path, delimiter: str = ",") -> None:
    """Plain CSV; nulls are empty."""
    lines = [table.column_names, *([str(row[name]) for name in table.column_names] for row in table.to_pylist())]
    text = "\n".join(delimiter.join("" if cell == "None" else cell for cell in line) for line in lines)
    path.write_text(text + "\n", encoding="utf-8")


def write_jsonl(table: pa.Table, path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()), encoding="utf-8")


def mapping(folder: Path, **changes: Any) -> Mapping:
    """The shop's importer with some keys of its mapping changed."""
    config = parse({**SHOP, **changes}, MappingConfig, source="the test")
    return Mapping(config=config, folder=folder)


def everything(dataset: Dataset) -> dict[str, list[Any]]:
    """All rows of a data set as plain values."""
    windows = [window.index for window in dataset.windows]
    return {
        "requests": [row for window in windows for row in dataset.requests(window).to_pylist()],
        "engagements": [row for window in windows for row in dataset.engagements(window).to_pylist()],
        "items": dataset.items().to_pylist(),
        "users": dataset.users().to_pylist(),
    }


def candidates_of(dataset: Dataset) -> list[dict[str, Any]]:
    """One entry a candidate, with what its request says."""
    found = []
    for request in everything(dataset)["requests"]:
        for at, item in enumerate(request["item_id"]):
            outcome = {name: values[at] for name, values in request["supervision"].items()}
            place = {"user": request["user_id"], "time": request["time"], "store": request.get("store")}
            found.append({**place, "item": item, "surface": request["surface"][at], **outcome})
    return found
