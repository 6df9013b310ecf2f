"""Trains a sequence encoder on next-item prediction: sampled softmax at every token, AdamW, a fixed number of epochs.

Shape legend: T tokens, N candidates of a token, S sequences.
"""

import time
from collections.abc import Callable
from typing import cast

import numpy as np
import pydantic
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.sequential.encoder import SequenceEncoder
from benchmarks.sequential.loss import sampled_softmax
from benchmarks.sequential.sequences import Batch, Index, ItemSequences
from hypercast.training.random import stream_seed
from streaming.config import Config as BaseConfig


class Recipe(BaseConfig):
    """Everything that a training depends on, beside its data.

    Attributes:
        encoder: the model.
        epochs: passes over the data.
        seed: of initial values, order, dropout and negatives.
        length: tokens a sequence, the latest ones.
        batch: sequences a step.
        learning_rate: of AdamW, with ``betas`` and without weight decay.
        negatives: sampled uniformly from the catalogue for every token.
        temperature: divides the cosine of output and item.
        averaging: decay per step of an exponential moving average of the weights, which is what gets evaluated; 0 for
            the weights themselves.
    """

    encoder: SequenceEncoder.Config = SequenceEncoder.Config()
    epochs: int = pydantic.Field(default=80, ge=1)
    seed: int = 0
    length: int = pydantic.Field(default=200, ge=1)
    batch: int = pydantic.Field(default=128, ge=1)
    learning_rate: float = pydantic.Field(default=2e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.98)
    negatives: int = pydantic.Field(default=128, ge=1)
    temperature: float = pydantic.Field(default=0.05, gt=0)
    averaging: float = pydantic.Field(default=0.99, ge=0, lt=1)


class SequenceTrainer:
    """Holds model, optimiser and random streams of one training.

    Attributes:
        model: what is trained.
        averaged: the same with the averaged weights, to be evaluated.
    """

    def __init__(self, *, recipe: Recipe, items: int) -> None:
        self.recipe = recipe
        self.items = items
        self.model = recipe.encoder.build(items=items, length=recipe.length, seed=recipe.seed)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=0.0, fused=True
        )
        self._average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.averaging))
        self._negatives = np.random.default_rng(stream_seed(recipe.seed, "negatives"))
        self._order = np.random.default_rng(stream_seed(recipe.seed, "order"))

    @property
    def averaged(self) -> SequenceEncoder:
        return cast(SequenceEncoder, self._average.module)

    def step(self, batch: Batch) -> float:
        """One update; returns the loss."""
        self.model.train()
        self.optimiser.zero_grad(set_to_none=True)
        loss = sampled_softmax(
            self.model(batch), self.model.catalogue(), self.candidates(batch), temperature=self.recipe.temperature
        )
        loss.backward()
        self.optimiser.step()
        self._average.update_parameters(self.model)
        return loss.item()

    def candidates(self, batch: Batch) -> torch.Tensor:
        """Each token's next item and its sampled negatives, int32 ``[T, N]``."""
        shape = (len(batch.target_T), 1 + self.recipe.negatives)
        candidate_TN = self._negatives.integers(self.items, size=shape, dtype=np.int32)
        candidate_TN[:, 0] = batch.target_T.numpy()
        return torch.from_numpy(candidate_TN)

    def order(self, sequences: int) -> Index:
        """A new random order of the sequences."""
        return self._order.permutation(sequences)

    def epoch(self, data: ItemSequences, order: Index, *, held_out: int) -> tuple[float, float]:
        """One pass over sequences in the given order, without their last ``held_out`` events.

        Returns the mean loss and the mean seconds of a step.
        """
        begun = time.perf_counter()
        losses = [
            self.step(batch)
            for batch in data.batches(order, size=self.recipe.batch, length=self.recipe.length, held_out=held_out)
        ]
        return float(np.mean(losses)), (time.perf_counter() - begun) / len(losses)


def train(
    trainer: SequenceTrainer, data: ItemSequences, *, held_out: int, after_epoch: Callable[[int, float, float], None]
) -> None:
    """Train for all of the recipe's epochs; ``after_epoch`` gets each epoch's number (from 1), loss and step time."""
    for epoch in range(1, trainer.recipe.epochs + 1):
        after_epoch(epoch, *trainer.epoch(data, trainer.order(len(data)), held_out=held_out))
