"""A model beside a model: the same tensors under another tree of modules, so that layers can be exchanged in one."""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TypeVar, cast

from torch import nn

from foundation.hstu.layer import HSTULayer
from hypercast.serving.precision.kernels import Float32, LinearKernel
from hypercast.serving.precision.tables import CompactTable

ModelT = TypeVar("ModelT", bound=nn.Module)


def twin(model: ModelT) -> ModelT:
    """A copy of ``model`` whose modules and hooks are its own and whose tensors are the model's."""
    other = copy.copy(model)
    for name, value in vars(model).items():
        if isinstance(value, OrderedDict):  # hooks: the model may be answering others meanwhile
            other.__dict__[name] = copy.copy(value)
    other._modules = {name: child and twin(child) for name, child in model._modules.items()}
    return other


def with_layers(model: ModelT, layers: Mapping[str, LinearKernel | CompactTable], *, linear: Iterable[str]) -> ModelT:
    """A twin of ``model`` with ``layers`` in the places of those names.

    The others of the ``linear`` layers compute what they did, of any float dtype: what comes before may keep its own.
    """
    other = twin(model)
    for name in linear:
        if name not in layers:
            layer = cast(nn.Linear, model.get_submodule(name))
            _put(other, name, Float32.of(layer.weight, layer.bias, keep=False))
    for name, each in layers.items():
        _put(other, name, each)
    return other


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)


def keeps(model: nn.Module, name: str) -> bool:
    """Whether what comes after the layer called ``name`` can go on in fewer bits.

    So it is with an HSTU layer's first projection, whose output is split into what attention takes in any dtype, and
    between two linear layers of a sequence.
    """
    parent, _, own = name.rpartition(".")
    around = model.get_submodule(parent)
    if isinstance(around, HSTULayer):
        return own == "project"
    if isinstance(around, nn.Sequential):
        return any(isinstance(each, nn.Linear | LinearKernel) for each in list(around)[int(own) + 1 :])
    return False
