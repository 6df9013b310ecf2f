"""Scoring many candidates over one encoded history (M-FALCON, arXiv 2402.17152, section 3).

Context and history are encoded once a request and kept as keys and values; candidates then attend to them in
micro-batches of b: ``O(b d^2 + b n d)`` a layer for n tokens of width d, instead of ``O((n + b) d^2 + n (n + b) d)``.

Shape legend: C candidates, b of them in a micro-batch, D model width.
"""

from dataclasses import fields

import pydantic
import torch

from foundation.encoding import Encoded, encoded
from foundation.hstu.layer import Sequences
from foundation.model import CONTEXT_TOKENS, FoundationModel, FoundationOutput
from streaming.batch import RequestBatch
from streaming.config import Config as BaseConfig


class CandidateScorer:
    """Scores batches as :class:`FoundationModel` does in evaluation mode, up to rounding, for any micro-batch size.

    Memory beside inputs and outputs grows with the requests' histories and ``micro_batch``, not with the number of
    candidates.
    """

    class Config(BaseConfig):
        """Attributes: ``micro_batch``, candidates scored at once, of one request or of several."""

        micro_batch: int = pydantic.Field(default=1024, ge=1)

        def build(self, model: FoundationModel) -> "CandidateScorer":
            return CandidateScorer(config=self, model=model)

    def __init__(self, *, config: Config, model: FoundationModel) -> None:
        self.config = config
        self.model = model

    @torch.inference_mode()
    def score(self, batch: RequestBatch) -> FoundationOutput:
        """Score every candidate of ``batch``; reads nothing of its labels (law L6).

        Raises:
            RuntimeError: the model is in training mode.
        """
        self._check()
        return self.over(encoded(self.model, batch))

    @torch.inference_mode()
    def over(self, histories: Encoded) -> FoundationOutput:
        """:meth:`score` with the histories encoded, by the same model (:mod:`foundation.encoding`)."""
        self._check()
        total, size = len(histories.batch.item_C), self.config.micro_batch
        outputs = [
            self._micro_batch(histories, slice(first, min(first + size, total)))
            for first in range(0, max(total, 1), size)
        ]
        names = [field.name for field in fields(FoundationOutput)]
        return FoundationOutput(**{name: torch.cat([getattr(output, name) for output in outputs]) for name in names})

    def _check(self) -> None:
        if self.model.training:
            raise RuntimeError("the model is in training mode, with dropout: call model.eval() before scoring")

    def _micro_batch(self, histories: Encoded, part: slice) -> FoundationOutput:
        """The candidates ``part``, over the histories of those requests that they belong to."""
        batch, embedded = histories.batch, histories.embedded
        owner = batch.owner_C[part]
        first, last = (int(owner[0]), int(owner[-1]) + 1) if len(owner) else (0, 0)
        offsets = batch.offsets[first : last + 1].clamp(part.start, part.stop) - part.start
        candidates = self.model.candidates(batch, embedded, part)
        sequences = Sequences(
            offsets=offsets,
            num_targets=offsets.diff(),
            contextual_len=CONTEXT_TOKENS,
            timestamps=candidates.time_C,
            max_seq_len=CONTEXT_TOKENS + self.model.config.history,
        )
        own = [cache.sequences(first, last) for cache in histories.caches]
        return self.model.predict(self.model.stack(candidates.token_CD, sequences, own), candidates)
