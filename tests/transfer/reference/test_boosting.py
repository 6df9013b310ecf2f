"""LightGBM under the laws: change what it must not know, and no prediction changes; change what it may, and some do."""

import builtins
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydantic
import pytest

from streaming.dataset import Dataset
from streaming.errors import ConfigError
from streaming.importers.synthetic import Synthetic
from streaming.requests import Requests
from streaming.schema import microseconds
from streaming.workspace import Workspace
from tests.transfer.reference.conftest import TASK, Row
from transfer import predictions, sums
from transfer.predictions import Column
from transfer.reference.boosting import LIGHTGBM, LIGHTGBM_TREATED, Boosting

COLUMN = Column(TASK, LIGHTGBM, 0)
TREATED = Column(TASK, LIGHTGBM_TREATED, 0)
Boost = Callable[..., Path]
Changed = Callable[..., Dataset]


def said(run: Path, window: int, column: Column = COLUMN) -> np.ndarray:
    tables = [predictions.read(run, surface=s, window=window) for s in predictions.surfaces(run)]
    return np.concatenate([table[column.name].to_numpy() for table in tables])


def same(one: Path, other: Path, window: int) -> bool:
    return bool(np.array_equal(said(one, window), said(other, window)))


def late_metrics(run: Path, dataset: Dataset, column: Column) -> dict[str, float]:
    late = [sums.of_window(run, surface=s, window=w, task=TASK) for s in dataset.config.surfaces for w in (4, 5, 6)]
    return sums.combine(late).metrics()[column]


