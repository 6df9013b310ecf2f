"""Features against counting by hand, and the candidate alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streaming.dataset import Dataset
from streaming.labels.policy import FakeNegative
from streaming.schema import microseconds
from streaming.workspace import Workspace
from transfer.reference.features import DAY, Numbering, TabularFeatures


@pytest.fixture
def features(workspace: Workspace) -> TabularFeatures:
    return TabularFeatures(workspace=workspace, task=0, decay=1.0, strength=5.0)


def column(features: TabularFeatures, values_CF: np.ndarray, name: str) -> np.ndarray:
    return values_CF[:, features.names.index(name)]


def test_names_are_unique_and_fit(features: TabularFeatures, workspace: Workspace) -> None:
    values_CF = features.of(workspace.requests(1))
    assert values_CF.dtype == np.float32
    assert values_CF.shape == (len(workspace.requests(1).item), len(features.names))
    assert len(set(features.names)) == len(features.names)
    assert set(features.categorical) <= set(features.names)


def test_without_categories_there_is_the_surface(features: TabularFeatures, workspace: Workspace) -> None:
    fewer = TabularFeatures(workspace=workspace, task=0, decay=1.0, strength=5.0, categories=False)
    assert fewer.categorical == features.categorical[:1]
    assert set(features.names) - set(fewer.names) == set(features.categorical[1:])
    requests = workspace.requests(2)
    values_CF, fewer_CF = features.of(requests), fewer.of(requests)
    for name in fewer.names:
        np.testing.assert_array_equal(column(fewer, fewer_CF, name), column(features, values_CF, name))


def test_activity_counts_what_is_strictly_earlier(features: TabularFeatures, workspace: Workspace) -> None:
    requests, dataset = workspace.requests(3), workspace.dataset
    log = pa.concat_tables([dataset.engagements(window.index) for window in dataset.windows])
    user_E, time_E, surface_E = (log[name].cast(pa.int64()).to_numpy() for name in ("user_id", "time", "surface"))
    values_CF = features.of(requests)
    for c in range(0, len(requests.item), 97):
        r, surface = requests.owner[c], requests.surface[c]
        own = (user_E == requests.user_id[r]) & (time_E < requests.time[r])
        for prefix, chosen in (("user", own), ("user_surface", own & (surface_E == surface))):
            days = (requests.time[r] - time_E[chosen].max()) / DAY if chosen.any() else -1.0
            assert column(features, values_CF, f"{prefix}_events")[c] == pytest.approx(np.log1p(chosen.sum()))
            assert column(features, values_CF, f"{prefix}_days")[c] == pytest.approx(days, rel=1e-5)


def test_l1_engagements_from_now_on_change_nothing_up_to_now(
    features: TabularFeatures, workspace: Workspace, changed: Callable[..., Dataset]
) -> None:
    requests = workspace.requests(4)
    now = int(requests.time[len(requests) // 2])

    def from_now_on(window: int, row: dict[str, Any]) -> None:
        if microseconds(row["time"]) >= now:
            row["surface"] = (row["surface"] + 1) % 3

    other = Workspace(changed(workspace.dataset, engagements=from_now_on))
    after = TabularFeatures(workspace=other, task=0, decay=1.0, strength=5.0).of(requests)
    moved = ~np.isclose(features.of(requests), after, equal_nan=True).all(axis=1)
    late = requests.time[requests.owner] > now
    assert not moved[~late].any() and moved[late].any()


def test_rates_are_of_the_windows_before(features: TabularFeatures, workspace: Workspace) -> None:
    requests = workspace.requests(2)
    before = column(features, features.of(requests), "count item")
    first = workspace.requests(1)
    features.learn(workspace.dataset.window(1))
    after = column(features, features.of(requests), "count item")
    shown = {item: (first.item_id == item).sum() for item in requests.item_id.tolist()}
    assert not before.any()
    np.testing.assert_allclose(np.expm1(after), [shown[item] for item in requests.item_id.tolist()], rtol=1e-5)


def test_numbers_stay_when_codes_come() -> None:
    numbering = Numbering()
    first = numbering(np.array([50, 20, 0, 50]))
    again = numbering(np.array([10, 20, 99, 50, 0]))
    assert np.isnan(first[2]) and np.isnan(again[4])
    assert first[0] == first[3] == again[3] and first[1] == again[1]
    assert len(set(again[:4].tolist())) == 4


def test_rates_count_labels_whatever_training_does_until_they_are_known(attributed: Dataset) -> None:
    plainly = Workspace(attributed)
    otherwise = Workspace(attributed, labels={"purchase": FakeNegative()})
    mine, plain = (TabularFeatures(workspace=each, task=0, decay=1.0, strength=5.0) for each in (otherwise, plainly))
    for window in attributed.windows[:3]:
        mine.learn(window)
        plain.learn(window)
    requests = plainly.requests(4)
    np.testing.assert_array_equal(mine.of(requests), plain.of(requests))
    assert 0 < mine.prior < 1
