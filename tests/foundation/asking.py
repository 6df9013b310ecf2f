"""Requests of a few users whose whole lives are known, and models that answer them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from foundation.hstu.layer import HSTUStack
from foundation.hstu.vocabulary import BatchVocabulary
from foundation.model import FoundationModel
from hypercast.training.random import generator
from streaming.batch import History, Labels, RequestBatch, keyed
from streaming.inputs import Inputs

SECOND = 1_000_000
NOW = 1_000 * 86_400 * SECOND
HISTORY = 8
"""The latest events that a request sees."""
ITEMS = 20
INPUTS = Inputs(
    item_features=["item_id", "kind"],
    user_features=["age"],
    context=["hour"],
    dense=["price"],
    surfaces=["home", "mail"],
    actions=["view", "purchase"],
    tasks=["click", "purchase"],
)


@dataclass(frozen=True, kw_only=True)
class Life:
    """What a user ever does, oldest first; columns of equal length."""

    item: np.ndarray
    surface: np.ndarray
    action: np.ndarray
    time: np.ndarray

    @staticmethod
    def of(user: int) -> "Life":
        """Twelve events, from a month before :data:`NOW` to some minutes after; two of them at one time."""
        random = np.random.default_rng([7, user])
        ages = np.sort(np.concatenate([10 ** random.uniform(0.5, 6.5, 8), -(10 ** random.uniform(0.5, 2.5, 4))]))[::-1]
        time = NOW - np.round(ages * SECOND).astype(np.int64)
        time[4] = time[3]
        return Life(
            item=random.integers(0, ITEMS, 12),
            surface=random.integers(-1, 2, 12),
            action=random.integers(0, 2, 12),
            time=time,
        )


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request; ``unknown``: of its user's events, those that nobody has heard of by then."""

    user: int
    at: int = NOW
    hour: int = 0
    age: int = 0
    unknown: frozenset[int] = frozenset()
    items: tuple[int, ...] = (3, 1, 4)

    def seen(self, most: int) -> np.ndarray:
        """Which of its user's events it sees."""
        before = np.flatnonzero(Life.of(self.user).time < self.at)
        return np.array([event for event in before if event not in self.unknown], dtype=np.int64)[-most:]


def batch_of(asks: Sequence[Ask], *, most: int = HISTORY) -> RequestBatch:
    """One batch of all ``asks``."""
    lives, seen = [Life.of(ask.user) for ask in asks], [ask.seen(most) for ask in asks]

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(life, name)[rows] for life, rows in zip(lives, seen, strict=True)])

    candidates = np.array([item for ask in asks for item in ask.items], dtype=np.int64)
    items, place = np.unique(np.concatenate([candidates, column("item")]), return_inverse=True)
    counts = [len(ask.items) for ask in asks]
    return RequestBatch(
        items=keyed(INPUTS.item_features, np.stack([items, items % 3], axis=1)),
        users=keyed(INPUTS.user_features, np.array([[ask.age] for ask in asks], dtype=np.int64)),
        context=keyed(INPUTS.context, np.array([[ask.hour] for ask in asks], dtype=np.int64)),
        time_B=torch.tensor([ask.at for ask in asks]),
        history={
            "all": History(
                item_L=torch.from_numpy(place[len(candidates) :]),
                surface_L=torch.from_numpy(column("surface")),
                action_L=torch.from_numpy(column("action")),
                time_L=torch.from_numpy(column("time")),
                offsets=torch.tensor([0, *np.cumsum([len(rows) for rows in seen])]),
            )
        },
        item_C=torch.from_numpy(place[: len(candidates)]),
        surface_C=torch.from_numpy(candidates % 2),
        dense_CF=torch.from_numpy((candidates[:, None] * 0.1).astype(np.float32)),
        owner_C=torch.arange(len(asks)).repeat_interleave(torch.tensor(counts)),
        offsets=torch.tensor([0, *np.cumsum(counts)]),
        labels=Labels(label_CT=torch.zeros(sum(counts), 2), known_CT=torch.zeros(sum(counts), 2, dtype=torch.bool)),
    )


def built(**options: int) -> FoundationModel:
    """A model that knows every code, with these options of its stack; every weight counts."""
    config = FoundationModel.Config(
        width=8,
        representation=6,
        tower=12,
        history=HISTORY,
        stack=HSTUStack.Config.model_validate({"layers": 2, "heads": 2, "time_buckets": 64, **options}),
        vocabulary=BatchVocabulary.Config(default=64),
    )
    model = config.build(inputs=INPUTS, seed=0).train()
    model.vocabulary(batch_of([Ask(user=0, hour=hour, age=hour, items=tuple(range(ITEMS))) for hour in range(3)]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(0, name)))
    return model.eval()


@contextmanager
def rows_projected(model: FoundationModel) -> Iterator[list[int]]:
    """How many tokens enter the first layer, call by call."""
    rows: list[int] = []
    norm = model.stack.get_submodule("layers.0.norm_input")
    handle = norm.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    yield rows
    handle.remove()
