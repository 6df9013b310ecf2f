"""Trained on a stream, each batch once, every backbone learns what an MLP of at least its size does not."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from experts.backbone.choice import Backbone, BackboneConfig
from experts.backbone.dcn import DCNv2
from experts.backbone.dhen import DHEN
from experts.backbone.gesr import GESR
from experts.backbone.matching import match_counts
from experts.backbone.parts import Parts, Past, Shapes
from experts.backbone.plain import Plain
from hypercast.training.random import initialise_
from streaming.batch import History
from streaming.inputs import Inputs

Draw = Callable[[torch.Generator, int], tuple[Parts, Tensor]]

INPUTS = Inputs(
    item_features=["item_id", "kind"],
    user_features=["user_id"],
    context=[],
    dense=[],
    surfaces=["home"],
    actions=["buy"],
    tasks=["buy"],
)
ITEMS, EVENTS, WIDTH = 200, 6, 8


def likeness(stream: torch.Generator, size: int, parts_of) -> tuple[Parts, Tensor]:
    """Whether two pairs of vectors are alike in the same sense: an exclusive or of two similarities."""
    a, b, c, d = torch.randn(4, size, 3, generator=stream)
    return parts_of(a=a, b=b, c=c, d=d), torch.tanh((a * b).sum(1)) * torch.tanh((c * d).sum(1))


def monomials(stream: torch.Generator, size: int, parts_of) -> tuple[Parts, Tensor]:
    """Products of three features each."""
    x = torch.randn(size, 10, generator=stream)
    target = x[:, 0] * x[:, 6] * x[:, 8] + x[:, 1] * x[:, 2] * x[:, 7]
    return parts_of(user=x[:, :5], item=x[:, 5:]), target


def repeats(stream: torch.Generator, size: int, parts_of) -> tuple[Parts, Tensor]:
    """How often the candidate's kind was bought before; the parts hold the mean of what was bought."""
    table = torch.randn(ITEMS, WIDTH, generator=torch.Generator().manual_seed(5))
    code = torch.stack([torch.arange(ITEMS) + 1, torch.arange(ITEMS) % 5 + 1], dim=1)
    item_C = torch.randint(ITEMS, (size,), generator=stream)
    event_L = torch.randint(ITEMS, (size * EVENTS,), generator=stream)
    nothing = torch.zeros(len(event_L), dtype=torch.int64)
    past = Past(
        item_UD=table,
        code_UA=code,
        history=History(
            item_L=event_L,
            surface_L=nothing,
            action_L=nothing,
            time_L=nothing,
            offsets=torch.arange(size + 1) * EVENTS,
        ),
        item_C=item_C,
        owner_C=torch.arange(size),
        offsets=torch.arange(size + 1),
        time_B=torch.full((size,), 10**6),
    )
    context = table[event_L].view(size, EVENTS, WIDTH).mean(1)
    made = replace(parts_of(candidate=table[item_C], context=context), past=past)
    return made, (match_counts(past)[:, 1].float() - 1.2).div(2)


def error(config: BackboneConfig, shapes: Shapes, draw: Draw, *, steps: int) -> tuple[Backbone, float]:
    """The backbone after training, and its squared error on fresh data as a share of the target's variance."""
    backbone = config.build(shapes)
    model = nn.ModuleList([backbone, nn.Linear(backbone.width, 1)])
    initialise_(model, 0)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    stream = torch.Generator().manual_seed(0)
    for _ in range(steps):
        parts, target = draw(stream, 128)
        optimiser.zero_grad()
        (model[1](backbone(parts))[:, 0] - target).square().mean().backward()
        optimiser.step()
    with torch.no_grad():
        parts, target = draw(stream, 2000)
        return backbone, float((model[1](backbone(parts))[:, 0] - target).square().mean() / target.var())


@pytest.mark.parametrize(
    ("config", "task", "steps"),
    [
        (DCNv2.Config(structure="parallel", hidden=[8]), monomials, 150),
        pytest.param(
            DHEN.Config(width=8, interactions=["dot", "cross", "linear"], hidden=[16]),
            likeness,
            400,
            marks=pytest.mark.slow,
        ),
        (GESR.Config(hidden=[16]), repeats, 60),
    ],
)
def test_what_a_tower_finds_hard(config: BackboneConfig, task: Callable, steps: int, parts_of) -> None:
    def draw(stream: torch.Generator, size: int) -> tuple[Parts, Tensor]:
        return task(stream, size, parts_of)

    parts, _ = draw(torch.Generator(), 1)
    widths = {name: field.shape[1] for name, field in parts.fields.items()}
    shapes = Shapes(fields=widths, history=EVENTS, inputs=INPUTS)
    backbone, learned = error(config, shapes, draw, steps=steps)
    size = sum(each.numel() for each in backbone.parameters())
    hidden = 1
    while sum(each.numel() for each in Plain.Config(hidden=[hidden, 32]).build(shapes).parameters()) < size:
        hidden += 1
    _, plain = error(Plain.Config(hidden=[hidden, 32]), shapes, draw, steps=steps)
    assert learned < 0.6 * plain
    assert learned < 0.6
