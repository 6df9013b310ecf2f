"""The online state says of every stored request what its importer wrote, and knows nothing of what comes after."""

import random
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hypercast.serving.features.asked import Asked, AskedBatches, merge
from hypercast.serving.features.question import Question
from hypercast.serving.features.state import FeatureState, QuestionError
from streaming.dataset import Dataset, read_parquet
from streaming.errors import DataError
from streaming.requests import Requests
from streaming.workspace import Workspace
from tests.hypercast.serving.replay import engagements_of, questions_of
from tests.streaming.importers.mapping.shop import mapping, shop_log, write_csv

Event = tuple[int, int, int, int, int]  # user, item, surface, action, time after the data set's end

FIRST = 3
"""Window from which on the state is fed; before, it is opened on the log."""


def bits_apart(one: np.ndarray, other: np.ndarray) -> int:
    """How many float32 lie between the numbers furthest apart."""
    return int(np.abs(one.view(np.int32).astype(np.int64) - other.view(np.int32)).max(initial=0))


def by_surface(requests: Requests, surfaces: int) -> list[Requests]:
    return [requests.on_surface(surface) for surface in range(surfaces)]


def replayed(workspace: Workspace, state: FeatureState, window: int, chunk: int) -> list[tuple[Requests, Asked]]:
    """Ask every stored request of a window again, in order of time, feeding the window's engagements in between."""
    events, at = engagements_of(workspace, window), 0
    order = np.argsort(events["time"], kind="stable")
    events = {name: column[order] for name, column in events.items()}
    said = []
    requests = workspace.requests(window)
    for start in range(len(requests)):
        stored = requests.slice(start, start + 1)
        # Events of the request's own time are known already, as those of one basket are; they must not be seen.
        until = int(np.searchsorted(events["time"], stored.time[0], side="right"))
        while at < until:
            state.observe({name: column[at : min(at + chunk, until)] for name, column in events.items()})
            at = min(at + chunk, until)
        for part in by_surface(stored, len(workspace.inputs.surfaces)):
            if len(part):
                said.append((part, state.requests(questions_of(workspace, part, given=state.given))))
    state.observe({name: column[at:] for name, column in events.items()})
    return said


def check_same(workspace: Workspace, stored: Requests, asked: Asked) -> None:
    for name in ("request_id", "user_id", "user", "time", "context", "offsets", "candidate_id", "item_id", "item"):
        np.testing.assert_array_equal(getattr(asked, name), getattr(stored, name), err_msg=name)
    np.testing.assert_array_equal(asked.surface, stored.surface)
    assert bits_apart(asked.dense, stored.dense) <= 1
    reader = workspace.reader({"all": (workspace.engagements, 16)})
    batch = AskedBatches(workspace=workspace, histories={"all": (None, 16)}).batch(asked)
    whole = reader.batch(stored)
    for name in ("item_L", "surface_L", "action_L", "time_L", "offsets"):
        assert torch.equal(getattr(batch.history["all"], name), getattr(whole.history["all"], name)), name
    assert torch.equal(batch.item_C, whole.item_C) and torch.equal(batch.items.values(), whole.items.values())


@pytest.mark.parametrize("chunk", [1, 64])
def test_every_stored_request_is_asked_again(workspace: Workspace, chunk: int) -> None:
    first = workspace.dataset.window(FIRST)
    state = FeatureState.open(workspace, as_of=first.start)
    assert state.given == ["stores_promoting"]
    pairs = replayed(workspace, state, FIRST, chunk) + replayed(workspace, state, FIRST + 1, chunk)
    assert len(pairs) > 100
    for stored, asked in pairs:
        check_same(workspace, stored, asked)
    together = merge([asked for _, asked in pairs[:9]])
    np.testing.assert_array_equal(together.dense, np.concatenate([asked.dense for _, asked in pairs[:9]]))
    np.testing.assert_array_equal(together.take(np.array([4, 2])).past[1].time, pairs[2][1].past[0].time)


