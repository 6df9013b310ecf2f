"""Several workers: the same bits however many there are, other kinds of plans and wires near them, any restart."""

from pathlib import Path
from typing import Any

import pytest

from foundation.sharded.processes import WorkerFailed, start
from streaming.dataset import Dataset
from tests.foundation.sharded.workers import Setting, train

pytestmark = pytest.mark.slow

EXACT = {"shards": 6, "deterministic": True}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Dataset) -> dict[str, Any]:
    """One worker, four windows, six shards; tables so small that rows change hands."""
    return run(tmp_path_factory.mktemp("one"), tiny_dataset, 1, **EXACT)


def run(folder: Path, dataset: Dataset, workers: int, *, windows: int = 4, rows: int = 16, **sharding: Any) -> dict:
    setting = Setting(run=folder, data=dataset.path, sharding=sharding, windows=windows, rows=rows)
    return start(workers, train, setting)[0]


@pytest.mark.parametrize(("workers", "kind"), [(2, "table_wise"), (3, "row_wise"), (2, "data_parallel")])
def test_any_number_of_workers_makes_the_same_bits(
    tmp_path: Path, tiny_dataset: Dataset, one: dict[str, Any], workers: int, kind: str
) -> None:
    """Losses, metrics and the last snapshot, vocabulary and averages included; some ids were evicted."""
    several = run(tmp_path, tiny_dataset, workers, **EXACT, kinds=[kind])
    assert set(several["kinds"].values()) == {kind}
    assert several["losses"] == one["losses"] and len(one["losses"]) > 4
    assert several["digest"] == one["digest"] and several["snapshot"] == one["snapshot"] == "FM@0005"
    last = max(one["metrics"])
    assert several["metrics"][last] == one["metrics"][last]
    assert any(value for name, value in one["metrics"][last].items() if name.endswith("/evicted"))


@pytest.mark.parametrize(
    ("sharding", "tolerance"),
    [
        ({}, 1e-5),
        ({"dense": "fsdp2"}, 1e-5),
        ({"overlap": False}, 1e-5),
        ({"kinds": ["column_wise"]}, 2e-2),
        ({"vectors": "float16"}, 1e-3),
        ({"vectors": "float16", "kinds": ["data_parallel"]}, 1e-3),
        ({"gradients": "bfloat16"}, 1e-2),
    ],
    ids=lambda value: "-".join(f"{name}" for name in value) if isinstance(value, dict) else "",
)
def test_other_ways_lose_nothing_that_matters(
    tmp_path: Path, tiny_dataset: Dataset, one: dict[str, Any], sharding: dict[str, Any], tolerance: float
) -> None:
    several = run(tmp_path, tiny_dataset, 2, shards=6, **sharding)
    assert several["losses"] == pytest.approx(one["losses"], rel=tolerance)


@pytest.mark.parametrize(("workers", "kind"), [(1, "table_wise"), (3, "data_parallel")])
def test_what_two_saved_another_number_goes_on_from(
    tmp_path: Path, tiny_dataset: Dataset, one: dict[str, Any], workers: int, kind: str
) -> None:
    whole = {"items/item_id": ["data_parallel"]}
    begun = run(tmp_path, tiny_dataset, 2, windows=2, **EXACT, kinds=["row_wise"], kinds_of=whole)
    rest = run(tmp_path, tiny_dataset, workers, **EXACT, kinds=[kind])
    assert begun["losses"] + rest["losses"] == one["losses"]
    assert rest["begun"] == max(begun["metrics"]) and rest["digest"] == one["digest"]


def test_a_table_larger_than_a_workers_budget_trains(tmp_path: Path, tiny_dataset: Dataset) -> None:
    rows, features, width = 4096, 9, 8
    table = 4 * rows * (width + 1) / 2**20
    budget = {"memory_mib": 0.75 * table * features, "shards": 2}
    with pytest.raises(WorkerFailed, match=r"sharding\.memory_mib"):
        run(tmp_path / "a", tiny_dataset, 2, windows=1, rows=8 * rows, **budget, kinds=["table_wise"])
    trained = run(tmp_path / "b", tiny_dataset, 2, windows=1, rows=rows, **budget, kinds=["row_wise"])
    assert trained["losses"] and max(trained["bytes"]) <= budget["memory_mib"] * 2**20
