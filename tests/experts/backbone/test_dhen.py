"""A DHEN layer is the normalised sum of its interactions and its input; each interaction does what its name says."""

import pydantic
import pytest
import torch
from torch import nn

from experts.backbone.dhen import DHEN, INTERACTIONS, DHENLayer
from experts.backbone.interactions import CrossTokens, DotProducts, LinearTokens, SelfAttention
from hypercast.training.random import initialise_

TOKENS, WIDTH = 3, 4


def tokens(candidates: int = 5) -> torch.Tensor:
    return torch.randn(candidates, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))


def built(kind: type[nn.Module]) -> nn.Module:
    made = kind(tokens=TOKENS, width=WIDTH, heads=2)
    initialise_(made, 0)
    return made


def test_attention_is_a_softmax_over_tokens() -> None:
    module, x = built(SelfAttention), tokens()
    query, key, value = module.query_key_value(x).chunk(3, dim=2)
    heads = []
    for head in (slice(0, 2), slice(2, 4)):
        scores = query[..., head] @ key[..., head].transpose(1, 2) / 2**0.5
        heads.append(scores.softmax(2) @ value[..., head])
    torch.testing.assert_close(module(x), module.output(torch.cat(heads, 2)))


def test_cross_is_one_cross_layer_over_all_tokens() -> None:
    module, x = built(CrossTokens), tokens()
    flat = x.flatten(1)
    expected = flat * (flat @ module.cross.expand.weight.T + module.cross.expand.bias) + flat
    torch.testing.assert_close(module(x).flatten(1), expected)


def test_linear_mixes_tokens() -> None:
    module, x = built(LinearTokens), tokens()
    expected = torch.einsum("mn,cnd->cmd", module.mix.weight, x) + module.mix.bias[:, None]
    torch.testing.assert_close(module(x), expected)


def test_dot_reads_nothing_but_products() -> None:
    """So the tokens may be rotated together."""
    module, x = built(DotProducts), tokens()
    rotation, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(module(x @ rotation), module(x), rtol=1e-4, atol=1e-5)
    assert not module(x * 2).allclose(module(x))


@pytest.mark.parametrize("concat", [False, True])
def test_a_layer_is_the_normalised_ensemble_and_shortcut(concat: bool) -> None:
    names = list(INTERACTIONS)
    layer = DHENLayer(tokens=TOKENS, width=WIDTH, heads=2, interactions=names, concat=concat)
    initialise_(layer, 0)
    x = tokens()
    seen = [interaction(x) for interaction in layer.interactions]
    mixed = torch.einsum("nk,ckd->cnd", layer.mix.weight, torch.cat(seen, 1)) if concat else None
    ensemble = sum(seen) / len(seen) if mixed is None else mixed
    expected = nn.functional.layer_norm(ensemble + x, (WIDTH,))
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ensemble", ["sum", "concat"])
def test_every_parameter_learns(ensemble: str, parts_of, shapes_of) -> None:
    drawn = torch.Generator().manual_seed(0)
    parts = parts_of(a=torch.randn(9, 3, generator=drawn), b=torch.rand(9, 2, generator=drawn))
    config = DHEN.Config(width=4, interactions=list(INTERACTIONS), ensemble=ensemble, hidden=[6])
    backbone = config.build(shapes_of(parts))
    initialise_(backbone, 0)
    output = backbone(parts)
    output.square().sum().backward()
    assert output.shape == (9, 6)
    assert backbone.width == 6
    silent = [name for name, each in backbone.named_parameters() if each.grad is None or not each.grad.any()]
    assert silent == []


def test_a_part_of_width_0_has_no_token(parts_of, shapes_of) -> None:
    parts = parts_of(a=torch.ones(2, 3), dense=torch.zeros(2, 0), b=torch.ones(2, 1))
    backbone = DHEN.Config(width=4).build(shapes_of(parts))
    initialise_(backbone, 0)
    assert backbone(parts).shape == (2, 32)
    assert backbone.layers[0].interactions[2].mix.in_features == 2


def test_a_part_more_leaves_the_other_projections_as_they_were(parts_of, shapes_of) -> None:
    few, many = parts_of(a=torch.ones(2, 3)), parts_of(z=torch.ones(2, 2), a=torch.ones(2, 3))
    one, other = (DHEN.Config(width=4).build(shapes_of(parts)) for parts in (few, many))
    initialise_(one, 0)
    initialise_(other, 0)
    assert one.project["a"].weight.equal(other.project["a"].weight)


@pytest.mark.parametrize("wrong", [{"width": 5}, {"interactions": []}, {"interactions": ["fm"]}, {"layers": 0}])
def test_refuses(wrong: dict) -> None:
    with pytest.raises(pydantic.ValidationError):
        DHEN.Config(**wrong)