def flip(row: Row) -> None:
    labels = row["supervision"][f"label_{TASK}"]
    labels[:] = [None if label is None else 1 - label for label in labels]


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Labels become known three days after the request."""
    path = tmp_path_factory.mktemp("late") / "data"
    return Synthetic.Config(users=16, items=24, windows=5, label_delay_seconds=3 * 86_400).build(path)


def test_it_learns(tiny_dataset: Dataset, boost: Boost) -> None:
    values = late_metrics(boost(tiny_dataset), tiny_dataset, COLUMN)
    assert values["ne"] < 0.85 and values["auc"] > 0.7  # preferences alone decide: 0.6 against 0.05


def test_tables_are_whole(tiny_dataset: Dataset, workspace: Workspace, boost: Boost) -> None:
    run = boost(tiny_dataset, windows=2)
    for surface, window in itertools.product(tiny_dataset.config.surfaces, (1, 2)):
        table = predictions.read(run, surface=surface, window=window)
        own = workspace.requests(window).on_surface(tiny_dataset.config.surfaces.index(surface))
        assert table["candidate_id"].to_pylist() == own.candidate_id.tolist()
        assert table["request_id"].to_pylist() == own.request_id[own.owner].tolist()
        known = own.supervision.known_time[:, 0] < own.supervision.NEVER
        np.testing.assert_array_equal(
            table[f"label_{TASK}"].to_numpy(), np.where(known, own.supervision.label[:, 0], np.nan)
        )


def test_before_anything_is_known_it_says_so(tiny_dataset: Dataset, boost: Boost) -> None:
    run = boost(tiny_dataset, windows=2)
    assert set(said(run, 1).tolist()) == {0.5}
    assert len(set(said(run, 2).tolist())) == 1 and said(run, 2)[0] < 0.5


def test_same_seed_same_bits(tiny_dataset: Dataset, boost: Boost) -> None:
    one, again, other = (boost(tiny_dataset, windows=4, seed=seed) for seed in (0, 0, 1))
    assert same(one, again, 4)
    assert not np.array_equal(said(one, 4), said(other, 4, Column(TASK, LIGHTGBM, 1)))


def test_threads_change_no_bit(tiny_dataset: Dataset, boost: Boost, small: Boosting.Config) -> None:
    few = small.model_copy(update={"rounds": 4})
    two = few.model_copy(update={"threads": 2})
    assert same(boost(tiny_dataset, windows=4, config=few), boost(tiny_dataset, windows=4, config=two), 4)


def test_a_stopped_run_goes_on_from_its_fits(
    tiny_dataset: Dataset, workspace: Workspace, small: Boosting.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(rounds: int) -> list[np.ndarray]:
        config = small.model_copy(update={"rounds": rounds})
        made = config.build(workspace=workspace, task=TASK, seed=0, run=tmp_path)
        made.predict_all(tiny_dataset.windows[:4])
        return [said(tmp_path, window.index) for window in tiny_dataset.windows[:4]]

    import lightgbm

    first = run(4)
    monkeypatch.setattr(lightgbm, "train", lambda *arguments, **named: pytest.fail("fitted again"))
    for one, other in zip(run(4), first, strict=True):
        assert np.array_equal(one, other)
    with pytest.raises(pytest.fail.Exception, match="fitted again"):
        run(5)  # other settings, other trees


def test_a_window_without_requests(workspace: Workspace, small: Boosting.Config, tmp_path: Path) -> None:
    boosting = small.build(workspace=workspace, task=TASK, seed=0, run=tmp_path)
    none = workspace.requests(1).slice(0, 0)
    assert boosting.predict(none).shape == (0,)
    boosting.predict_all(workspace.dataset.windows[:4])
    assert boosting.predict(none).shape == (0,)


def test_old_windows_are_forgotten(tiny_dataset: Dataset, boost: Boost, small: Boosting.Config) -> None:
    short = small.model_copy(update={"past_windows": 2})
    one, other = boost(tiny_dataset, windows=5), boost(tiny_dataset, windows=5, config=short)
    assert [same(one, other, window) for window in (3, 4, 5)] == [True, True, False]


def test_l4_labels_of_a_window_change_nothing_before_the_next(
    tiny_dataset: Dataset, boost: Boost, changed: Changed
) -> None:
    def later(window: int, row: Row) -> None:
        if window >= 4:
            flip(row)

    one, other = boost(tiny_dataset, windows=5), boost(changed(tiny_dataset, requests=later), windows=5)
    assert [same(one, other, window) for window in (1, 2, 3, 4, 5)] == [True, True, True, True, False]


def test_l2_labels_known_later_change_nothing(late: Dataset, boost: Boost, changed: Changed) -> None:
    start, end = (microseconds(late.config.window_boundaries[i]) for i in (3, 4))

    def unknown_yet(window: int, row: Row) -> None:
        times = row["supervision"][f"label_time_{TASK}"]
        if window == 3 and all(time is None or microseconds(time) >= start for time in times):
            flip(row)

    def known(window: int, row: Row) -> None:
        times = row["supervision"][f"label_time_{TASK}"]
        if window == 3 and all(time is None or microseconds(time) < start for time in times):
            flip(row)

    assert start < end
    base = boost(late)
    not_yet, already = boost(changed(late, requests=unknown_yet)), boost(changed(late, requests=known))
    assert same(base, not_yet, 4) and not same(base, not_yet, 5)
    assert not same(base, already, 4)


def test_l6_a_candidate_alone_in_any_order(
    tiny_dataset: Dataset, workspace: Workspace, small: Boosting.Config, tmp_path: Path
) -> None:
    boosting = small.build(workspace=workspace, task=TASK, seed=0, run=tmp_path)
    boosting.predict_all(tiny_dataset.windows[:4])
    requests = workspace.requests(5)
    whole = boosting.predict(requests)
    assert len(set(whole.tolist())) > 50
    chosen = np.random.default_rng(0).permutation(len(requests))[:20]
    shuffled = boosting.predict(requests.take(chosen))
    rows = np.concatenate([np.arange(requests.offsets[r], requests.offsets[r + 1]) for r in chosen])
    np.testing.assert_array_equal(shuffled, whole[rows])
    for surface in range(3):
        np.testing.assert_array_equal(
            boosting.predict(requests.on_surface(surface)), whole[requests.surface == surface]
        )


def test_a_teacher_that_knows_is_listened_to(
    tiny_dataset: Dataset, boost: Boost, teach: Callable[..., Path], small: Boosting.Config
) -> None:
    def knows(requests: Requests) -> np.ndarray:
        return np.nan_to_num(2.0 * requests.supervision.label[:, 0] - 1.0)

    def ne_of(run: Path, column: Column) -> float:
        return late_metrics(run, tiny_dataset, column)["ne"]

    alone = ne_of(boost(tiny_dataset), COLUMN)
    config = small.model_copy(update={"categories": False})
    taught = boost(tiny_dataset, config=config, teacher=teach(knows))
    misled = boost(tiny_dataset, config=config, teacher=teach(lambda requests: np.zeros(len(requests.item))))
    assert ne_of(taught, TREATED) < 0.2 * alone
    assert ne_of(misled, TREATED) > 0.8 * alone


def test_what_the_teacher_says_later_changes_nothing_before(
    tiny_dataset: Dataset, boost: Boost, teach: Callable[..., Path]
) -> None:
    start = tiny_dataset.window(4).start

    def later(requests: Requests) -> np.ndarray:
        moved = requests.time[requests.owner] >= start
        return requests.candidate_id % 97 / 97 + moved

    one = boost(tiny_dataset, windows=4, teacher=teach(lambda requests: requests.candidate_id % 97 / 97))
    other = boost(tiny_dataset, windows=4, teacher=teach(later))
    equal = [np.array_equal(said(one, w, TREATED), said(other, w, TREATED)) for w in (1, 2, 3, 4)]
    assert equal == [True, True, True, False]


def test_unknown_task(workspace: Workspace, small: Boosting.Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no task 'click'; the data set has purchase, multiple"):
        small.build(workspace=workspace, task="click", seed=0, run=tmp_path)


def test_without_the_package(
    workspace: Workspace, small: Boosting.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "lightgbm":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'hypercast-platform\[lightgbm\]'"):
        small.build(workspace=workspace, task=TASK, seed=0, run=tmp_path)


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="num_leaves"):
        Boosting.Config(num_leaves=31)


def test_labels_of_1_that_are_known_sooner_than_those_of_0(attributed: Dataset, boost: Boost) -> None:
    """They count once labels of 0 of their time are known: the newest of them alone would say that all is bought."""
    run = boost(attributed)
    assert len(np.unique(said(run, 6))) > 10
    values = late_metrics(run, attributed, COLUMN)
    assert 0.4 < values["calibration"] < 1.6 and values["auc"] > 0.6, values