def test_an_import_by_mapping_is_asked_again(tmp_path: Path) -> None:
    write_csv(shop_log(), tmp_path / "log.csv")
    workspace = Workspace(mapping(tmp_path).build(tmp_path / "data"))
    window = workspace.dataset.windows[-2]
    state = FeatureState.open(workspace, as_of=window.start)
    assert "surface_item_popularity" in workspace.dataset.config.dense and not state.given
    pairs = replayed(workspace, state, window.index, 5)
    assert len(pairs) > 20
    for stored, asked in pairs:
        assert bits_apart(asked.dense, stored.dense) <= 1


# Seconds 0 to 40 of one minute: ties, late ones and users and items that nobody knows, all the time.
seconds = st.integers(0, 40).map(lambda second: second * 1_000_000)
users, item_ids = st.sampled_from([100, 101, 102, 999]), st.sampled_from([1000, 1001, 1007, 1010, 5])
events = st.lists(st.tuples(users, item_ids, st.integers(-1, 2), st.integers(0, 1), seconds), max_size=30)


@given(log=events, size=st.integers(1, 9), order=st.randoms(use_true_random=False), asked=st.lists(seconds, max_size=4))
@settings(max_examples=60)
def test_an_engagement_that_comes_late_counts_as_if_it_had_not(
    workspace: Workspace, log: list[Event], size: int, order: random.Random, asked: list[int]
) -> None:
    as_of = workspace.dataset.windows[-1].end
    wide = FeatureState.Config(lateness_seconds=60, rehearsed=0)
    in_time, late = (FeatureState.open(workspace, as_of=as_of, config=wide) for _ in range(2))
    log = sorted(log, key=lambda event: event[4])
    in_time.observe(columns(log, as_of))
    # What one user did at one time keeps its order: it is the order in which it came.
    place = {(event[0], event[4]): order.random() for event in log}
    shuffled = sorted(log, key=lambda event: place[event[0], event[4]])
    for start in range(0, len(shuffled), size):
        late.observe(columns(shuffled[start : start + size], as_of))
    for time in asked:
        said = [state.requests(questions(as_of + time)) for state in (in_time, late)]
        assert bits_apart(said[0].dense, said[1].dense) <= 1
        for one, other in zip(said[0].past, said[1].past, strict=True):
            for mine, theirs in zip(one, other, strict=True):
                np.testing.assert_array_equal(mine, theirs)
            assert (one.time < as_of + time).all()


@given(log=events, future=events, now=seconds)
@settings(max_examples=60)
def test_the_present_and_the_future_change_nothing(
    workspace: Workspace, log: list[Event], future: list[Event], now: int
) -> None:
    as_of = workspace.dataset.windows[-1].end
    config = FeatureState.Config(lateness_seconds=60, rehearsed=0)
    one, other = (FeatureState.open(workspace, as_of=as_of, config=config) for _ in range(2))
    one.observe(columns([event for event in log if event[4] < now], as_of))
    other.observe(columns([*log, *((*event[:4], now + event[4]) for event in future)], as_of))
    said = [state.requests(questions(as_of + now)) for state in (one, other)]
    past = [event for event in log if event[4] < now]
    assert said[0].past[0].time.tolist() == said[1].past[0].time.tolist()
    np.testing.assert_array_equal(said[0].dense, said[1].dense)
    assert sum(len(each.time) for each in said[0].past) >= len({event[0] for event in past} & {100})


def test_a_state_knows_nothing_of_the_windows_after_it(tmp_path: Path, tiny_dataset: Dataset) -> None:
    shutil.copytree(tiny_dataset.path, tmp_path / "data")
    before, mutated = Workspace(tiny_dataset), Workspace(Dataset.open(tmp_path / "data"))
    as_of = tiny_dataset.window(FIRST).start
    for window in tiny_dataset.windows[FIRST - tiny_dataset.windows[0].index :]:
        file = mutated.dataset.engagement_file(window.index)
        pq.write_table(read_parquet(file).slice(0, 5), file)
    one, other = (FeatureState.open(each, as_of=as_of) for each in (before, mutated))
    mine, theirs = (state.requests(questions(as_of + 5)) for state in (one, other))
    np.testing.assert_array_equal(mine.dense, theirs.dense)
    for here, there in zip(mine.past, theirs.past, strict=True):
        np.testing.assert_array_equal(here.time, there.time)
        np.testing.assert_array_equal(here.item, there.item)
    assert mine.dense.any()
    assert len(mine.past[0].time)


