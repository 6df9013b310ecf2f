"""Fixtures shared by all tests."""

from pathlib import Path

import pytest
import torch

from streaming.dataset import Dataset
from streaming.importers.synthetic import Synthetic
from streaming.workspace import Workspace


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A synthetic data set with 6 windows, 40 users and 60 items. Read only: copy it before changing a file."""
    path: Path = tmp_path_factory.mktemp("data") / "tiny"
    return Synthetic.Config().build(path)


@pytest.fixture(scope="session")
def workspace(tiny_dataset: Dataset) -> Workspace:
    """The tiny data set, opened."""
    return Workspace(tiny_dataset)
