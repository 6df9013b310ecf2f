"""A jagged batch says what a naive loop over requests, candidates and engagements says."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from streaming.batch import BatchReader, RequestBatch, keyed
from streaming.dataset import Dataset
from streaming.history import EngagementLog
from streaming.prefetch import Prefetch
from streaming.requests import Requests, Supervision
from streaming.schema import microseconds
from streaming.workspace import Workspace

MAX_LENGTH = {"all": 7, "surface": 3}


@pytest.fixture(scope="module")
def workspace(tiny_dataset: Dataset) -> Workspace:
    return Workspace(tiny_dataset)


@pytest.fixture(scope="module")
def reader(workspace: Workspace) -> BatchReader:
    log = workspace.engagements
    return workspace.reader({"all": (log, MAX_LENGTH["all"]), "surface": (log.only(1), MAX_LENGTH["surface"])})


@pytest.fixture(scope="module")
def requests(workspace: Workspace) -> Requests:
    return workspace.requests(3).slice(5, 25)


def rows(codes: KeyedJaggedTensor) -> list[tuple[int, ...]]:
    """One tuple of codes per row, in the order of the keys."""
    return list(zip(*(codes[key].values().tolist() for key in codes.keys()), strict=True))  # noqa: SIM118


def naive_history(dataset: Dataset, user: int, time: int, *, surface: int | None, length: int) -> list[tuple]:
    """(item id, surface, action, time) of the latest engagements before ``time``, oldest first."""
    found = []
    for window in dataset.windows:
        for event in dataset.engagements(window.index).to_pylist():
            moment = microseconds(event["time"])
            if event["user_id"] == user and moment < time and surface in (None, event["surface"]):
                found.append((event["item_id"], event["surface"], event["action"], moment))
    return found[-length:]


def histories(batch: RequestBatch, name: str, items: list[tuple[int, ...]]) -> list[list[tuple]]:
    """(code of the item, surface, action, time) of each request's events."""
    history = batch.history[name]
    code = [items[index][0] for index in history.item_L.tolist()]
    values = list(
        zip(code, history.surface_L.tolist(), history.action_L.tolist(), history.time_L.tolist(), strict=True)
    )
    offsets = history.offsets.tolist()
    return [values[a:b] for a, b in pairwise(offsets)]


def test_equal_to_a_naive_construction(workspace: Workspace, reader: BatchReader, requests: Requests) -> None:
    batch = reader.batch(requests)
    items, users = workspace.items, workspace.users
    code_of = {item: tuple(code) for item, code in zip(items.ids.tolist(), items.code.tolist(), strict=False)}
    distinct = rows(batch.items)
    assert len(batch) == len(requests)
    assert batch.time_B.tolist() == requests.time.tolist()
    assert batch.offsets.tolist() == requests.offsets.tolist()
    assert [distinct[index] for index in batch.item_C.tolist()] == [code_of[item] for item in requests.item_id.tolist()]
    assert batch.surface_C.tolist() == requests.surface.tolist()
    assert batch.dense_CF.tolist() == requests.dense.tolist()
    assert batch.owner_C.tolist() == [b for b in range(len(batch)) for _ in range(8)]
    assert rows(batch.users) == [tuple(users.code[row].tolist()) for row in requests.user]
    assert rows(batch.context) == [tuple(codes) for codes in requests.context.tolist()]
    for name, surface in (("all", None), ("surface", 1)):
        expected = []
        for user, time in zip(requests.user_id.tolist(), requests.time.tolist(), strict=True):
            naive = naive_history(workspace.dataset, user, time, surface=surface, length=MAX_LENGTH[name])
            expected.append([(code_of[item][0], *rest) for item, *rest in naive])
        assert histories(batch, name, distinct) == expected


def test_items_are_distinct_and_all_used(reader: BatchReader, requests: Requests) -> None:
    batch = reader.batch(requests)
    distinct = rows(batch.items)
    assert len(set(distinct)) == len(distinct)
    used = torch.cat([batch.item_C, *(history.item_L for history in batch.history.values())])
    assert sorted(set(used.tolist())) == list(range(len(distinct)))


def test_nothing_at_or_after_the_request_is_in_a_history(reader: BatchReader, requests: Requests) -> None:
    batch = reader.batch(requests)
    for history in batch.history.values():
        owner_L = torch.arange(len(batch)).repeat_interleave(history.offsets.diff())
        assert (history.time_L < batch.time_B[owner_L]).all()


