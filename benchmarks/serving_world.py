"""What benchmarks serve: a platform as large as the full run's, trained on two windows, and questions about its users.

Histories of 256 and 100 candidates. On generated data where no data set is given.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hypercast.registry import Registry
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.jobs import ExpertJob, FoundationJob
from hypercast.serving.features.state import FeatureState
from streaming.config import dump
from streaming.dataset import Dataset
from streaming.files import write_text
from streaming.importers.synthetic import Synthetic
from streaming.workspace import Workspace

HISTORY, CANDIDATES, QUESTIONS = 256, 100, 6000
TRAINED = 2
SECOND = 1_000_000
GENERATED = Synthetic.Config(users=300, items=3000, windows=30, candidates=20, surfaces=6)
SETTINGS: dict[str, Any] = {
    "name": "serving",
    "spans": {},
    "seeds": [0],
    "online": {"believed_for": 1.0, "unreachable": "ladder"},
    "foundation": {
        "batch_size": 32,
        "publisher": {"keep": 9},
        "model": {"history": HISTORY, "vocabulary": {"rows": {"item_id": 65536}}},
    },
    "expert": {"arms": ["control", "treated"], "vocabulary": {"rows": {"item_id": 65536}}},
    "serving": {"clock": "given", "refresh_seconds": 0.5, "port": 0},
}


@dataclass(frozen=True, kw_only=True)
class World:
    """Attributes: ``file``, of the platform; ``questions``, a file of bodies, one a line, in order of their times."""

    file: Path
    questions: Path
    config: PlatformConfig


def build(folder: Path, data: Path | None) -> World:
    """Train and export in ``folder`` on the data set at ``data``; a folder that has it all already is used as it is."""
    path = data or folder / "data"
    if data is None and not path.exists():
        GENERATED.build(path)
    config = PlatformConfig.model_validate({**SETTINGS, "dataset": {"path": path}, "run": folder / "run"})
    world = World(file=folder / "platform.yaml", questions=folder / "questions.jsonl", config=config)
    if not world.questions.exists():
        workspace = config.workspace(Dataset.open(path))
        _train(config, workspace)
        write_text(world.file, dump(config))
        write_text(world.questions, "".join(json.dumps(each) + "\n" for each in _questions(workspace)))
    return world


def _train(config: PlatformConfig, workspace: Workspace) -> None:
    """On the last windows alone: two snapshots, of which the newest is as fresh as can be."""
    windows = workspace.dataset.windows[-TRAINED - 1 :]
    foundation = FoundationJob(config, config.run)
    experts = ExpertJob(config, config.run, workspace.dataset.config.surfaces)
    with foundation.learner.optimiser.averaged():
        foundation.publisher.release(foundation.learner.model, watermark=windows[0].start, metrics={})
    for window in windows[:-1]:
        foundation.publish(window.index)
        experts.run_window(window.index, None)
        foundation.run_window(window.index)
    foundation.publish(windows[-1].index)
    experts.export(config.run / "experts")


def _questions(workspace: Workspace) -> list[dict[str, Any]]:
    """Users who have long histories, any surface, any items, a millisecond apart."""
    dataset, end = workspace.dataset.config, workspace.dataset.windows[-1].end
    random = np.random.default_rng(0)
    log = workspace.engagements
    everyone = workspace.users.ids
    start, stop = log.spans(everyone, np.full(len(everyone), end), max_length=1 << 30)
    long = everyone[np.argsort(start - stop, kind="stable")[: max(len(everyone) // 2, 1)]]
    given = FeatureState.open(workspace, as_of=end).given
    return [
        {
            "request_id": number,
            "surface": str(random.choice(dataset.surfaces)),
            "user_id": int(random.choice(long)),
            "time": end + SECOND + 1000 * number,
            "item_ids": random.choice(workspace.items.ids, CANDIDATES, replace=False).tolist(),
            "dense": {name: random.integers(0, 5, CANDIDATES).tolist() for name in given},
        }
        for number in range(QUESTIONS)
    ]


def history_length(world: World) -> float:
    """Mean length of the histories that the foundation model reads, at most :data:`HISTORY`."""
    workspace = world.config.workspace(Dataset.open(world.config.dataset.path))
    asked = [json.loads(line) for line in world.questions.read_text().splitlines()]
    user_id, time = (np.array([each[name] for each in asked]) for name in ("user_id", "time"))
    start, stop = workspace.engagements.spans(user_id, time, max_length=HISTORY)
    return float((stop - start).mean())


def snapshots(world: World) -> list[str]:
    """Names of the snapshots, oldest first."""
    return [snapshot.name for snapshot in Registry(world.config.run / "registry").list("FM")]
