"""The foundation model: one HSTU over every surface's events, and the target-aware embedding it is built for.

Shape legend: B requests, L history tokens, C candidates, N = 2B + L + C tokens, U distinct items, D model width,
R representation width, F dense features, S surfaces, T tasks.
"""

from dataclasses import dataclass

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.hstu.embedding import FeatureEmbedding
from foundation.hstu.layer import HSTUStack, Sequences
from foundation.hstu.loss import masked_log_loss
from foundation.hstu.vocabulary import BatchVocabulary
from hypercast.training.random import NamedDropout, initialise_, normal_start
from streaming.batch import History, RequestBatch
from streaming.config import Config as BaseConfig
from streaming.inputs import Inputs

CONTEXT_TOKENS = 2
"""Tokens before each history: one for the user's attributes, one for the request's context."""


@dataclass(frozen=True, kw_only=True)
class FoundationOutput:
    """What the model says about every candidate.

    Attributes:
        sequence_CD: HSTU output at the candidate, which has attended to the request's whole history.
        penultimate_CR: output of the shared tower, from which the main tasks are read by one linear map.
        logit_CT: main tasks, shared by all surfaces.
        surface_logit_CT: the candidate's own surface's tasks, through the alignment module.
    """

    sequence_CD: Tensor
    penultimate_CR: Tensor
    logit_CT: Tensor
    surface_logit_CT: Tensor


