"""Requests in memory say what the file says, however they are cut; labels count when they became known (law L2)."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.catalogue import Catalogue
from streaming.dataset import Dataset, Window
from streaming.importers.synthetic import Synthetic
from streaming.requests import Requests, Supervision, joined
from streaming.schema import microseconds
from streaming.workspace import Workspace

# request -> its candidates; a candidate is (surface, times at which its two labels became known)
NEVER = int(Supervision.NEVER)
CANDIDATE = st.tuples(st.integers(0, 2), st.sampled_from([0, 1, 2, 3, NEVER]), st.sampled_from([0, 1, 2, 3, NEVER]))
MADE = st.lists(st.lists(CANDIDATE, max_size=4), max_size=6)


def made(requests: list[list[tuple[int, int, int]]]) -> Requests:
    candidates = [c for request in requests for c in request]
    rows, total = np.arange(len(requests)), np.arange(len(candidates))
    return Requests(
        request_id=rows + 100,
        user_id=rows % 2,
        user=rows % 2,
        time=rows * 10,
        context=np.stack([rows, -rows], axis=1),
        tags={"odd": rows % 2 == 1},
        offsets=np.cumsum([0, *(len(request) for request in requests)]),
        candidate_id=total,
        item_id=total + 50,
        item=total,
        surface=np.array([c[0] for c in candidates], dtype=np.int64),
        dense=total[:, None].astype(np.float32),
        supervision=Supervision(
            label=np.stack([total % 2, total % 3 == 0], axis=1).astype(np.float32),
            known_time=np.array([c[1:] for c in candidates], dtype=np.int64).reshape(-1, 2),
            weight=total.astype(np.float32),
            stratum=(total % 3).astype(np.int8),
        ),
        history_check=rows * 7,
    )


def content(requests: Requests) -> list[tuple[int, list[int]]]:
    """(request id, ids of its candidates), after checking that every column moved with them."""
    request, candidate = requests.request_id - 100, requests.candidate_id
    supervision = requests.supervision
    assert (requests.user_id == request % 2).all() and (requests.user == request % 2).all()
    assert (requests.time == request * 10).all()
    assert (requests.context == np.stack([request, -request], axis=1)).all()
    assert (requests.tags["odd"] == (request % 2 == 1)).all()
    assert requests.history_check is not None and (requests.history_check == request * 7).all()
    assert (requests.item_id == candidate + 50).all() and (requests.item == candidate).all()
    assert (requests.dense[:, 0] == candidate).all() and requests.dense.shape == (len(candidate), 1)
    assert (supervision.label == np.stack([candidate % 2, candidate % 3 == 0], axis=1)).all()
    assert (supervision.weight == candidate).all() and (supervision.stratum == candidate % 3).all()
    assert requests.offsets[0] == 0 and requests.offsets[-1] == len(candidate) == len(requests.surface)
    owned = [candidate[a:b].tolist() for a, b in zip(requests.offsets[:-1], requests.offsets[1:], strict=True)]
    assert requests.owner.tolist() == [row for row, owns in enumerate(owned) for _ in owns]
    return list(zip(requests.request_id.tolist(), owned, strict=True))


@given(MADE)
def test_on_surface(raw: list[list[tuple[int, int, int]]]) -> None:
    requests = made(raw)
    surface = dict(enumerate(requests.surface.tolist()))
    for index in range(3):
        kept = [(r, [c for c in owned if surface[c] == index]) for r, owned in content(requests)]
        assert content(requests.on_surface(index)) == [(r, owned) for r, owned in kept if owned]


@given(MADE, st.lists(st.integers(0, 5), max_size=8))
def test_take_in_any_order_and_more_than_once(raw: list[list[tuple[int, int, int]]], wanted: list[int]) -> None:
    requests = made(raw)
    index = [i for i in wanted if i < len(requests)]
    taken = requests.take(np.array(index, dtype=np.int64))
    assert content(taken) == [content(requests)[i] for i in index]


@given(MADE, st.integers(0, 6), st.integers(0, 8))
def test_slice(raw: list[list[tuple[int, int, int]]], start: int, length: int) -> None:
    requests = made(raw)
    assert content(requests.slice(start, start + length)) == content(requests)[start : start + length]


@given(MADE)
def test_impressions_are_requests_of_one_candidate(raw: list[list[tuple[int, int, int]]]) -> None:
    requests = made(raw)
    alone = [(r, [c]) for r, owned in content(requests) for c in owned]
    assert content(requests.impressions()) == alone


@given(MADE, st.integers(0, 3), st.integers(1, 2))
def test_learned_in(raw: list[list[tuple[int, int, int]]], start: int, length: int) -> None:
    window = Window(index=0, start=start, end=start + length)
    requests = made(raw)
    expected = [
        row
        for row, given_ in zip(content(requests), raw, strict=True)
        if any(start <= time < start + length for _, *times in given_ for time in times)
    ]
    assert content(requests.learned_in(window)) == expected


def test_known_includes_the_start_and_not_the_end() -> None:
    supervision = made([[(0, 1, 2), (0, 3, NEVER)]]).supervision
    assert supervision.known(since=1, before=3).tolist() == [[True, True], [False, False]]
    assert not supervision.known(since=0, before=0).any()
    assert not supervision.known(since=0, before=NEVER)[1, 1]  # never is never


def test_read_equals_the_file(tiny_dataset: Dataset) -> None:
    workspace = Workspace(tiny_dataset)
    for window in tiny_dataset.windows[:2]:
        requests, table = workspace.requests(window.index), tiny_dataset.requests(window.index).to_pylist()
        assert requests.request_id.tolist() == [row["request_id"] for row in table]
        assert requests.user_id.tolist() == [row["user_id"] for row in table]
        assert requests.time.tolist() == [microseconds(row["time"]) for row in table]
        assert requests.tags["split_trip"].tolist() == [row["tag_split_trip"] for row in table]
        for name in ("candidate_id", "item_id", "surface", "dense"):
            assert getattr(requests, name).tolist() == [value for row in table for value in row[name]]
        said = [row["supervision"] for row in table]
        for index, task in enumerate(("purchase", "multiple")):
            label = [value for row in said for value in row[f"label_{task}"]]
            time = [value for row in said for value in row[f"label_time_{task}"]]
            assert requests.supervision.label[:, index].tolist() == [value or 0.0 for value in label]
            assert requests.supervision.known_time[:, index].tolist() == [
                NEVER if value is None else microseconds(value) for value in time
            ]
        assert (workspace.items.ids[requests.item] == requests.item_id).all()
        assert (workspace.users.ids[requests.user] == requests.user_id).all()
        assert requests.context.shape == (len(requests), 3)


def test_an_empty_window_can_be_read(tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tiny_dataset.requests(1).slice(0, 0)
    dataset = Dataset(path=tiny_dataset.path, config=tiny_dataset.config)
    monkeypatch.setattr(dataset, "requests", lambda index: empty)
    requests = Workspace(dataset).requests(1)
    assert len(requests) == len(requests.item) == 0
    assert len(requests.on_surface(0)) == len(requests.learned_in(dataset.windows[0])) == 0


@given(MADE, st.lists(st.integers(0, 6), max_size=3))
def test_parts_that_were_cut_are_joined_again(raw: list[list[tuple[int, int, int]]], cuts: list[int]) -> None:
    requests = made(raw)
    bounds = sorted([0, *(min(cut, len(requests)) for cut in cuts), len(requests)])
    parts = [requests.slice(start, stop) for start, stop in pairwise(bounds)]
    whole = joined(parts)
    assert content(whole) == content(requests)
    assert (whole.supervision.known_time == requests.supervision.known_time).all()
    assert (whole.surface == requests.surface).all()
    assert whole.dense.dtype == np.float32 and whole.supervision.stratum.dtype == np.int8
    backwards = joined(parts[::-1])
    assert content(backwards) == [row for part in parts[::-1] for row in content(part)]
    unchecked = joined([replace(part, history_check=None) for part in parts])
    assert unchecked.history_check is None and len(unchecked) == len(requests)


@pytest.fixture(scope="module")
def delayed(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Labels that become known three days after their request."""
    config = Synthetic.Config(users=12, windows=4, label_delay_seconds=3 * 86_400)
    return Workspace(config.build(tmp_path_factory.mktemp("delayed") / "data"))


