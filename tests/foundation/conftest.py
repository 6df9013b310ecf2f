"""A small foundation model on the tiny data set."""

import pytest
import torch

from foundation.hstu.layer import HSTUStack
from foundation.hstu.vocabulary import BatchVocabulary
from foundation.model import FoundationModel
from streaming.dataset import Dataset
from streaming.workspace import Workspace


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def workspace(tiny_dataset: Dataset) -> Workspace:
    return Workspace(tiny_dataset)


@pytest.fixture(scope="session")
def small() -> FoundationModel.Config:
    return FoundationModel.Config(
        width=8,
        representation=6,
        tower=12,
        history=10,
        stack=HSTUStack.Config(layers=2, heads=2, time_buckets=32),
        vocabulary=BatchVocabulary.Config(default=128),
    )
