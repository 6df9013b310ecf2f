"""A worker's batches: the vocabulary as one process fills it, and every row in its place."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.hstu.vocabulary import BatchVocabulary
from foundation.sharded.batch import Admission, ShardReader, rows_asked, table_name
from streaming.batch import BatchReader
from streaming.prefetch import Prefetch
from streaming.workspace import Workspace

HISTORY = 10


@pytest.fixture
def reader(workspace: Workspace) -> BatchReader:
    return workspace.reader({"all": (workspace.engagements, HISTORY)})


def admission_of(reader: BatchReader, workspace: Workspace, rows: int, bags: int | None = None) -> Admission:
    vocabulary = BatchVocabulary.Config(default=rows).build(workspace.inputs).train()
    return Admission(vocabulary=vocabulary, reader=reader, bags=bags)


def shards_of(reader: BatchReader, count: int, mine: range) -> ShardReader:
    return ShardReader(reader=reader, prefetch=Prefetch.Config(workers=0), shards=count, mine=mine)


@pytest.mark.parametrize("rows", [8, 128], ids=["full tables", "room for all"])
def test_every_worker_admits_what_one_process_admits(workspace: Workspace, reader: BatchReader, rows: int) -> None:
    alone = BatchVocabulary.Config(default=rows).build(workspace.inputs).train()
    workers = [admission_of(reader, workspace, rows) for _ in range(3)]
    for window in workspace.dataset.windows[:3]:
        requests = workspace.requests(window.index)
        for batch in reader.batches(requests, size=16):
            alone(batch)
        for rank, admission in enumerate(workers):
            for part in shards_of(reader, 3, range(rank, rank + 1)).batches(requests, size=16):
                admission(part)
    for admission in workers:
        ours, theirs = admission.vocabulary.state_dict(), alone.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert rows == 128 or any(value for name, value in alone.statistics().items() if name.endswith("evicted"))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(1, 20), count=st.integers(1, 5), start=st.integers(0, 60))
def test_shards_hold_the_global_batch_once_and_their_rows_are_the_tables(
    workspace: Workspace, reader: BatchReader, size: int, count: int, start: int
) -> None:
    requests = workspace.requests(2).slice(start, start + size)
    admission = admission_of(reader, workspace, 128)
    part = shards_of(reader, count, range(count)).part(requests)
    batch = admission(part)
    assert sum(shard.weight for shard in batch.shards) == pytest.approx(1.0)
    counted = [members for members, shard in zip(part.members, batch.shards, strict=True) if shard.weight]
    assert sorted(np.concatenate(counted).tolist()) == list(range(len(requests)))
    assert [shard.number for shard in batch.shards] == list(range(count))
    # Where a row lies, its table and slot: adding them up by bag must give what the vocabulary says of each thing.
    table_of = {name: index for index, name in enumerate(admission.tables)}
    flat = np.concatenate([1000 * table_of[name] + batch.ids[name].values().numpy() for name in admission.tables])
    first = 0
    for shard in batch.shards:
        row_M = flat[batch.place_M[first : first + shard.rows].numpy()]
        first += shard.rows
        code_of = {"items": shard.batch.items, "users": shard.batch.users, "context": shard.batch.context}
        bags = np.split(row_M[shard.row_I.numpy()], shard.offsets.numpy()[1:])
        begun = 0
        for (kind, vocabulary), things in zip(admission.kinds.items(), shard.counts, strict=True):
            code_FN = code_of[kind].values().numpy().reshape(-1, things)
            for thing in range(things):
                expected = [
                    1000 * table_of[table_name(kind, name)] + ids.lookup(code_FN[feature, [thing]])[0]
                    for feature, (name, ids) in enumerate(vocabulary.tables())
                ]
                assert bags[begun + thing].tolist() == expected
            begun += things


def test_a_worker_without_requests_repeats_one_that_counts_nothing(workspace: Workspace, reader: BatchReader) -> None:
    requests = workspace.requests(2).slice(0, 2)
    parts = [shards_of(reader, 4, range(rank, rank + 1)).part(requests) for rank in range(4)]
    weights = [part.weights[0] for part in parts]
    assert sorted(weight > 0 for weight in weights) == [False, False, True, True] and sum(weights) == 1.0
    assert all(len(part.batches[0]) == 1 for part in parts)


def test_a_reader_travels_to_a_process_that_works_ahead(workspace: Workspace, reader: BatchReader) -> None:
    requests = workspace.requests(2).slice(0, 9)
    ours = shards_of(reader, 2, range(1, 2))
    copied = pickle.loads(pickle.dumps(ours))
    found, expected = copied.part(requests), ours.part(requests)
    assert (found.item_U == expected.item_U).all() and found.weights == expected.weights
    assert torch.equal(found.batches[0].item_C, expected.batches[0].item_C)


def test_what_is_asked_of_each_table_is_what_the_first_window_names(workspace: Workspace, reader: BatchReader) -> None:
    """All its requests in one batch would look up as many; a batch of one is asked for one user, and full history."""
    batch = reader.batch(workspace.requests(workspace.dataset.windows[0].index))
    few, many = (rows_asked(workspace, batch_size=size, history=HISTORY) for size in (1, 10**6))
    seen = batch.items.to_dict() | batch.users.to_dict() | batch.context.to_dict()
    assert len(many) == len(seen) == len(admission_of(reader, workspace, 8).tables)
    candidates = set(batch.item_C.tolist())
    for table, count in many.items():
        kind, name = table.split("/")
        code_N = seen[name.replace("%2E", ".")].values()
        code_N = code_N[sorted(candidates)] if kind == "items" else code_N
        assert count == len(code_N.unique())
        assert few[table] == min(count, HISTORY if kind == "items" else 1)


def test_bags_cut_the_rows_of_every_table_and_change_nothing_else(workspace: Workspace, reader: BatchReader) -> None:
    part = shards_of(reader, 3, range(3)).part(workspace.requests(2))
    by_shard, cut = admission_of(reader, workspace, 128)(part), admission_of(reader, workspace, 128, bags=4)(part)
    assert (by_shard.ids.stride(), cut.ids.stride()) == (3, 4)
    assert cut.ids.values().equal(by_shard.ids.values()) and cut.place_M.equal(by_shard.place_M)
    rows = cut.ids.lengths().view(-1, 4)
    assert rows.sum(1).equal(by_shard.ids.lengths().view(-1, 3).sum(1)) and (rows.amax(1) - rows.amin(1)).max() <= 1
