"""A small platform that has run to its end, MLflow included: read only, copy its folder before changing it."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from mlflow import MlflowClient

from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.platform import Platform
from streaming import config as configuration
from streaming.dataset import Dataset
from streaming.importers.synthetic import Synthetic
from transfer.monitor import Monitor

PLATFORM = """
name: tiny
dataset: {{path: {dataset}}}
run: {run}
seeds: [0]
online: {{}}
spans: {{early: [1, 2], late: [3, 4]}}
foundation:
  batch_size: 8
  publisher: {{keep: 2}}
  model:
    {{width: 16, representation: 8, tower: 16, history: 16, stack: {{layers: 1}}, vocabulary: {{default: 64}}}}
expert:
  batch_size: 8
  cross_history: 8
  fusion: {{width: 8}}
  model: {{width: 8, history: 8, backbone: {{hidden: [8]}}}}
  vocabulary: {{default: 64}}
"""


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four windows of 16 users. Read only."""
    config = Synthetic.Config(users=16, items=24, windows=4, candidates=6, surfaces=2)
    return config.build(tmp_path_factory.mktemp("small") / "data")


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An MLflow store without runs: its migrations take seconds, so they are run once and copied."""
    run = tmp_path_factory.mktemp("store")
    Monitor.Config().build(run=run, platform="empty").close()
    return (run / "mlflow.db").read_bytes()


@pytest.fixture(scope="session")
def platform_file(small_dataset: Dataset, mlflow_store: bytes) -> Callable[..., Path]:
    """Write a platform file for the small data set, with ``extra`` keys or others in place of the usual ones; the run
    folder that it names has an MLflow store already.
    """

    def write(run: Path, extra: str = "") -> Path:
        run.mkdir(parents=True)
        (run / "mlflow.db").write_bytes(mlflow_store)
        file = run.with_suffix(".yaml")
        usual = re.split(r"(?m)^(?=\w)", PLATFORM.format(dataset=small_dataset.path, run=run))
        kept = [block for block in usual if block.partition(":")[0] not in (yaml.safe_load(extra) or {})]
        file.write_text("".join(kept) + extra, encoding="utf-8")
        return file

    return write


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, platform_file: Callable[..., Path]) -> Path:
    """The folder of an uninterrupted run over all windows. Read only."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("tiny") / "run"
    Platform(configuration.load(platform_file(run), PlatformConfig)).run(lambda message, share: None)
    return run


@pytest.fixture
def copy_of_run(tiny_run: Path, tmp_path: Path) -> Path:
    """The finished run in a folder of its own."""
    return shutil.copytree(tiny_run, tmp_path / "copy")


@pytest.fixture(scope="session")
def metrics_of() -> Callable[[Path], dict[tuple[str, str], list[tuple[int, int, float]]]]:
    """Read every point that MLflow holds of a run: (step, timestamp, value) by run name and metric."""

    def read(run: Path) -> dict[tuple[str, str], list[tuple[int, int, float]]]:
        client = MlflowClient(tracking_uri=f"sqlite:///{run / 'mlflow.db'}")
        (experiment,) = (each for each in client.search_experiments() if each.name == "tiny")
        histories = {}
        for each in client.search_runs([experiment.experiment_id]):
            for metric in each.data.metrics:
                points = client.get_metric_history(each.info.run_id, metric)
                histories[each.info.run_name, metric] = sorted((p.step, p.timestamp, p.value) for p in points)
        return histories

    return read
