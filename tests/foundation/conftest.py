"""A small foundation model on the tiny data set."""

import pytest

from foundation.hstu.layer import HSTUStack
from foundation.hstu.vocabulary import BatchVocabulary
from foundation.model import FoundationModel


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
