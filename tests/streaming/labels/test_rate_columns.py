"""Label rates beside the dense features: against counting by hand, blind to what comes later, kept on disk."""

import errno
import os
import pickle
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import log, log1p
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming import label_parts
from streaming.dataset import Dataset
from streaming.errors import DataError
from streaming.importers.synthetic import Synthetic
from streaming.labels import rate_columns
from streaming.labels.policy import FakeNegative
from streaming.labels.rate_columns import LabelRateColumns
from streaming.labels.rates import key_names, keys_of
from streaming.requests import Requests
from streaming.schema import microseconds
from streaming.workspace import Workspace

DELAY = 3 * 86_400.0
CONFIG = LabelRateColumns.Config(half_life=2.0, strength=3.0)
Read = Callable[[int], Requests]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Labels become known three days after the request: some of a window in the one after."""
    config = Synthetic.Config(users=6, items=12, windows=4, candidates=4, label_delay_seconds=DELAY)
    made = Workspace(config.build(tmp_path_factory.mktemp("late") / "data"))
    assert len(made.engagements.time)  # opened here, its index outlives the cache of any test
    return made


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where columns are kept, empty."""
    monkeypatch.setenv("HYPERCAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "label_rates"


def columns(
    workspace: Workspace, config: LabelRateColumns.Config = CONFIG, *, read: Read | None = None
) -> LabelRateColumns:
    return config.build(dataset=workspace.dataset, items=workspace.items, read=read or workspace.requests)


def counted(made: LabelRateColumns, workspace: Workspace, window: int) -> np.ndarray:
    """The columns without the cache."""
    made.learn_before(window)
    return made.at(keys_of(workspace.requests(window), workspace.items))


def written(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.npy"))


def copied(workspace: Workspace, to: Path) -> Workspace:
    return Workspace(Dataset.open(shutil.copytree(workspace.dataset.path, to)))


def rewrite(file: Path, change: Callable[[list[dict]], None]) -> None:
    table = pq.read_table(file)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)


def keys_by_hand(row: dict, attributes: dict[int, dict]) -> Iterable[list[tuple]]:
    """Of every candidate of a stored request the values of its keys, in the order of their names."""
    user = row["user_id"]
    for item, surface in zip(row["item_id"], row["surface"], strict=True):
        values = list(attributes[item].values())
        keys = [(item,), (user,), (item, surface), (user, surface), (user, item)]
        yield [*keys, *((value,) for value in values), *((user, value) for value in values)]


def by_hand(dataset: Dataset, window: int) -> list[list[float]]:
    """The columns of the window's candidates, counted with dictionaries, one label after another."""
    attributes = {row.pop("item_id"): row for row in dataset.items().to_pylist()}
    rows = [row for made in dataset.windows for row in dataset.requests(made.index).to_pylist()]
    decay = 0.5 ** (1 / CONFIG.half_life)
    found: list[list[float]] = [[] for row in dataset.requests(window).to_pylist() for _ in row["item_id"]]
    for task in ("purchase", "multiple"):
        total: list[float] = [0.0, 0.0]
        counts: dict[tuple[int, tuple], list[float]] = {}
        for row in rows:
            labels, times = row["supervision"][f"label_{task}"], row["supervision"][f"label_time_{task}"]
            for keys, label, time in zip(keys_by_hand(row, attributes), labels, times, strict=True):
                if time is None or microseconds(time) >= dataset.window(window).start:
                    continue
                learned = next(w.index for w in dataset.windows if w.start <= microseconds(time) < w.end)
                weight = decay ** (window - 1 - learned)
                for place in [None, *enumerate(keys)]:
                    count = total if place is None else counts.setdefault(place, [0.0, 0.0])
                    count[0] += weight
                    count[1] += weight * label
        prior = (total[1] + 1) / (total[0] + 2) if total[0] else 0.5
        candidates = [keys for row in dataset.requests(window).to_pylist() for keys in keys_by_hand(row, attributes)]
        for into, keys in zip(found, candidates, strict=True):
            seen = [counts.get(place, (0.0, 0.0)) for place in enumerate(keys)]
            rates = [(y + CONFIG.strength * prior) / (n + CONFIG.strength) for n, y in seen]
            into += [log(rate / (1 - rate)) for rate in rates] + [log1p(n) for n, _ in seen]
    return found


@pytest.mark.parametrize("window", [1, 2, 4])
def test_columns_are_what_counting_by_hand_says(workspace: Workspace, cache: Path, window: int) -> None:
    told = columns(workspace).of(window, workspace.requests(window))
    assert told.dtype == np.float32
    np.testing.assert_allclose(told, by_hand(workspace.dataset, window), rtol=1e-3, atol=1e-3)
    assert told.any() == (window > 1)


def test_every_column_has_a_name(workspace: Workspace) -> None:
    keys = key_names(workspace.dataset.config.item_attributes)
    assert columns(workspace).names == [
        f"label_{kind}/{task}/{key}" for task in ("purchase", "multiple") for kind in ("rate", "count") for key in keys
    ]
    one = columns(workspace, LabelRateColumns.Config(tasks=["multiple"]))
    assert one.names == columns(workspace).names[2 * len(keys) :]
    both = counted(columns(workspace, LabelRateColumns.Config()), workspace, 4)
    assert (counted(one, workspace, 4) == both[:, 2 * len(keys) :]).all()


@settings(max_examples=25)
@given(window=st.integers(2, 4), seed=st.integers(0, 2**32 - 1), earlier=st.booleans())
def test_what_becomes_known_from_a_window_on_does_not_change_it(
    workspace: Workspace, window: int, seed: int, earlier: bool
) -> None:
    """Laws L2 and L5; with ``earlier``, a label that was known in time is turned as well, and shows."""
    start, random = workspace.dataset.window(window).start, np.random.default_rng(seed)

    def changed(made: int) -> Requests:
        requests = workspace.requests(made)
        told = requests.supervision
        late = told.known_time >= start
        shape = told.label.shape
        label = np.where(late, random.integers(0, 2, shape), told.label).astype(np.float32)
        another = start + random.integers(0, 10**12, shape)
        time = np.where(late, np.where(random.random(shape) < 0.5, another, told.NEVER), told.known_time)
        if earlier and made == 1:
            label[0, 0] = 1 - label[0, 0]
            time[0, 0] = start - 1
        return replace(requests, supervision=replace(told, label=label, known_time=time))

    told, before = columns(workspace, read=changed), columns(workspace)
    same = counted(told, workspace, window) == counted(before, workspace, window)
    assert same.all() != earlier


def test_windows_that_are_not_there_yet_are_not_missed(workspace: Workspace, cache: Path) -> None:
    """As of a stream: the same file serves before and after the data set has grown."""
    config = workspace.dataset.config
    for window in (2, 3):
        boundaries = config.window_boundaries[: window + 1]
        grown = Dataset(path=workspace.dataset.path, config=config.model_copy(update={"window_boundaries": boundaries}))
        assert grown.windows[-1].index == window
        requests = workspace.requests(window)
        first = CONFIG.build(dataset=grown, items=workspace.items, read=workspace.requests).of(window, requests)
        known = written(cache)
        assert (columns(workspace).of(window, requests) == first).all()
        assert written(cache) == known


def test_windows_may_be_asked_for_in_any_order(workspace: Workspace) -> None:
    made = columns(workspace)
    for window in (4, 2, 3, 3, 1, 4):
        assert (counted(made, workspace, window) == counted(columns(workspace), workspace, window)).all()


def test_what_was_cut_short_counts_nothing_twice(workspace: Workspace) -> None:
    calls: list[int] = []

    def interrupted(window: int) -> Requests:
        calls.append(window)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return workspace.requests(window)

    made = columns(workspace, read=interrupted)
    with pytest.raises(KeyboardInterrupt):
        made.learn_before(4)
    assert (counted(made, workspace, 4) == counted(columns(workspace), workspace, 4)).all()


def test_columns_are_made_once(workspace: Workspace, cache: Path) -> None:
    def never(window: int) -> Requests:
        raise AssertionError

    requests = workspace.requests(3)
    first = columns(workspace).of(3, requests)
    (file,) = written(cache)
    assert (columns(workspace, read=never).of(3, requests) == first).all()
    assert np.load(file).dtype == np.float16
    with pytest.raises(AssertionError):
        columns(workspace, read=never).of(4, workspace.requests(4))
    assert written(cache) == [file]


@pytest.mark.parametrize("damage", ["", "not an array", "half", "whole of another window"])
def test_a_damaged_file_gives_one_clear_error(workspace: Workspace, cache: Path, damage: str) -> None:
    requests = workspace.requests(3)
    whole = columns(workspace).of(3, requests)
    (file,) = written(cache)
    if damage == "half":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage.startswith("whole"):
        np.save(file, whole[:-1].astype(np.float16))
    else:
        file.write_text(damage)
    with pytest.raises(DataError, match=r"\.npy: .* Delete it; it is made anew when it is needed\."):
        columns(workspace).of(3, requests)
    file.unlink()
    assert (columns(workspace).of(3, requests) == whole).all()


def test_a_cache_that_cannot_be_written_gives_one_clear_error(
    workspace: Workspace, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = workspace.requests(3)

    def full(path: Path, write: Callable[[Path], None]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    made = columns(workspace)
    with monkeypatch.context() as patch:
        patch.setattr(rate_columns, "write_file", full)
        with pytest.raises(DataError, match=r"cannot be written there \(No space left"):
            made.of(3, requests)
    assert made.of(3, requests).shape[0] == len(requests.item)


@pytest.mark.parametrize(
    "change", [{"half_life": 3.0}, {"strength": 4.0}, {"tasks": ["purchase"]}, {"tasks": ["multiple", "purchase"]}]
)
def test_other_settings_have_another_file(workspace: Workspace, cache: Path, change: dict) -> None:
    requests = workspace.requests(3)
    columns(workspace).of(3, requests)
    columns(workspace, CONFIG.model_copy(update=change)).of(3, requests)
    assert len(written(cache)) == 2


def test_other_data_has_another_file(workspace: Workspace, cache: Path, tmp_path: Path) -> None:
    def asked(made: Workspace) -> np.ndarray:
        return columns(made).of(3, made.requests(3))

    def turned(rows: list[dict]) -> None:
        labels = rows[0]["supervision"]["label_purchase"]
        labels[0] = 1.0 - labels[0]

    def moved(rows: list[dict]) -> None:
        for row in rows:
            row["department"] = row["department"] + "!"

    copy = copied(workspace, tmp_path / "copy")
    before = asked(workspace)
    assert (asked(copy) == before).all() and len(written(cache)) == 1
    rewrite(copy.dataset.request_file(3), turned)  # known in window 3 at the earliest
    assert (asked(Workspace(copy.dataset)) == before).all() and len(written(cache)) == 2
    rewrite(copy.dataset.request_file(1), turned)
    assert (asked(Workspace(copy.dataset)) != before).any() and len(written(cache)) == 3
    rewrite(copy.dataset.path / "items.parquet", moved)
    asked(Workspace(copy.dataset))
    assert len(written(cache)) == 4
    shorter = [task.model_copy(update={"delay_seconds": 0.0}) for task in copy.dataset.config.tasks]
    dataset = Dataset(path=copy.dataset.path, config=copy.dataset.config.model_copy(update={"tasks": shorter}))
    asked(Workspace(dataset))
    assert len(written(cache)) == 5


def test_label_parts_count_from_the_window_after_theirs(workspace: Workspace, cache: Path, tmp_path: Path) -> None:
    """They come later than the requests that they are about, and change what was kept for no window before."""
    copy = copied(workspace, tmp_path / "copy")
    window = copy.dataset.window(2)
    row = next(row for row in copy.dataset.requests(1).to_pylist() if microseconds(row["time"]) > window.start - 8e10)
    place, known = row["supervision"]["label_purchase"].index(0.0), window.start + 1

    def asked() -> list[np.ndarray]:
        made = Workspace(copy.dataset)
        return [columns(made).of(index, made.requests(index)) for index in (2, 3)]

    before = asked()
    late = {
        "request_id": row["request_id"],
        "request_time": microseconds(row["time"]),
        "candidate_id": row["candidate_id"][place],
        "task": 0,
        "label": 1.0,
        "label_time": known,
    }
    table = pa.table({name: pa.array([value]) for name, value in late.items()}).cast(label_parts.SCHEMA)
    copy.dataset.label_file(2).parent.mkdir(parents=True)
    pq.write_table(table, copy.dataset.label_file(2))
    of_2, of_3 = asked()
    assert (of_2 == before[0]).all() and (of_3 != before[1]).any()
    assert len(written(cache)) == 3


def attributed(workspace: Workspace) -> Workspace:
    """The same data where ``purchase`` counts for three days: what converts is known at once, and the rest is open."""

    class Open(Workspace):
        def _stored(self, window: int) -> Requests:
            requests = super()._stored(window)
            told = requests.supervision
            label, time = told.label.copy(), told.known_time.copy()
            time[:, 0] = np.where(label[:, 0] == 1, requests.time[requests.owner] + 1, told.NEVER)
            return replace(requests, supervision=replace(told, label=label, known_time=time))

    tasks = [task.model_copy() for task in workspace.dataset.config.tasks]
    tasks[0] = tasks[0].model_copy(update={"attribution_seconds": DELAY})
    config = workspace.dataset.config.model_copy(update={"tasks": tasks})
    return Open(Dataset(path=workspace.dataset.path, config=config))


def test_open_labels_are_0_once_they_stay_so_whatever_training_does(workspace: Workspace, cache: Path) -> None:
    wait = attributed(workspace).with_label_rates(CONFIG)
    requests, end = wait.requests(4), wait.dataset.window(4).start
    stored = len(wait.dataset.config.dense)
    named = dict(zip(wait.inputs.dense, requests.dense.T, strict=True))
    for user in np.unique(requests.user_id).tolist():
        shown = 0.0
        for made in (1, 2, 3):
            earlier = wait.requests(made)
            time = earlier.time[earlier.owner]
            told = earlier.supervision
            time = np.where(told.known_time[:, 0] == told.NEVER, time + int(DELAY * 1e6), told.known_time[:, 0])
            for known in time[(earlier.user_id[earlier.owner] == user) & (time < end)].tolist():
                learned = next(w.index for w in wait.dataset.windows if w.start <= known < w.end)
                shown += 0.5 ** ((3 - learned) / CONFIG.half_life)
        mine = requests.user_id[requests.owner] == user
        np.testing.assert_allclose(named["label_count/purchase/user"][mine], log1p(shown), rtol=1e-3)
    assert (named["label_rate/purchase/user"] < 2).all()
    eager = replace(wait, labels={"purchase": FakeNegative()})
    for made in (2, 4):
        assert (eager.requests(made).dense[:, stored:] == wait.requests(made).dense[:, stored:]).all()


def test_an_unknown_task_is_refused(workspace: Workspace) -> None:
    with pytest.raises(DataError, match=r"label_rates: .* has no task 'click'; allowed are purchase, multiple\."):
        columns(workspace, LabelRateColumns.Config(tasks=["purchase", "click"]))


def test_a_workspace_has_them_beside_the_dense_features(workspace: Workspace) -> None:
    made = workspace.with_label_rates(CONFIG)
    assert made.with_label_rates(CONFIG) is made
    assert made.inputs.dense == [*workspace.inputs.dense, *columns(workspace).names]
    for window in workspace.dataset.windows:
        plain, requests = workspace.requests(window.index), made.requests(window.index)
        told = columns(workspace).of(window.index, plain)
        assert requests.dense.dtype == np.float32
        assert (requests.dense == np.concatenate([plain.dense, told], axis=1)).all()
        again = made.with_label_rates(None).requests(window.index)
        assert (again.dense == plain.dense).all()
    for window in made.dataset.windows[1:]:
        for index, requests in made.became_known_in(window):  # as of the window they were made in
            whole = made.requests(index)
            rows = np.isin(whole.request_id[whole.owner], requests.request_id)
            assert (requests.dense == whole.dense[rows]).all()
    assert made.items is workspace.items and made.engagements is workspace.engagements


def test_a_workspace_with_label_rates_can_be_sent_to_another_process(workspace: Workspace) -> None:
    made = workspace.with_label_rates(CONFIG)
    dense = made.requests(3).dense
    sent = pickle.loads(pickle.dumps(made))
    assert (sent.requests(3).dense == dense).all()
    assert (counted(sent.label_rates_before(4), workspace, 4) == counted(columns(workspace), workspace, 4)).all()
