"""Where tables go: as many rows to look up on each worker, within the budget."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.sharded import plan
from foundation.sharded.config import Sharding

CPU = torch.device("cpu")
WIDTH = 16


def placed(rows: dict[str, int], asked: dict[str, int] | None, **sharding: object) -> dict[str, int]:
    """The worker of each table, with whole tables."""
    collection = plan.collection_of(rows, width=WIDTH, learning_rate=0.1)
    whole = Sharding(kinds=["table_wise"], **sharding)  # type: ignore[arg-type]
    found = plan.pieces(plan.propose(collection, whole, batch_size=32, device=CPU, asked=asked), collection)
    assert [each.table for each in found] == list(rows) and {each.kind for each in found} == {"table_wise"}
    return {each.table: each.worker for each in found}


def loads(worker_of: dict[str, int], counts: dict[str, int], workers: int) -> list[int]:
    return [sum(counts[table] for table, worker in worker_of.items() if worker == rank) for rank in range(workers)]


def test_a_table_that_is_asked_for_as_much_as_all_others_has_a_worker_to_itself() -> None:
    """Wherever it stands among them; by the number of tables each worker would have three."""
    for place in range(6):
        asked = {f"t{index}": 5000 if index == place else 1000 for index in range(6)}
        assert loads(placed(dict.fromkeys(asked, 8192), asked, workers=2), asked, 2) == [5000, 5000]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=8), st.integers(1, 4))
def test_no_worker_is_asked_for_more_than_its_share_and_a_table(counts: list[int], workers: int) -> None:
    asked = {f"t{index}": count for index, count in enumerate(counts)}
    found = loads(placed(dict.fromkeys(asked, 8192), asked, workers=workers), asked, workers)
    assert max(found) <= sum(counts) / workers + max(counts) + len(counts)


def test_the_budget_comes_first() -> None:
    """What is asked may leave no room for what travels: tables then stay where they fit."""
    rows = {"large": 3000, "larger": 3000, "a": 1000, "b": 1000, "c": 1000, "d": 1000}
    asked = {"large": 1, "larger": 1, "a": 100, "b": 30, "c": 30, "d": 30}
    budget = 5300 * 4 * (WIDTH + 1) / 2**20
    assert loads(placed(rows, asked, workers=2, memory_mib=budget), rows, 2) == [5000, 5000]
    assert loads(placed(rows, asked, workers=2), rows, 2) != [5000, 5000]
    more = {table: 1000 * count for table, count in asked.items()}
    assert placed(rows, more, workers=2, memory_mib=budget) == placed(rows, None, workers=2, memory_mib=budget)