class FoundationModel(nn.Module):
    """History token = f(item, surface) + action; candidate token = f(item, surface) + dense features, no action.

    After Foundation-Expert (arXiv 2508.02929): targets are separate tokens that see the history and themselves, the
    main heads read the representation that is published, and surface-specific tasks go through an alignment module that
    also sees features outside the sequence.
    """

    class Config(BaseConfig):
        """Attributes:

        width: D, a multiple of the number of heads.
        representation: R, width of the published embedding.
        tower: width of the shared tower's hidden layer.
        history: the largest number of engagements a request attends to.
        dropout: inside HSTU layers and the tower.
        """

        width: int = 64
        representation: int = 64
        tower: int = 128
        history: int = 128
        dropout: float = pydantic.Field(default=0.1, ge=0.0, lt=1.0)
        stack: HSTUStack.Config = HSTUStack.Config()
        vocabulary: BatchVocabulary.Config = BatchVocabulary.Config()

        @pydantic.model_validator(mode="after")
        def _heads_divide_width(self) -> "FoundationModel.Config":
            if self.width % self.stack.heads:
                raise ValueError(f"width {self.width} must be a multiple of stack.heads {self.stack.heads}")
            return self

        def build(self, *, inputs: Inputs, seed: int) -> "FoundationModel":
            return FoundationModel(config=self, inputs=inputs, seed=seed)

    def __init__(self, *, config: Config, inputs: Inputs, seed: int) -> None:
        super().__init__()
        width, rank, tasks = config.width, config.representation, len(inputs.tasks)

        def dropout(name: str) -> NamedDropout:
            return NamedDropout(config.dropout, seed=seed, name=f"foundation/{name}")

        self.config = config
        self.vocabulary = config.vocabulary.build(inputs)
        self.items = FeatureEmbedding.of(self.vocabulary.items, width=width)
        self.users = FeatureEmbedding.of(self.vocabulary.users, width=width)
        self.context = FeatureEmbedding.of(self.vocabulary.context, width=width)
        self.surface = nn.Embedding(len(inputs.surfaces) + 1, width)
        self.action = nn.Embedding(len(inputs.actions), width)
        self.kind = nn.Embedding(CONTEXT_TOKENS, width)
        self.dense = nn.Linear(len(inputs.dense), width)
        self.stack = HSTUStack(
            config.stack,
            width=width,
            positions=CONTEXT_TOKENS + config.history + 1,
            dropouts=[dropout(f"layer{index}") for index in range(config.stack.layers)],
        )
        self.tower = nn.Sequential(
            nn.Linear(3 * width + len(inputs.dense), config.tower),
            nn.SiLU(),
            dropout("tower"),
            nn.Linear(config.tower, rank),
            nn.SiLU(),
        )
        self.main_heads = nn.Linear(rank, tasks)
        self.alignment = nn.Sequential(nn.Linear(rank + width + len(inputs.dense), rank), nn.SiLU())
        self.surface_heads = nn.Linear(rank, len(inputs.surfaces) * tasks)
        for embedding in (self.surface, self.action, self.kind):
            normal_start(embedding.weight, 0.02)
        initialise_(self, seed)

    def forward(self, batch: RequestBatch) -> FoundationOutput:
        """Score every candidate of ``batch``; reads nothing of its labels (law L6)."""
        history = batch.history["all"]
        slots = self.vocabulary(batch)
        item_UD = self.items(slots.items)
        user_BD, request_BD = self.users(slots.users), self.context(slots.context)
        context_BD = user_BD + request_BD
        candidate_CD = item_UD[batch.item_C] + self.surface(batch.surface_C + 1)
        event_LD = item_UD[history.item_L] + self.surface(history.surface_L + 1) + self.action(history.action_L)
        tokens_ND = torch.cat(
            [
                user_BD + self.kind.weight[0],
                request_BD + self.kind.weight[1],
                event_LD,
                candidate_CD + self.dense(batch.dense_CF),
            ]
        )
        encoded_CD = self._encode(batch, history, tokens_ND)
        tower_input = torch.cat([encoded_CD, candidate_CD, context_BD[batch.owner_C], batch.dense_CF], dim=1)
        penultimate_CR = self.tower(tower_input)
        aligned_CR = self.alignment(torch.cat([penultimate_CR, context_BD[batch.owner_C], batch.dense_CF], dim=1))
        by_surface_CST = self.surface_heads(aligned_CR).unflatten(1, (-1, self.main_heads.out_features))
        rows = torch.arange(len(batch.surface_C))
        return FoundationOutput(
            sequence_CD=encoded_CD,
            penultimate_CR=penultimate_CR,
            logit_CT=self.main_heads(penultimate_CR),
            surface_logit_CT=by_surface_CST[rows, batch.surface_C],
        )

    def _encode(self, batch: RequestBatch, history: History, tokens_ND: Tensor) -> Tensor:
        """HSTU output at the candidates, float ``[C, D]``."""
        requests = torch.arange(len(batch))
        time_N = torch.cat([batch.time_B, batch.time_B, history.time_L, batch.time_B[batch.owner_C]])
        history_owner_L = requests.repeat_interleave(history.offsets.diff())
        owner_N = torch.cat([requests, requests, history_owner_L, batch.owner_C])
        # A stable sort by request puts each sequence together as [user, request, history, candidates].
        order = owner_N.argsort(stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        targets = batch.offsets.diff()
        sequences = Sequences(
            offsets=F.pad((CONTEXT_TOKENS + history.offsets.diff() + targets).cumsum(0), (1, 0)),
            num_targets=targets,
            contextual_len=CONTEXT_TOKENS,
            timestamps=time_N[order],
            max_seq_len=CONTEXT_TOKENS + self.config.history,
        )
        encoded_ND = self.stack(tokens_ND[order], sequences)
        return encoded_ND[place[len(order) - len(batch.owner_C) :]]

    def loss(self, output: FoundationOutput, batch: RequestBatch, *, surface_weight: float) -> Tensor:
        """Log loss of the main tasks plus ``surface_weight`` times that of the surface tasks, over known labels."""
        labels = batch.labels
        main = masked_log_loss(output.logit_CT, labels.label_CT, labels.known_CT)
        surface = masked_log_loss(output.surface_logit_CT, labels.label_CT, labels.known_CT)
        return main + surface_weight * surface
