"""The dense part of the foundation model: it is given vectors where it would look them up.

Shape legend: M rows looked up, D model width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.hstu.delayed import DelayedHeads
from foundation.hstu.vocabulary import BatchVocabulary
from foundation.model import Embedded, FoundationModel
from foundation.sharded.accelerator import made_on
from foundation.sharded.batch import Shard
from foundation.steps import FoundationLearner
from hypercast.training.random import NamedStream
from streaming.batch import RequestBatch
from streaming.inputs import Inputs


@dataclass(frozen=True, kw_only=True)
class EmbeddedBatch(RequestBatch):
    """A batch with everything categorical in it embedded."""

    embedded: Embedded


class DenseModel(FoundationModel):
    """The foundation model without its table; dense weights start as they do with it (by seed and name).

    All of it lies on ``device`` but the vocabulary, which computes on no GPU.
    """

    def __init__(self, *, config: FoundationModel.Config, inputs: Inputs, seed: int, device: torch.device) -> None:
        smallest = BatchVocabulary.Config(default=2)
        super().__init__(config=config.model_copy(update={"vocabulary": smallest}), inputs=inputs, seed=seed)
        del self.table
        self.config = config
        self.to(device)
        with device:
            self.delayed = DelayedHeads(inputs.plan)  # no module: its tensors do not move with the model
        self.vocabulary = config.vocabulary.build(inputs)
        self.train()
        self.numbers.eval()  # told of global batches by observe(), not of shards

    def embed(self, batch: RequestBatch) -> Embedded:
        """What came with the batch."""
        assert isinstance(batch, EmbeddedBatch)
        return batch.embedded

    def observe(self, dense_CF: Tensor) -> None:
        """Bring mean and deviation of the dense features up to date with a global batch."""
        self.numbers.train()
        self.numbers(dense_CF)
        self.numbers.eval()


class ShardLoss(nn.Module):
    """A logical shard's part of the global batch's loss: tensors in and out, so that DDP and FSDP2 can wrap it.

    Attributes: ``first_draw``: the draw of the global batch's first shard from each random stream. Shard s makes draw
    ``first_draw + s``, whoever computes it, and every stream draws once a shard.
    """

    def __init__(self, *, config: FoundationLearner.Config, model: DenseModel) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.first_draw = 0
        self._device = next(model.parameters()).device
        self._streams = [each for each in model.modules() if isinstance(each, NamedStream)]

    def forward(self, row_MD: Tensor, shard: Shard) -> Tensor:
        """The mean over the shard's candidates, times their share of the global batch's."""
        for stream in self._streams:
            stream.set_state(torch.tensor(self.first_draw + shard.number))
        bags = F.embedding_bag(shard.row_I, row_MD, shard.offsets, mode="sum")
        item_UD, user_BD, request_BD = bags.split(shard.counts)
        embedded = Embedded(item_UD=item_UD, user_BD=user_BD, request_BD=request_BD)
        with made_on(self._device):
            loss = self.config.loss(self.model, EmbeddedBatch(**vars(shard.batch), embedded=embedded))
        return loss * shard.weight
