"""GESR: a mixture of attention beside the towers, for early-stage ranking (arXiv 2511.21095).

Three ways of looking from a candidate at the past, each a branch, and gates that say for each candidate how much of
each branch reaches the heads. The paper's gates weigh *logits*; here they weigh the branches that a linear head reads:
``w0·h + Σ_k w_k·(g_k b_k) = logit + Σ_k g_k logit_k``, the same by distributivity, and any number of heads share them.

Shape legend: B requests, C candidates, L events, X the longest history of the batch, U distinct items, A item
attributes, D width of embeddings, N tokens of the item's side, K branches, H output width.
"""

from typing import Literal

import pydantic
import torch
from torch import Tensor, nn

from experts.backbone.matching import match_counts
from experts.backbone.mlp import MLP
from experts.backbone.parts import CANDIDATE, CONTEXT, Parts, Past, Shapes
from foundation.hstu.jagged import Join
from foundation.hstu.layer import HSTUStack, Sequences
from hypercast.training.random import normal_start
from streaming.config import Config as BaseConfig

BRANCHES = ("hard", "target", "cross")


class HardMatching(nn.Module):
    """Counts of exact matches, an attribute each, in logarithms through one hidden layer.

    The paper clips counts and embeds each; logarithms need no limit and share what neighbouring counts have in common.
    """

    def __init__(self, *, attributes: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(attributes, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, past: Past) -> Tensor:
        """Float ``[C, D]``."""
        return self.layers(match_counts(past).to(past.item_UD.dtype).log1p())


class TargetAwareAttention(nn.Module):
    """HSTU over [events; candidate]: events attend to earlier ones, a candidate to all of them and to no other."""

    def __init__(self, *, stack: HSTUStack.Config, width: int, history: int) -> None:
        super().__init__()
        self.history = history
        self.stack = HSTUStack(
            stack, width=width, positions=history + 1, dropouts=[nn.Identity() for _ in range(stack.layers)]
        )

    def forward(self, candidate_CD: Tensor, event_LD: Tensor, past: Past) -> Tensor:
        """Float ``[C, D]``."""
        join = Join.of(past.history.offsets, past.offsets)
        sequences = Sequences(
            offsets=join.offsets,
            num_targets=past.offsets.diff(),
            contextual_len=0,
            timestamps=join(past.history.time_L, past.time_B[past.owner_C]),
            max_seq_len=self.history,
        )
        return self.stack(join(event_LD, candidate_CD), sequences)[join.second_T]


class CrossAttention(nn.Module):
    """Both ways: the candidate asks the events, and the request's side asks the item's. Linear in events and fields."""

    def __init__(self, *, width: int, item_side: dict[str, int]) -> None:
        super().__init__()
        self.item_asks = nn.Linear(width, width)
        self.event_key_value = nn.Linear(width, 2 * width)
        self.user_asks = nn.Linear(width, width)
        self.item_key_value = nn.ModuleDict({name: nn.Linear(size, 2 * width) for name, size in item_side.items()})
        self.output = nn.Linear(2 * width, width)

    def forward(self, parts: Parts, event_LD: Tensor) -> Tensor:
        """Float ``[C, D]``."""
        from_events_CD = self._ask_events(parts.fields[CANDIDATE], event_LD, parts.past)
        fields = [layer(parts.fields[name]) for name, layer in self.item_key_value.items()]
        key_CND, value_CND = torch.stack(fields, dim=1).chunk(2, dim=2)
        from_item_CD = _attend(self.user_asks(parts.fields[CONTEXT]), key_CND, value_CND, None)
        return self.output(torch.cat([from_events_CD, from_item_CD], dim=1))

    def _ask_events(self, candidate_CD: Tensor, event_LD: Tensor, past: Past) -> Tensor:
        """Zeros for a request without events."""
        offsets = past.history.offsets
        longest = int(offsets.diff().max()) if len(offsets) > 1 else 0
        if longest == 0:
            return torch.zeros_like(candidate_CD)
        token_BX = offsets[:-1, None] + torch.arange(longest)
        present_BX = token_BX < offsets[1:, None]
        both_BXD = self.event_key_value(event_LD)[token_BX.clamp(max=len(event_LD) - 1)]
        key_CXD, value_CXD = both_BXD[past.owner_C].chunk(2, dim=2)
        return _attend(self.item_asks(candidate_CD), key_CXD, value_CXD, present_BX[past.owner_C])


class GESR(nn.Module):
    """A tower on all parts, three branches of attention, and gates on the branches."""

    class Config(BaseConfig):
        """``{kind: gesr}``. Attributes:

        hidden: widths of the tower's layers; the tower gives the primary logit.
        stack: HSTU layers of the target-aware branch; the width of embeddings is a multiple of its heads.
        gate: width of the gates' hidden layer.
        """

        kind: Literal["gesr"] = "gesr"
        hidden: list[int] = pydantic.Field(default=[64, 32], min_length=1)
        stack: HSTUStack.Config = HSTUStack.Config(layers=1, heads=1)
        gate: int = pydantic.Field(default=16, ge=1)

        def build(self, shapes: Shapes) -> "GESR":
            return GESR(config=self, shapes=shapes)

    def __init__(self, *, config: Config, shapes: Shapes) -> None:
        """Raises ValueError where a part is missing, no history is kept, or heads do not divide the width."""
        super().__init__()
        width = _embedding_width(config, shapes)
        self.action = nn.Embedding(len(shapes.inputs.actions), width)
        self.surface = nn.Embedding(len(shapes.inputs.surfaces) + 1, width)
        normal_start(self.action.weight, 0.02)
        normal_start(self.surface.weight, 0.02)
        self.hard = HardMatching(attributes=len(shapes.inputs.item_features), width=width)
        self.target = TargetAwareAttention(stack=config.stack, width=width, history=shapes.history)
        item_side = {name: size for name, size in shapes.fields.items() if name != CONTEXT and size}
        self.cross = CrossAttention(width=width, item_side=item_side)
        self.tower = MLP.Config(hidden=config.hidden).build(width=shapes.width)
        self.gate = nn.Sequential(
            nn.Linear(self.tower.width + len(BRANCHES) * width, config.gate),
            nn.SiLU(),
            nn.Linear(config.gate, len(BRANCHES)),
        )
        self.width = self.tower.width + len(BRANCHES) * width

    def forward(self, parts: Parts) -> Tensor:
        """Float ``[C, H]``: the tower's output, then each branch times its gate."""
        past = parts.past
        primary, branches = self.tower(parts.flat), self.branches(parts, self._events(past))
        gate_CK = torch.sigmoid(self.gate(torch.cat([primary, *branches], dim=1)))
        gated = (branch_CD * gate_C1 for branch_CD, gate_C1 in zip(branches, gate_CK.split(1, dim=1), strict=True))
        return torch.cat([primary, *gated], dim=1)

    def branches(self, parts: Parts, event_LD: Tensor) -> list[Tensor]:
        """K times float ``[C, D]``, before gating, in the order of :data:`BRANCHES`."""
        return [
            self.hard(parts.past),
            self.target(parts.fields[CANDIDATE], event_LD, parts.past),
            self.cross(parts, event_LD),
        ]

    def _events(self, past: Past) -> Tensor:
        history = past.history
        return past.item_UD[history.item_L] + self.action(history.action_L) + self.surface(history.surface_L + 1)


def _embedding_width(config: GESR.Config, shapes: Shapes) -> int:
    widths = {shapes.fields.get(name) for name in (CANDIDATE, CONTEXT)}
    if len(widths) > 1 or None in widths:
        raise ValueError(f"gesr needs parts {CANDIDATE!r} and {CONTEXT!r} of one width; got {dict(shapes.fields)}")
    if shapes.history < 1:
        raise ValueError("gesr needs a history; set the model's history to 1 or more. Example: 16.")
    width = shapes.fields[CANDIDATE]
    if width % config.stack.heads:
        raise ValueError(f"gesr: width {width} must be a multiple of stack.heads {config.stack.heads}")
    return width


def _attend(query_CD: Tensor, key_CND: Tensor, value_CND: Tensor, present_CN: Tensor | None) -> Tensor:
    """Softmax attention of one query a candidate, float ``[C, D]``; zeros where nothing is present."""
    score_CN = torch.einsum("cd,cnd->cn", query_CD, key_CND) * query_CD.shape[1] ** -0.5
    if present_CN is not None:
        score_CN = score_CN.masked_fill(~present_CN, torch.finfo(score_CN.dtype).min)
    weight_CN = score_CN.softmax(dim=1)
    if present_CN is not None:
        weight_CN = weight_CN * present_CN
    return torch.einsum("cn,cnd->cd", weight_CN, value_CND)
