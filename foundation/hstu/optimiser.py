"""The optimisers of a model with embedding tables: AdamW for dense weights, row-wise Adagrad for tables in backward.

What learns from every event once, at a constant rate, never settles: its last weights carry the noise of its last
batches. The average over its recent weights does not, and is what predicts (Polyak and Juditsky, 1992; here in its
exponential form).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pydantic
import torch
from torch import Tensor, nn

from foundation.hstu.embedding import FeatureEmbedding, RowWiseAdagrad
from streaming.config import Config as BaseConfig


class ModelOptimiser:
    """Both optimisers of one model."""

    class Config(BaseConfig):
        """Attributes: ``learning_rate`` and ``weight_decay`` of AdamW; ``table_learning_rate`` of row-wise Adagrad;
        ``gradient_clip``, the largest norm of the dense gradient; ``averaging``, the share of the past in the average
        of dense weights, per update (0: the average is the last weights).
        """

        learning_rate: float = pydantic.Field(default=1e-3, gt=0)
        table_learning_rate: float = pydantic.Field(default=0.02, gt=0)
        weight_decay: float = pydantic.Field(default=0.0, ge=0)
        gradient_clip: float = pydantic.Field(default=1.0, gt=0)
        averaging: float = pydantic.Field(default=0.999, ge=0, lt=1)

        def build(self, model: nn.Module) -> "ModelOptimiser":
            return ModelOptimiser(config=self, model=model)

    def __init__(self, *, config: Config, model: nn.Module) -> None:
        embeddings = [module for module in model.modules() if isinstance(module, FeatureEmbedding)]
        tables = {id(parameter) for embedding in embeddings for parameter in embedding.parameters()}
        self.config = config
        self.weights = [parameter for parameter in model.parameters() if id(parameter) not in tables]
        self.dense = torch.optim.AdamW(
            self.weights, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.sparse = RowWiseAdagrad(embeddings, learning_rate=config.table_learning_rate)
        self.average = [weight.detach().clone() for weight in self.weights]
        self.updates = 0

    def step(self, loss: Tensor) -> None:
        """Back-propagate ``loss``, which updates the tables, and update the dense weights."""
        self.dense.zero_grad(set_to_none=True)
        loss.backward()
        self.update()

    def update(self) -> None:
        """Update the dense weights by the gradients that they carry."""
        nn.utils.clip_grad_norm_(self.weights, self.config.gradient_clip, foreach=True)
        self.dense.step()
        self.updates += 1
        # Young averages forget faster, or they would remember the initial values.
        past = min(self.config.averaging, self.updates / (9 + self.updates))
        torch._foreach_lerp_(self.average, [weight.detach() for weight in self.weights], 1 - past)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has its average weights; it must not be trained there."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        return {
            "dense": self.dense.state_dict(),
            "sparse": self.sparse.state_dict(),
            "average": {str(index): tensor for index, tensor in enumerate(self.average)},
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.dense.load_state_dict(state["dense"])
        self.sparse.load_state_dict(state["sparse"])
        for index, tensor in enumerate(self.average):
            tensor.copy_(state["average"][str(index)])
        self.updates = state["updates"]

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in zip(self.weights, self.average, strict=True):
            last = weight.clone()
            weight.copy_(average)
            average.copy_(last)