def test_forgetting_the_future_changes_nothing(workspace: Workspace, requests: Requests) -> None:
    log, last = workspace.engagements, int(requests.time.max())
    past = np.flatnonzero(log.time < last)
    cut = EngagementLog(
        users=log.users,
        first=np.searchsorted(past, log.first),
        **{name: getattr(log, name)[past] for name in ("item", "surface", "action", "time")},
    )
    full, short = (workspace.reader({"all": (one, 7)}).batch(requests) for one in (log, cut))
    assert histories(full, "all", rows(full.items)) == histories(short, "all", rows(short.items))


def test_reading_fewer_histories_leaves_their_items_only(reader: BatchReader, requests: Requests) -> None:
    whole = reader.batch(requests)
    for histories in ([], list(whole.history)[:1], list(whole.history)):
        batch, item_U = whole.reading(histories)
        assert list(batch.history) == histories
        code_UF, kept_UF = (
            one.items.values().view(len(one.items.keys()), one.items.stride()).T for one in (whole, batch)
        )
        assert kept_UF.equal(code_UF[item_U])
        assert item_U[batch.item_C].equal(whole.item_C)
        named = [batch.item_C]
        for name in histories:
            assert item_U[batch.history[name].item_L].equal(whole.history[name].item_L)
            named.append(batch.history[name].item_L)
        assert torch.cat(named).unique().tolist() == list(range(len(item_U)))


def test_labels_are_known_only_in_the_interval(reader: BatchReader, requests: Requests) -> None:
    times = requests.supervision.known_time[:, 0]
    middle = int(np.sort(times)[len(times) // 2])
    whole = reader.batch(requests, since=0, before=int(times.max()) + 1)
    early, late = reader.batch(requests, since=0, before=middle), reader.batch(requests, since=middle, before=2**62)
    assert early.labels.known_CT[:, 0].tolist() == (times < middle).tolist()
    assert late.labels.known_CT[:, 0].tolist() == (times >= middle).tolist()
    assert not (early.labels.known_CT & late.labels.known_CT).any()
    assert (early.labels.known_CT | late.labels.known_CT).equal(whole.labels.known_CT)
    assert not reader.batch(requests).labels.known_CT.any()
    assert whole.labels.label_CT.tolist() == requests.supervision.label.tolist()


def test_a_label_that_never_became_known_never_is(reader: BatchReader, requests: Requests) -> None:
    known = reader.batch(requests, since=0, before=int(Supervision.NEVER)).labels.known_CT
    assert known[:, 1].equal(torch.from_numpy(requests.supervision.label[:, 0] == 1))  # multiple, given a purchase


def test_batches_cover_the_requests_in_order(reader: BatchReader, requests: Requests) -> None:
    batches = list(reader.batches(requests, size=8, since=0, before=2**62))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert torch.cat([batch.time_B for batch in batches]).tolist() == requests.time.tolist()
    assert torch.cat([batch.dense_CF for batch in batches]).tolist() == requests.dense.tolist()
    whole = reader.batch(requests, since=0, before=2**62)
    assert torch.cat([batch.labels.known_CT for batch in batches]).equal(whole.labels.known_CT)
    assert list(reader.batches(requests.slice(0, 0), size=8)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_each_part_is_one_batch(workspace: Workspace, requests: Requests, workers: int) -> None:
    """As many requests as it has, none too; parts are taken no sooner than ``ahead`` says."""
    prefetch = Prefetch.Config(workers=workers, ahead=2)
    made = replace(workspace, prefetch=prefetch).reader({"all": (workspace.engagements, 7)})
    parts = [requests.slice(0, 3), requests.slice(3, 3), requests.slice(3, 4), requests.slice(10, 20)]
    taken: list[int] = []

    def given() -> Iterator[Requests]:
        for number, part in enumerate(parts):
            taken.append(number)
            yield part

    for number, batch in enumerate(made.each(given(), since=0, before=2**62)):
        assert len(taken) <= number + 2
        alone = made.batch(parts[number], since=0, before=2**62)
        assert batch.time_B.equal(alone.time_B) and batch.dense_CF.equal(alone.dense_CF)
        assert batch.labels.known_CT.equal(alone.labels.known_CT) and rows(batch.items) == rows(alone.items)
        assert batch.time_B.tolist() == parts[number].time.tolist()
    assert taken == [0, 1, 2, 3]


def test_keyed_has_one_value_a_key_and_row() -> None:
    codes = keyed(["a", "b"], np.array([[1, 2], [3, 4], [5, 6]]))
    assert rows(codes) == [(1, 2), (3, 4), (5, 6)]
    assert codes.stride() == 3
