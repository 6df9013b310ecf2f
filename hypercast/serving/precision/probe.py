"""What flows through a model's layers, seen by hooks on some of its calls.

Shape legend: N rows, I inputs, O outputs.
"""

from collections import deque
from types import TracebackType
from typing import Any, Self

import numpy as np
import pydantic
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foundation.hstu.embedding import FeatureEmbedding
from foundation.hstu.vocabulary import Slots
from hypercast.serving.precision.kernels import LinearKernel
from hypercast.serving.precision.moments import Moments
from hypercast.serving.precision.tables import CompactTable
from streaming.config import Config as BaseConfig

RECENT = 1024
"""Calls whose numbers of rows are remembered."""


class Seen:
    """Of one linear layer: moments of ``inputs`` and ``outputs``, ``rows`` of each recent call, and ``kept`` inputs."""

    def __init__(self, layer: nn.Linear | LinearKernel) -> None:
        self.inputs = Moments(layer.in_features)
        self.outputs = Moments(layer.out_features)
        self.rows: deque[int] = deque(maxlen=RECENT)
        self.kept: list[Tensor] = []

    @property
    def typical_rows(self) -> int:
        """The median over the calls seen; 0 before there are any."""
        return int(np.median(self.rows)) if self.rows else 0

    def kept_NI(self) -> Tensor:
        """Float32, the inputs that were kept of all calls."""
        return torch.cat(self.kept) if self.kept else torch.zeros(0, len(self.inputs.mean_I))


class Probe:
    """Watches the linear layers of a model, and which rows its tables are asked for, while it is open.

    >>> with Probe(config=Probe.Config(), model=model) as probe:
    ...     serve()
    >>> probe.layers["tower.0"].inputs.mean_I

    Of every so many passes through the model one is looked at; between them there is one hook, which counts passes by
    the model's first table (or first layer, if it has none). For one thread at a time.
    """

    class Config(BaseConfig):
        """Attributes:

        every: passes of which one is looked at, beginning with the first.
        rows: of each call of a layer in it, how many at most, drawn at random.
        keep: rows of inputs a layer keeps for measuring errors on them; 0 for none, as beside live traffic.
        seed: of the draws.
        """

        every: int = pydantic.Field(default=128, ge=1)
        rows: int = pydantic.Field(default=128, ge=1)
        keep: int = pydantic.Field(default=0, ge=0)
        seed: int = 0

    def __init__(self, *, config: Config, model: nn.Module) -> None:
        self.config = config
        self.layers: dict[str, Seen] = {}
        self.slots: dict[str, list[Slots]] = {}
        self._random = np.random.default_rng([config.seed, 0x9B0BE])
        self._passes = 0
        self._hooks: list[RemovableHandle] = []
        self._watched: list[tuple[nn.Module, Any]] = []
        tables, linear = [], []
        for name, layer in model.named_modules():
            if type(layer) is nn.Linear or isinstance(layer, LinearKernel):
                self.layers[name] = Seen(layer)
                self._watched.append((layer, self._linear_hook(self.layers[name])))
                linear.append(layer)
            elif isinstance(layer, FeatureEmbedding | CompactTable):
                self.slots[name] = []
                self._watched.append((layer, self._table_hook(self.slots[name])))
                tables.append(layer)
        # Models look up first, and once.
        first = [*tables, *linear][:1]
        self._counter = [layer.register_forward_pre_hook(self._count) for layer in first]

    def close(self) -> None:
        """Remove the hooks; what was seen stays."""
        for hook in (*self._counter, *self._hooks):
            hook.remove()
        self._counter, self._hooks = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _count(self, layer: nn.Module, given: Any) -> None:
        if self._passes % self.config.every == 0:
            if not self._hooks:
                self._hooks = [each.register_forward_hook(hook) for each, hook in self._watched]
        elif self._hooks:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []
        self._passes += 1

    def _linear_hook(self, seen: Seen) -> Any:
        def look(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            self._look(seen, _rows(given[0]), _rows(output))

        return look

    def _look(self, seen: Seen, input_NI: Tensor, output_NO: Tensor) -> None:
        seen.rows.append(len(input_NI))
        if len(input_NI) > self.config.rows:
            # With replacement: that costs no more for a long batch than for a short one.
            row_N = torch.from_numpy(self._random.integers(len(input_NI), size=self.config.rows))
            input_NI, output_NO = input_NI[row_N], output_NO[row_N]
        seen.inputs.update(input_NI)
        seen.outputs.update(output_NO)
        room = self.config.keep - sum(map(len, seen.kept))
        if room > 0:
            seen.kept.append(input_NI[:room].float().clone())

    def _table_hook(self, asked: list[Slots]) -> Any:
        def look(layer: nn.Module, given: tuple[Slots], output: Tensor) -> None:
            if self.config.keep:
                asked.append(given[0])

        return look


def _rows(x: Tensor) -> Tensor:
    return x.detach().reshape(-1, x.shape[-1])


def predicted_errors(probe: Probe, model: nn.Module) -> dict[str, float]:
    """By layer, the relative error that statistics lead to expect of its kernel on the traffic that ``probe`` saw.

    ``model`` is the one that was probed; of its layers those that the traffic reached and that are compact.
    """
    expected = {}
    for name, seen in probe.layers.items():
        layer = model.get_submodule(name)
        if isinstance(layer, LinearKernel) and seen.inputs.count:
            expected[name] = layer.predicted_error(seen.inputs, seen.outputs)
    return expected
