"""Each kernel computes its layer, errs as its statistics say, and knows nothing of the other rows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hypercast.serving.precision.kernels import KERNELS, KernelName
from hypercast.serving.precision.moments import Moments
from hypercast.serving.precision.options import relative_error

NAMES: list[KernelName] = ["float32", "bfloat16", "int8"]
LARGEST = {"float32": 0.0, "bfloat16": 0.008, "int8": 0.02}
names = pytest.mark.parametrize("name", NAMES)


def layer_and_rows(
    seed: int, *, rows: int = 64, inputs: int = 24, outputs: int = 10, bias: bool = True
) -> tuple[nn.Linear, torch.Tensor]:
    stream = torch.Generator().manual_seed(seed)
    layer = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    layer.weight.copy_(torch.randn(outputs, inputs, generator=stream) * 0.2)
    if bias:
        layer.bias.copy_(torch.randn(outputs, generator=stream))
    return layer, torch.randn(rows, inputs, generator=stream) + 0.5


@names
@given(seed=st.integers(0, 1000), rows=st.integers(1, 40), bias=st.booleans())
def test_the_error_is_within_its_kind(name: KernelName, seed: int, rows: int, bias: bool) -> None:
    layer, x_NI = layer_and_rows(seed, rows=rows, bias=bias)
    found = KERNELS[name].of(layer.weight, layer.bias, keep=False)(x_NI)
    assert found.dtype == torch.float32
    assert relative_error(found, layer(x_NI)) <= LARGEST[name]


@names
def test_a_row_is_computed_as_if_it_were_alone(name: KernelName) -> None:
    layer, x_NI = layer_and_rows(0)
    kernel = KERNELS[name].of(layer.weight, layer.bias, keep=False)
    x_NI[1:] *= 1000.0
    alone, beside = kernel(x_NI[:1]), kernel(x_NI)[:1]
    torch.testing.assert_close(alone, beside, rtol=1e-5, atol=1e-5)


def test_int8_of_one_row_is_the_same_to_the_bit_beside_any_others() -> None:
    layer, x_NI = layer_and_rows(1)
    kernel = KERNELS["int8"].of(layer.weight, layer.bias, keep=False)
    whole = kernel(x_NI)
    for row in (0, 17, 63):
        assert torch.equal(kernel(x_NI[row : row + 1]), whole[row : row + 1])


@names
@pytest.mark.parametrize("shape", [(0, 24), (3, 4, 24), (24,), (2, 0, 24)])
def test_any_leading_shape_is_taken(name: KernelName, shape: tuple[int, ...]) -> None:
    layer, _ = layer_and_rows(2)
    kernel = KERNELS[name].of(layer.weight, layer.bias, keep=False)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = layer(x)
    assert kernel(x).shape == expected.shape
    torch.testing.assert_close(kernel(x), expected, rtol=0.1, atol=0.05)


@names
def test_bfloat16_comes_in_and_stays_where_it_is_to(name: KernelName) -> None:
    layer, x_NI = layer_and_rows(3)
    kernel = KERNELS[name].of(layer.weight, layer.bias, keep=True)
    found = kernel(x_NI.bfloat16())
    assert found.dtype == (torch.bfloat16 if name == "bfloat16" else torch.float32)
    assert relative_error(found, layer(x_NI)) <= 0.03


@names
def test_what_is_kept_gives_the_same_bits(name: KernelName) -> None:
    layer, x_NI = layer_and_rows(4)
    kernel = KERNELS[name].of(layer.weight, layer.bias, keep=False)
    again = type(kernel).restored({part: value.clone() for part, value in kernel.tensors().items()}, keep=False)
    assert torch.equal(again(x_NI), kernel(x_NI))
    assert (again.in_features, again.out_features) == (24, 10)
    torch.testing.assert_close(kernel.multiplied(), layer.weight, rtol=0.02, atol=0.005)


def test_fewer_bits_are_fewer_bytes() -> None:
    layer, _ = layer_and_rows(5, inputs=256, outputs=64)
    size = {name: KERNELS[name].of(layer.weight, layer.bias, keep=False).nbytes for name in NAMES}
    assert size["float32"] == 4 * (256 * 64 + 64)
    assert size["bfloat16"] == size["float32"] / 2
    assert size["int8"] == 256 * 64 + 8 * 64


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
@pytest.mark.parametrize("shape", [(16, 64), (256, 64), (96, 8)])
def test_statistics_of_gaussian_inputs_say_how_large_the_error_is(name: KernelName, shape: tuple[int, int]) -> None:
    layer, x_NI = layer_and_rows(6, rows=4000, inputs=shape[0], outputs=shape[1])
    x_NI *= torch.from_numpy(np.random.default_rng(0).uniform(0.2, 2.0, shape[0])).float()
    kernel = KERNELS[name].of(layer.weight, layer.bias, keep=name == "bfloat16")
    expected_NO = layer(x_NI)
    inputs, outputs = Moments(shape[0]), Moments(shape[1])
    inputs.update(x_NI)
    outputs.update(expected_NO)
    measured = relative_error(kernel(x_NI), expected_NO)
    assert kernel.predicted_error(inputs, outputs) == pytest.approx(measured, rel=0.15)


def test_float32_has_no_error_and_is_expected_to_have_none() -> None:
    layer, x_NI = layer_and_rows(7)
    kernel = KERNELS["float32"].of(layer.weight, layer.bias, keep=False)
    inputs, outputs = Moments(24), Moments(10)
    inputs.update(x_NI)
    outputs.update(layer(x_NI))
    assert torch.equal(kernel(x_NI), layer(x_NI))
    assert kernel.predicted_error(inputs, outputs) == 0.0
