"""A surface that waits less long for conversions is told, and is held against, what comes within its own window."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from streaming.dataset import Dataset
from streaming.errors import ConfigError
from streaming.importers.synthetic import Synthetic
from streaming.labels.attribution import DAY
from streaming.labels.policy import Interpolation
from streaming.requests import Requests
from streaming.workspace import Workspace

TASK = "purchase"
BUCKETS = {TASK: Interpolation(windows_days=[2])}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Labels within ten days, and tasks that say so."""
    path: Path = tmp_path_factory.mktemp("asked") / "data"
    Synthetic.Config(users=24, items=12, windows=5, label_delay_seconds=864_000).build(path)
    file = path / "dataset.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    for task in config["tasks"]:
        task["attribution_seconds"] = task["delay_seconds"]
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return Dataset.open(path)


def spread(requests: Requests) -> Requests:
    """The same with conversions on every day from the request to the tenth after it."""
    supervision, time_C = requests.supervision, requests.time[requests.owner]
    days_C = np.arange(len(time_C)) % 10
    early = supervision.label[:, 0] == 1
    supervision.known_time[early, 0] = (time_C + days_C * DAY + DAY // 2)[early]
    return requests


def test_outcomes_are_of_the_surfaces_own_window(dataset: Dataset) -> None:
    surfaces = dataset.config.surfaces
    whole = Workspace(dataset, labels=BUCKETS)
    asked = Workspace(dataset, labels=BUCKETS, asked_windows={surfaces[0]: {TASK: 4 * DAY}})
    requests = spread(whole.requests(1))
    before, after = whole.outcomes(requests).supervision, asked.outcomes(requests).supervision
    time_C, first = requests.time[requests.owner], requests.surface == 0
    in_time = requests.supervision.known_time[:, 0] - time_C <= 4 * DAY
    np.testing.assert_array_equal(after.label[:, 0], before.label[:, 0] * (~first | in_time))
    assert after.label[first, 0].sum() < before.label[first, 0].sum()
    np.testing.assert_array_equal(after.label[:, 1], before.label[:, 1])
    np.testing.assert_array_equal(after.known_time, before.known_time)
    np.testing.assert_array_equal(requests.supervision.label, spread(whole.requests(1)).supervision.label)


def test_predictions_are_of_the_surfaces_own_window(dataset: Dataset) -> None:
    surfaces = dataset.config.surfaces
    requests = Workspace(dataset).requests(5)
    now = dataset.window(5).start

    def read(windows: dict[str, dict[str, int]]) -> tuple[np.ndarray, np.ndarray]:
        asked = Workspace(dataset, labels=BUCKETS, asked_windows=windows).asked(requests, now=now)
        return asked.within_CH, asked.stretch_CT

    whole_CH, stretch_CT = read({})
    assert (whole_CH == 1).all() and (stretch_CT == 1).all()
    within_CH, stretch_CT = read({surfaces[1]: {TASK: 2 * DAY}})
    on_it = requests.surface == 1
    assert (within_CH[~on_it] == 1).all() and (stretch_CT == 1).all()
    assert (within_CH[on_it, 0] == 1).all() and (within_CH[on_it, 1] == 0).all()  # the first of two buckets, all of it


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ({"mars": {TASK: DAY}}, "there is no surface mars; allowed are"),
        ({"home": {"mars": DAY}}, "there is no task mars"),
        ({"home": {TASK: 11 * DAY}}, "up to its attribution window, 10 days"),
    ],
)
def test_what_nobody_can_be_told(dataset: Dataset, windows: dict[str, dict[str, int]], message: str) -> None:
    home = dataset.config.surfaces[0]
    named = {home if surface == "home" else surface: tasks for surface, tasks in windows.items()}
    requests = Workspace(dataset).requests(1)

    def read() -> None:
        Workspace(dataset, labels=BUCKETS, asked_windows=named).asked(requests, now=dataset.window(2).start)

    with pytest.raises(ConfigError, match=message):
        read()
