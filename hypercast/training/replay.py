"""Which earlier windows are trained on again beside a new one.

A model that learns from each window alone, in the order of time, fits the newest one too closely: within a window all
rows of a user share that user's week. Rows of earlier weeks beside them take that away, and what a model can learn of
windows is no longer limited by one pass (experience replay; Rolnick et al., arXiv 1811.11682).
"""

from collections.abc import Sequence

import numpy as np
import pydantic

from hypercast.training.random import stream_seed
from streaming.config import Config as BaseConfig


class Replay:
    """Draws earlier windows, anew for every window, all equally likely.

    Args:
        seed: of the draws; name: what they are for.

    Attributes:
        trained: indices of the windows trained on so far, in their order.
    """

    class Config(BaseConfig):
        """Attributes:

        windows: how many earlier windows are trained on again beside each new one; 0: none.
        reach: how many windows back they may lie, at most.
        """

        windows: int = pydantic.Field(default=0, ge=0)
        reach: int = pydantic.Field(default=52, ge=1)

        def build(self, *, seed: int, name: str) -> "Replay":
            return Replay(config=self, seed=seed, name=name)

    def __init__(self, *, config: Config, seed: int, name: str) -> None:
        self.config = config
        self.trained: list[int] = []
        self._seed = seed
        self._name = name

    def draw(self, window: int) -> Sequence[int]:
        """Windows before ``window``, ascending, each at most once; fewer while too few were trained on."""
        past = [index for index in self.trained if window - self.config.reach <= index < window]
        random = np.random.default_rng(stream_seed(self._seed, "replay", self._name, window))
        drawn = random.choice(len(past), size=min(self.config.windows, len(past)), replace=False)
        return [past[place] for place in sorted(drawn)]

    def finish(self, window: int) -> None:
        """``window`` has been trained on."""
        self.trained.append(window)
