"""Parts of made-up candidates, and of requests of the tiny data set."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from experts.backbone.parts import Parts, Past, Shapes
from hypercast.training.random import initialise_
from streaming.batch import BatchReader, History
from streaming.inputs import Inputs
from streaming.workspace import Workspace

WIDTH, HISTORY = 8, 7

MakeParts = Callable[..., Parts]


def no_past(candidates: int) -> Past:
    """One request with all candidates and without events."""
    nothing = torch.zeros(0, dtype=torch.int64)
    return Past(
        item_UD=torch.zeros(0, WIDTH),
        code_UA=torch.zeros(0, 1, dtype=torch.int64),
        history=History(
            item_L=nothing, surface_L=nothing, action_L=nothing, time_L=nothing, offsets=torch.zeros(2).long()
        ),
        item_C=torch.zeros(candidates, dtype=torch.int64),
        owner_C=torch.zeros(candidates, dtype=torch.int64),
        offsets=torch.tensor([0, candidates]),
        time_B=torch.zeros(1, dtype=torch.int64),
    )


@pytest.fixture(scope="session")
def parts_of() -> MakeParts:
    """Parts from tensors by name."""

    def make(**fields: Tensor) -> Parts:
        return Parts(fields=fields, past=no_past(len(next(iter(fields.values())))))

    return make


@pytest.fixture(scope="session")
def shapes_of(workspace: Workspace) -> Callable[[Parts], Shapes]:
    def make(parts: Parts) -> Shapes:
        widths = {name: field.shape[1] for name, field in parts.fields.items()}
        return Shapes(fields=widths, history=HISTORY, inputs=workspace.inputs)

    return make


@pytest.fixture(scope="session")
def reader(workspace: Workspace) -> BatchReader:
    return workspace.reader({"all": (workspace.engagements, HISTORY)})


class Embedder(nn.Module):
    """Parts of a batch of requests, with embeddings that are a function of the item's or user's id."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.items, self.users = nn.Embedding(512, WIDTH), nn.Embedding(512, WIDTH)
        initialise_(self, 0)
        self.shapes = Shapes(
            fields={"candidate": WIDTH, "context": WIDTH, "dense": len(inputs.dense)}, history=HISTORY, inputs=inputs
        )

    def forward(self, batch) -> Parts:
        item_UD = self.items(batch.items.values()[: batch.items.stride()] % 512)
        user_BD = self.users(batch.users.values()[: batch.users.stride()] % 512)
        fields = {"candidate": item_UD[batch.item_C], "context": user_BD[batch.owner_C], "dense": batch.dense_CF}
        return Parts(fields=fields, past=Past.of(batch, item_UD, history="all"))


@pytest.fixture(scope="session")
def embedder(workspace: Workspace) -> Embedder:
    return Embedder(workspace.inputs)