def test_what_is_settled_is_not_asked_again(workspace: Workspace) -> None:
    as_of = workspace.dataset.windows[-1].end
    state = FeatureState.open(workspace, as_of=as_of, config=FeatureState.Config(lateness_seconds=5, rehearsed=0))
    assert state.earliest == as_of
    state.requests(questions(as_of + 60_000_000))
    state.observe(columns([(100, 1000, 0, 0, 50_000_000), (100, 1000, 0, 0, 70_000_000)], as_of))
    assert state.earliest == as_of + 55_000_000
    assert len(state.requests(questions(state.earliest)))
    assert state.statistics()["unsettled"] == 1  # only the one that the newest question but five seconds cannot see
    before = state.requests(questions(as_of + 56_000_000))
    assert before.past[0].time[-1] == as_of + 50_000_000
    with pytest.raises(QuestionError, match="lateness_seconds"):
        state.requests(questions(as_of + 54_000_000))
    # A clock that is wrong by years, of an event or of a question alone, settles nothing.
    state.observe(columns([(101, 1000, 0, 0, 10**15)], as_of))
    state.requests(questions(as_of + 61_000_000))
    assert state.statistics()["late"] == 0


def test_users_that_have_to_go_fall_back_on_the_log(workspace: Workspace) -> None:
    as_of = workspace.dataset.windows[-1].end
    state = FeatureState.open(workspace, as_of=as_of, config=FeatureState.Config(users=1, rehearsed=0))
    state.observe(columns([(100, 1000, 0, 0, 1)], as_of))
    assert state.requests(questions(as_of + 2)[:1]).past[0].time[-1] == as_of + 1
    state.requests(questions(as_of + 2)[1:])
    assert state.statistics()["forgotten"] == 1
    known = state.requests(questions(as_of + 2)[:1]).past[0].time
    assert len(known)
    assert known[-1] < as_of


def test_no_more_of_a_user_is_held_than_said(workspace: Workspace) -> None:
    as_of = workspace.dataset.windows[-1].end
    state = FeatureState.open(workspace, as_of=as_of, config=FeatureState.Config(events=20, rehearsed=0))
    held = []
    for second in range(50):
        state.observe(columns([(100, 1000, 0, 0, second)], as_of))
        held.append(len(state.requests(questions(as_of + 60)[:1]).past[0].time))
    assert max(held) == 20 and min(held[20:]) >= 18
    last = state.requests(questions(as_of + 60)[:1]).past[0].time
    assert last.tolist() == list(range(as_of + 50 - len(last), as_of + 50))


