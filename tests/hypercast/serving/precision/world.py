"""A small foundation model, and calls of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from foundation.hstu.layer import HSTUStack
from foundation.hstu.vocabulary import BatchVocabulary
from foundation.model import FoundationModel
from streaming.batch import RequestBatch
from streaming.workspace import Workspace

CONFIG = FoundationModel.Config(
    width=16,
    representation=8,
    tower=32,
    history=12,
    stack=HSTUStack.Config(layers=2, heads=2, time_buckets=32),
    vocabulary=BatchVocabulary.Config(default=128),
)


@dataclass(frozen=True)
class World:
    """A model in evaluation mode, calls of it to choose kernels by, and later ones. Read only."""

    model: FoundationModel
    sample: list[tuple[RequestBatch]]
    later: list[tuple[RequestBatch]]


def new_model(workspace: Workspace) -> FoundationModel:
    """One of the world's configuration that has learned nothing."""
    return CONFIG.build(inputs=workspace.inputs, seed=1).eval()


def never_float32(contestants: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Times by which every kernel is faster than float32, and the first of them the fastest."""
    return {name: 1e9 if name == "float32" else float(place) for place, name in enumerate(contestants)}
