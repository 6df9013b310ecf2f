"""What predictions are held against: only requests of which every outcome would be known."""

from pathlib import Path

import numpy as np
import pytest

from streaming.dataset import Dataset
from streaming.importers.synthetic import Synthetic
from streaming.workspace import Workspace

DELAY = 3 * 86_400


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    config = Synthetic.Config(users=16, items=24, windows=3, label_delay_seconds=DELAY)
    path: Path = tmp_path_factory.mktemp("late") / "data"
    return Workspace(config.build(path))


def test_a_label_that_came_early_counts_no_sooner_than_one_that_did_not(workspace: Workspace) -> None:
    """A positive is often known at once, a negative only when its time is over: both count from then on."""
    end = workspace.dataset.windows[-1].end
    requests = workspace.requests(workspace.dataset.windows[-1].index)
    supervision = requests.supervision
    supervision.known_time[supervision.label == 1] = requests.time[requests.owner][:, None].repeat(2, axis=1)[
        supervision.label == 1
    ]
    told = workspace.outcomes(requests).supervision
    counted = told.known_time[:, 0] < told.NEVER
    ripe = requests.time[requests.owner] + DELAY * 1_000_000 < end
    np.testing.assert_array_equal(counted, ripe)
    assert counted.any() and not counted.all()


def test_without_a_delay_every_known_label_counts(tiny_dataset: Dataset) -> None:
    workspace = Workspace(tiny_dataset)
    requests = workspace.requests(tiny_dataset.windows[-1].index)
    np.testing.assert_array_equal(workspace.outcomes(requests).supervision.known_time, requests.supervision.known_time)
