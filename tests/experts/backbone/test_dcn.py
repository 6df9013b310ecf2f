"""Cross layers are the formula, polynomials of the degree that they promise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from experts.backbone.dcn import Cross, DCNv2
from hypercast.training.random import initialise_


def test_by_hand() -> None:
    layer = Cross(width=2)
    with torch.no_grad():
        layer.expand.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        layer.expand.bias.copy_(torch.tensor([0.5, 3.0]))
    first, x = torch.tensor([[2.0, 3.0]]), torch.tensor([[1.0, -1.0]])
    # W x + b = [1 - 2 + 0.5, 1 + 3] = [-0.5, 4]; times x0 = [-1, 12]; plus x
    assert layer(first, x).tolist() == [[0.0, 11.0]]


def test_a_product_of_two_features_is_one_layer() -> None:
    """x0 * W x + x with one entry of W set holds the product of two features beside them."""
    layer = Cross(width=3)
    nn.init.zeros_(layer.expand.weight)
    nn.init.zeros_(layer.expand.bias)
    with torch.no_grad():
        layer.expand.weight[0, 1] = 1.0
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x, x)[:, 0] - x[:, 0], x[:, 0] * x[:, 1])


def test_full_rank_holds_every_low_rank() -> None:
    low, full = Cross(width=4, rank=2), Cross(width=4)
    initialise_(low, 0)
    with torch.no_grad():
        full.expand.weight.copy_(low.expand.weight @ low.narrow.weight)
        full.expand.bias.copy_(low.expand.bias)
    first, x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(full(first, x), low(first, x))


@settings(deadline=None, max_examples=30)
@given(crosses=st.integers(1, 4), rank=st.sampled_from([None, 1, 2]), seed=st.integers(0, 99))
def test_degree(crosses: int, rank: int | None, seed: int) -> None:
    """Along a line through the origin, L crosses are a polynomial of degree L + 1: its next difference vanishes."""
    layers = nn.ModuleList(Cross(width=3, rank=rank) for _ in range(crosses)).double()
    initialise_(layers, seed)
    for layer in layers:
        nn.init.constant_(layer.expand.bias, 0.7)
    direction = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def difference(order: int) -> torch.Tensor:
        first = x = torch.arange(order + 1, dtype=torch.float64)[:, None] * direction
        for layer in layers:
            x = layer(first, x)
        for _ in range(order):
            x = x.diff(dim=0)
        return x.abs().max() / direction.abs().max()

    assert difference(crosses + 2) < 1e-7
    assert difference(crosses + 1) > 1e-7


@pytest.mark.parametrize(("structure", "width"), [("stacked", 4), ("parallel", 9)])
def test_structures(structure: str, width: int, parts_of, shapes_of) -> None:
    parts = parts_of(a=torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), b=torch.ones(6, 2))
    backbone = DCNv2.Config(structure=structure, hidden=[8, 4]).build(shapes_of(parts))
    initialise_(backbone, 0)
    crossed = parts.flat
    for cross in backbone.crosses:
        crossed = cross(parts.flat, crossed)
    expected = {
        "stacked": lambda: backbone.tower(crossed),
        "parallel": lambda: torch.cat([crossed, backbone.tower(parts.flat)], dim=1),
    }[structure]()
    assert backbone.width == width == expected.shape[1]
    assert backbone(parts).equal(expected)
