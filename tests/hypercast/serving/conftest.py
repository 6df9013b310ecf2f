"""A small platform that has run over four windows of the tiny data set, and exported its experts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hypercast.registry import Registry
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.jobs import ExpertJob, FoundationJob
from hypercast.snapshot import Snapshot
from hypercast.store.tae_log import TaeLog
from streaming.dataset import Dataset, Window
from streaming.importers.synthetic import Synthetic
from streaming.workspace import Workspace

TRAINED = 4
"""Windows that it has finished."""
SETTINGS: dict[str, Any] = {
    "name": "serving",
    "spans": {},
    "foundation": {
        "batch_size": 8,
        "publisher": {"keep": 9},
        "model": {
            "width": 16,
            "representation": 8,
            "tower": 16,
            "history": 16,
            "stack": {"layers": 2},
            "vocabulary": {"default": 128},
        },
    },
    "expert": {
        "arms": ["control", "control_matched", "tae", "tae_sequence", "logit_residual", "treated"],
        "batch_size": 8,
        "cross_history": 12,
        "vocabulary": {"default": 128, "rows": {"item_id": 256}},
        "fusion": {"width": 8},
        "model": {"width": 8, "history": 8, "backbone": {"hidden": [8]}, "calibration": {}},
    },
}


@dataclass(frozen=True)
class Played:
    """A run folder and the data set that it ran on. Read only: copy it before changing anything in it.

    Attributes: ``trained``, windows that it has finished; ``changes`` of its settings.
    """

    run: Path
    dataset: Path
    trained: int = TRAINED
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> PlatformConfig:
        return PlatformConfig.model_validate(
            {**SETTINGS, **self.changes, "dataset": {"path": self.dataset}, "run": self.run}
        )

    @property
    def registry(self) -> Registry:
        return Registry(self.run / "registry")

    @property
    def snapshot(self) -> Snapshot:
        """The newest."""
        return self.registry.latest("FM", as_of=self.next_window.start)

    @property
    def log(self) -> TaeLog:
        return self.config.log.build(self.run / "tae_log")

    def workspace(self) -> Workspace:
        return self.config.workspace(Dataset.open(self.dataset))

    @property
    def next_window(self) -> Window:
        """The first one that it has not trained on; its TAEs are published."""
        return Dataset.open(self.dataset).windows[self.trained]


def play(played: Played) -> Played:
    """Run over the first windows, publish the one after them, export what was trained."""
    foundation = FoundationJob(played.config, played.run)
    described = foundation.workspace.dataset
    experts = ExpertJob(played.config, played.run, described.config.surfaces)
    for window in described.windows[: played.trained]:
        foundation.publish(window.index)
        experts.run_window(window.index, None)
        foundation.run_window(window.index)
    foundation.publish(played.next_window.index)
    experts.export(played.run / "experts")
    return played


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """The platform over the tiny data set."""
    root = tmp_path_factory.mktemp("serving")
    config = Synthetic.Config(users=16, windows=6, candidates=6, surfaces=2)
    config.build(root / "data")
    return play(Played(run=root / "run", dataset=root / "data"))
