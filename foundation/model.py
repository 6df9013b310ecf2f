"""The foundation model: one HSTU over every surface's events, and the target-aware embedding it is built for.

Shape legend: B requests, L history tokens, C candidates, P = 2B + L tokens before them, N = P + C tokens, U distinct
items, D model width, K = 2 context tokens, R representation width, F dense features, E their encoding, I width of
what enters the tower, S surfaces, T tasks.
"""

from dataclasses import dataclass, replace

import pydantic
import torch
from torch import Tensor, nn

from foundation.hstu.delayed import DelayedHeads
from foundation.hstu.embedding import MULTIPLE, FeatureEmbedding
from foundation.hstu.jagged import Join
from foundation.hstu.layer import HSTUStack, Sequences
from foundation.hstu.numbers import NumberEncoding, encoded_width
from foundation.hstu.stochastic_length import StochasticLength
from foundation.hstu.tower import TowerShape
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
        tower_input_CI: what enters the shared tower: all that is known of the candidate, side by side.
        penultimate_CR: output of the shared tower, from which the main tasks are read by one linear map.
        logit_CT: main tasks, shared by all surfaces.
        surface_logit_CT: the candidate's own surface's tasks, through the alignment module.
    """

    sequence_CD: Tensor
    tower_input_CI: Tensor
    penultimate_CR: Tensor
    logit_CT: Tensor
    surface_logit_CT: Tensor


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """A batch's embedded features: ``item_UD`` of distinct items, ``user_BD`` and ``request_BD`` (context)."""

    item_UD: Tensor
    user_BD: Tensor
    request_BD: Tensor


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Candidates of a batch, some or all.

    Attributes:
        item_CD: f(item, surface).
        token_CD: what enters the HSTU stack.
        context_CD: user and request.
        dense_CE: dense features, encoded.
        surface_C: as in the batch.
        time_C: int64 microseconds, of the request.
    """

    item_CD: Tensor
    token_CD: Tensor
    context_CD: Tensor
    dense_CE: Tensor
    surface_C: Tensor
    time_C: Tensor


class FoundationModel(nn.Module):
    """History token = f(item, surface) + action; candidate token = f(item, surface) + dense features, no action.

    After Foundation-Expert (arXiv 2508.02929): targets are separate tokens that see the history and themselves, the
    main heads read the representation that is published, and surface-specific tasks go through an alignment module that
    also sees features outside the sequence.
    """

    class Config(BaseConfig):
        """Attributes:

        width: D, a multiple of 4 and of the number of heads.
        representation: R, width of the published embedding.
        tower: width of the shared tower's hidden layer.
        history: the largest number of engagements a request attends to.
        dropout: inside HSTU layers and the tower.
        stochastic_length: trains on a random part of long histories; published vectors attend to all of them.
        prefixes: widths to which the published embedding can be cut (:func:`hypercast.codec.rows.prefix`): the main
            tasks are also learned from its first numbers alone, by heads of their own (Kusupati et al., Matryoshka
            Representation Learning, NeurIPS 2022). They take part in training only.
        """

        width: int = pydantic.Field(default=64, ge=MULTIPLE, multiple_of=MULTIPLE)
        representation: int = pydantic.Field(default=64, ge=1)
        tower: int = pydantic.Field(default=256, ge=1)
        history: int = pydantic.Field(default=128, ge=0)
        dropout: float = pydantic.Field(default=0.1, ge=0.0, lt=1.0)
        stochastic_length: StochasticLength.Config = StochasticLength.Config()
        prefixes: list[int] = []
        stack: HSTUStack.Config = HSTUStack.Config()
        vocabulary: BatchVocabulary.Config = BatchVocabulary.Config()

        @pydantic.model_validator(mode="after")
        def _heads_divide_width(self) -> "FoundationModel.Config":
            if self.width % self.stack.heads:
                raise ValueError(f"width {self.width} must be a multiple of stack.heads {self.stack.heads}")
            return self

        @pydantic.model_validator(mode="after")
        def _prefixes_are_shorter(self) -> "FoundationModel.Config":
            if sorted(set(self.prefixes) & set(range(1, self.representation))) != self.prefixes:
                raise ValueError(
                    f"prefixes {self.prefixes} must grow and lie between 1 and representation {self.representation}, "
                    "without it. Example: [16, 32]"
                )
            return self

        def tower_shape(self, inputs: Inputs) -> TowerShape:
            """Of the shared tower and its main heads, for experts that start from them."""
            entering = 3 * self.width + encoded_width(len(inputs.dense))
            return TowerShape(inputs=entering, hidden=self.tower, representation=self.representation)

        def build(self, *, inputs: Inputs, seed: int) -> "FoundationModel":
            return FoundationModel(config=self, inputs=inputs, seed=seed)

    def __init__(self, *, config: Config, inputs: Inputs, seed: int) -> None:
        super().__init__()
        width, rank, tasks = config.width, config.representation, len(inputs.tasks)

        def dropout(name: str) -> NamedDropout:
            return NamedDropout(config.dropout, seed=seed, name=f"foundation/{name}")

        self.config = config
        self.delayed = DelayedHeads(inputs.plan)
        self.stochastic_length = config.stochastic_length.build(
            base_length=config.history, seed=seed, name="foundation/history"
        )
        self.vocabulary = config.vocabulary.build(inputs)
        self.table = FeatureEmbedding.of(self.vocabulary, width=width)
        self.surface = nn.Embedding(len(inputs.surfaces) + 1, width)
        self.action = nn.Embedding(len(inputs.actions), width)
        self.kind = nn.Embedding(CONTEXT_TOKENS, width)
        self.numbers = NumberEncoding(len(inputs.dense))
        self.dense = nn.Linear(self.numbers.width, width)
        self.stack = HSTUStack(
            config.stack,
            width=width,
            positions=CONTEXT_TOKENS + config.history + 1,
            dropouts=[dropout(f"layer{index}") for index in range(config.stack.layers)],
        )
        self.tower = nn.Sequential(
            nn.Linear(3 * width + self.numbers.width, config.tower),
            nn.SiLU(),
            dropout("tower"),
            nn.Linear(config.tower, rank),
            nn.SiLU(),
        )
        self.main_heads = nn.Linear(rank, tasks)
        self.prefix_heads = nn.ModuleList(nn.Linear(prefix, tasks) for prefix in config.prefixes)
        self.alignment = nn.Sequential(nn.Linear(rank + width + self.numbers.width, rank), nn.SiLU())
        self.surface_heads = nn.Linear(rank, len(inputs.surfaces) * tasks)
        for embedding in (self.surface, self.action, self.kind):
            normal_start(embedding.weight, 0.02)
        initialise_(self, seed)

    def forward(self, batch: RequestBatch) -> FoundationOutput:
        """Score every candidate of ``batch``; reads nothing of its labels (law L6)."""
        history = batch.history["all"]
        if self.stochastic_length is not None:
            history = self.stochastic_length(history)
        embedded = self.embed(batch)
        candidates = self.candidates(batch, embedded, slice(None))
        prefix_PD, prefix = self.prefix(batch, history, embedded)
        join = Join.of(prefix.offsets, batch.offsets)
        sequences = replace(
            prefix,
            offsets=join.offsets,
            num_targets=batch.offsets.diff(),
            timestamps=join(prefix.timestamps, candidates.time_C),
        )
        encoded_ND = self.stack(join(prefix_PD, candidates.token_CD), sequences)
        return self.predict(encoded_ND[join.second_T], candidates)

    def embed(self, batch: RequestBatch) -> Embedded:
        """Look up everything categorical in ``batch``."""
        slots = self.vocabulary(batch)
        item_UD, user_BD, request_BD = self.table(slots).split(slots.counts)
        return Embedded(item_UD=item_UD, user_BD=user_BD, request_BD=request_BD)

    def prefix(self, batch: RequestBatch, history: History, embedded: Embedded) -> tuple[Tensor, Sequences]:
        """Tokens ``[P, D]`` of each request before its candidates: user, request, history."""
        context_BKD = torch.stack([embedded.user_BD, embedded.request_BD], dim=1) + self.kind.weight
        event_LD = (
            embedded.item_UD[history.item_L] + self.surface(history.surface_L + 1) + self.action(history.action_L)
        )
        join = Join.of(CONTEXT_TOKENS * torch.arange(len(batch) + 1), history.offsets)
        sequences = Sequences(
            offsets=join.offsets,
            num_targets=torch.zeros(len(batch), dtype=torch.int64),
            contextual_len=CONTEXT_TOKENS,
            timestamps=join(batch.time_B.repeat_interleave(CONTEXT_TOKENS), history.time_L),
            max_seq_len=CONTEXT_TOKENS + self.config.history,
        )
        return join(context_BKD.flatten(0, 1), event_LD), sequences

    def user(self, batch: RequestBatch) -> Tensor:
        """What the model makes of each request's user before it looks at any candidate, float ``[B, D]``.

        HSTU output at the last token of the history, or of the context where there is none. No loss reads the last
        layer there: it is the same weights that make the output at a candidate, at a token of the past.
        """
        prefix_PD, prefix = self.prefix(batch, batch.history["all"], self.embed(batch))
        return self.stack(prefix_PD, prefix)[prefix.offsets[1:] - 1]

    def candidates(self, batch: RequestBatch, embedded: Embedded, part: slice) -> Candidates:
        """The candidates ``batch.item_C[part]`` and what else is known of each."""
        owner_C, dense_CE = batch.owner_C[part], self.numbers(batch.dense_CF[part])
        item_CD = embedded.item_UD[batch.item_C[part]] + self.surface(batch.surface_C[part] + 1)
        return Candidates(
            item_CD=item_CD,
            token_CD=item_CD + self.dense(dense_CE),
            context_CD=(embedded.user_BD + embedded.request_BD)[owner_C],
            dense_CE=dense_CE,
            surface_C=batch.surface_C[part],
            time_C=batch.time_B[owner_C],
        )

    def predict(self, encoded_CD: Tensor, candidates: Candidates) -> FoundationOutput:
        """From the HSTU output at each candidate to representation and logits."""
        context_CD, dense_CE = candidates.context_CD, candidates.dense_CE
        tower_input_CI = torch.cat([encoded_CD, candidates.item_CD, context_CD, dense_CE], dim=1)
        penultimate_CR = self.tower(tower_input_CI)
        aligned_CR = self.alignment(torch.cat([penultimate_CR, context_CD, dense_CE], dim=1))
        by_surface_CST = self.surface_heads(aligned_CR).unflatten(1, (-1, self.main_heads.out_features))
        rows = torch.arange(len(candidates.surface_C))
        return FoundationOutput(
            sequence_CD=encoded_CD,
            tower_input_CI=tower_input_CI,
            penultimate_CR=penultimate_CR,
            logit_CT=self.main_heads(penultimate_CR),
            surface_logit_CT=by_surface_CST[rows, candidates.surface_C],
        )

    def loss(self, output: FoundationOutput, batch: RequestBatch, *, surface_weight: float) -> Tensor:
        """Log loss of the main tasks plus ``surface_weight`` times that of the surface tasks, over known labels.

        With ``prefixes``, plus the mean log loss of the main tasks from each prefix of the representation.
        """
        labels = batch.labels
        main = self.delayed.loss(output.logit_CT, labels.label_CT, labels.known_CT)
        surface = self.delayed.loss(output.surface_logit_CT, labels.label_CT, labels.known_CT)
        loss = main + surface_weight * surface
        for prefix, head in zip(self.config.prefixes, self.prefix_heads, strict=True):
            logit_CT = head(output.penultimate_CR[:, :prefix])
            loss = loss + self.delayed.loss(logit_CT, labels.label_CT, labels.known_CT) / len(self.prefix_heads)
        return loss
