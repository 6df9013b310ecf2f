"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from streaming.dataset import Dataset
from streaming.importers.synthetic import Synthetic
from streaming.workspace import Workspace

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("hypercast", deadline=None)
settings.load_profile("hypercast")


@pytest.fixture(autouse=True, scope="session")
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["HYPERCAST_CACHE"] = str(tmp_path_factory.mktemp("cache"))


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
