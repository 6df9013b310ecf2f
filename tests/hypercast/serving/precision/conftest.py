"""A small foundation model that knows the tiny data set's items, and batches of its requests."""

import pytest
import torch

from foundation.model import FoundationModel
from hypercast.training.random import generator
from streaming.workspace import Workspace
from tests.hypercast.serving.precision.world import CONFIG, World, new_model


@pytest.fixture(scope="session")
def world(workspace: Workspace) -> World:
    model = CONFIG.build(inputs=workspace.inputs, seed=0).train()
    reader = workspace.reader({"all": (workspace.engagements, CONFIG.history)})
    sample, later = (
        [(batch,) for batch in reader.batches(workspace.requests(window).slice(0, 32), size=8)] for window in (2, 3)
    )
    with torch.no_grad():
        for batch in (*sample, *later):
            model(*batch)
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator(0, name)), alpha=0.05)
    return World(model=model.eval(), sample=sample, later=later)


@pytest.fixture
def fresh(workspace: Workspace) -> FoundationModel:
    return new_model(workspace)