def test_what_was_given_out_never_changes(workspace: Workspace) -> None:
    as_of = workspace.dataset.windows[-1].end
    state = FeatureState.open(workspace, as_of=as_of)
    state.observe(columns([(100, 1000, 0, 0, 10), (100, 1001, 0, 0, 20)], as_of))
    past = state.requests(questions(as_of + 30)[:1]).past[0]
    copy = [column.copy() for column in past]
    state.observe(columns([(100, 1007, 0, 1, 5), (100, 1007, 0, 1, 15), (100, 1007, 0, 1, 25)], as_of))
    for mine, theirs in zip(past, copy, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert (state.requests(questions(as_of + 30)[:1]).past[0].time[-5:] - as_of).tolist() == [5, 10, 15, 20, 25]


def test_threads_that_ask_see_whole_pasts(workspace: Workspace) -> None:
    as_of = workspace.dataset.windows[-1].end
    state = FeatureState.open(workspace, as_of=as_of)
    said: list[Asked] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            said.append(state.requests(questions(as_of + 10**6)[:1]))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    rng = np.random.default_rng(0)
    for second in rng.permutation(300).tolist():
        state.observe(columns([(100, 1000, 0, 0, second), (100, 1007, 1, 0, second)], as_of))
    done.set()
    for thread in threads:
        thread.join()
    said.append(state.requests(questions(as_of + 10**6)[:1]))
    count = workspace.dataset.config.dense.index("user_item_count")
    known = workspace.items.rows(np.array([1000, 1007]))
    for asked in said:
        past = asked.past[0]
        assert (np.diff(past.time) >= 0).all()
        own = [np.log1p((past.item == item).sum()) for item in known]
        np.testing.assert_array_equal(asked.dense[:, count], np.array(own, np.float32))
    assert len(said[-1].past[0].time) - len(said[0].past[0].time) <= 600
    assert (said[-1].past[0].time >= as_of).sum() == 600


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"surface": "elsewhere"}, "no surface 'elsewhere'"),
        ({"context": {"store": 1}}, "expected .*'hour'.*null where unknown"),
        ({"dense": {}}, "cannot be derived"),
        ({"dense": {"stores_promoting": np.ones(2, np.float32), "user_count": np.ones(2, np.float32)}}, "expected"),
        ({"dense": {"stores_promoting": np.ones(3, np.float32)}}, "one a candidate"),
    ],
)
def test_questions_that_have_no_answer(workspace: Workspace, change: dict[str, Any], says: str) -> None:
    state = FeatureState.open(workspace, as_of=workspace.dataset.windows[-1].end)
    question = replace(questions(workspace.dataset.windows[-1].end)[0], **change)
    with pytest.raises(QuestionError, match=says):
        state.requests([question])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"surface": np.array([7])}, "row 0 has surface 7"),
        ({"action": np.array([-1])}, "row 0 has action -1"),
        ({"time": np.array([1.5])}, "expected are integers"),
        ({"time": np.array([1, 2])}, "one of each"),
        ({"time": None}, "column 'time' is missing"),
    ],
)
def test_engagements_that_are_none(workspace: Workspace, change: dict[str, Any], says: str) -> None:
    state = FeatureState.open(workspace, as_of=workspace.dataset.windows[-1].end)
    events = {**columns([(100, 1000, 0, 0, 1)], 0), **change}
    with pytest.raises(DataError, match=says):
        state.observe({name: column for name, column in events.items() if column is not None})
    assert state.statistics()["observed"] == 0


def test_a_log_that_lacks_what_the_importer_saw_is_found_out(tmp_path: Path, tiny_dataset: Dataset) -> None:
    folder = tmp_path / "data"
    shutil.copytree(tiny_dataset.path, folder)
    for path in folder.rglob("part-0.parquet"):
        table = read_parquet(path)
        pq.write_table(table.filter(pc.field("user_id") != 100), path)  # what an import of some users holds
    workspace = Workspace(Dataset.open(folder))
    end = workspace.dataset.windows[-1].end
    popularities = ["item_popularity", "category_popularity", "type_popularity"]
    with pytest.raises(DataError, match=rf"given: \[{', '.join(popularities)}\]"):
        FeatureState.open(workspace, as_of=end)
    state = FeatureState.open(workspace, as_of=end, config=FeatureState.Config(given=popularities))
    assert state.given == [*popularities, "stores_promoting"]
    with pytest.raises(DataError, match="allowed are"):
        FeatureState.open(workspace, as_of=end, config=FeatureState.Config(given=["popularity"]))


def columns(log: list[Event], start: int) -> dict[str, np.ndarray]:
    user_id, item_id, surface, action, time = np.array(log, dtype=np.int64).reshape(-1, 5).T
    return {"user_id": user_id, "item_id": item_id, "surface": surface, "action": action, "time": start + time}


def questions(time: int) -> list[Question]:
    return [
        Question(
            request_id=number,
            surface="surface_1",
            user_id=user,
            time=time,
            context={"store": 1, "weekday": None, "hour": 3},
            item_ids=np.array([1000, 5, 1006, 1010, 1000]) if user != 100 else np.array([1000, 1007]),
            dense={"stores_promoting": np.ones(5 if user != 100 else 2, dtype=np.float32)},
        )
        for number, user in enumerate([100, 101, 999])
    ]