def test_each_label_is_learned_once_in_the_window_in_which_it_became_known(delayed: Workspace) -> None:
    learned: dict[tuple[int, int], int] = {}
    for window in delayed.dataset.windows:
        for _, requests in delayed.learned_in(window):
            known = requests.supervision.known(since=window.start, before=window.end)[:, 0]
            assert (requests.supervision.known_time[known, 0] < window.end).all()
            keys = zip(requests.request_id[requests.owner][known], requests.candidate_id[known], strict=True)
            for key in keys:
                learned[key] = learned.get(key, 0) + 1
    last = delayed.dataset.windows[-1].end
    expected = set()
    for window in delayed.dataset.windows:
        requests = delayed.requests(window.index)
        in_time = requests.supervision.known_time[:, 0] < last
        expected |= set(zip(requests.request_id[requests.owner][in_time], requests.candidate_id[in_time], strict=True))
    assert set(learned) == expected
    assert set(learned.values()) == {1}


def test_earlier_windows_come_back_oldest_first(delayed: Workspace) -> None:
    first, second, *_ = delayed.dataset.windows
    assert [index for index, _ in delayed.learned_in(first)] == [first.index]
    assert [index for index, _ in delayed.learned_in(second)] == [first.index, second.index]


def test_without_delay_only_the_own_window(tiny_dataset: Dataset) -> None:
    for window in tiny_dataset.windows:
        assert [index for index, _ in Workspace(tiny_dataset).learned_in(window)] == [window.index]


def test_unlisted_items_and_users_get_the_unknown_row(tiny_dataset: Dataset) -> None:
    items = Catalogue.read(tiny_dataset.items().slice(0, 5), id_column="item_id", attributes=[])
    workspace = Workspace(tiny_dataset)
    workspace.__dict__["items"] = items  # a catalogue that lists five items only
    requests = workspace.requests(1)
    listed = np.isin(requests.item_id, items.ids)
    assert (requests.item[~listed] == 5).all() and (requests.item[listed] < 5).all()
