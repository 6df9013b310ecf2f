"""A model with the kernels that are fastest, and the tables that are smallest, within an accuracy bound.

Probe, bound, dispatch (LoKA, arXiv 2605.10886): a sample of real requests is scored in float32 while a probe watches;
each layer's kernels are measured on the inputs that it saw and at the number of rows that it is called with; of those
whose error is within a bound the fastest is taken, and of tables the smallest. Errors that are small can still add up,
so the whole model is held against float32 too: while that is not within ``ne_cost_pct``, the layer of the largest error
gets the next best kernel that errs less.

Shape legend: C candidates, T tasks.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal

import pydantic
import torch
from torch import Tensor, nn

from foundation.hstu.embedding import FeatureEmbedding
from hypercast.serving.precision import options as measuring
from hypercast.serving.precision.cost import divergence
from hypercast.serving.precision.kernels import KERNELS, LinearKernel
from hypercast.serving.precision.options import Timer
from hypercast.serving.precision.probe import Probe
from hypercast.serving.precision.report import LayerReport, Option, Report
from hypercast.serving.precision.tables import CompactTable, Quantised
from hypercast.serving.precision.twin import ModelT, keeps, twin, with_layers
from streaming.config import Config
from streaming.errors import DataError

Layer = LinearKernel | CompactTable
Logits = Callable[..., Tensor]
"""Logits ``[C, T]`` of a model and the arguments of one call."""


class Precision(Config):
    """How a model is made compact.

    Attributes:
        kernels: that a linear layer may get instead of float32; those of no use on a machine are left out there.
        tables: that an embedding table may get.
        layer_error: bound on the root mean square of a linear layer's error, against that of its outputs.
        table_error: the same of an embedding table's.
        ne_cost_pct: bound on the expected relative change of NE by all choices together, in %.
        probe: what is watched of the sample; of every call, and inputs are kept.
        rounds: how often each kernel is timed.
    """

    kernels: list[Literal["bfloat16", "int8"]] = ["bfloat16", "int8"]
    tables: list[Quantised] = ["int8", "int4"]
    layer_error: float = pydantic.Field(default=0.02, gt=0.0)
    table_error: float = pydantic.Field(default=0.1, gt=0.0)
    ne_cost_pct: float = pydantic.Field(default=0.05, gt=0.0)
    probe: Probe.Config = Probe.Config(every=1, rows=256, keep=1024)
    rounds: int = pydantic.Field(default=11, ge=1)

    @pydantic.field_validator("probe")
    @classmethod
    def _keeps_inputs(cls, probe: Probe.Config) -> Probe.Config:
        if not probe.keep:
            raise ValueError("probe.keep is 0, and errors are measured on the inputs that it keeps. Example: 1024")
        return probe


@dataclass(frozen=True, kw_only=True)
class CompactModel(Generic[ModelT]):
    """Attributes:

    model: of the original's class, called as it is in evaluation mode, with other layers; it cannot be trained.
    layers: those that were exchanged, by name.
    report: what was chosen, and why.
    """

    model: ModelT
    layers: dict[str, Layer]
    report: Report

    def __call__(self, *arguments: Any) -> Any:
        """What the model says."""
        with torch.inference_mode():
            return self.model(*arguments)


def logits_of(model: nn.Module, *arguments: Any) -> Tensor:
    """Logits of a foundation model or an expert."""
    return model(*arguments).logit_CT


@torch.no_grad()
def compact(
    model: ModelT,
    config: Precision,
    sample: Sequence[tuple[Any, ...]],
    *,
    logits: Logits = logits_of,
    reference: Tensor | None = None,
    timer: Timer | None = None,
) -> CompactModel[ModelT]:
    """Choose a kernel for every linear layer and table of ``model`` that the sample reaches.

    Args:
        model: in evaluation mode. It stays as it is; what is not exchanged is shared with it.
        config: bounds and candidates.
        sample: arguments of calls, of requests that were served *before* those that the compact model is for, in
            batches of the size that is served.
        logits: how a call is made; for a foundation model, what scores candidates over cached histories, for instance.
        reference: logits ``[C, T]`` of the sample that the whole model is held against; None for what ``model`` says.
            Others where the sample's inputs are inexact already, as vectors of a compact foundation model are: what
            they have lost is then within the bound, too, or nothing is exchanged.
        timer: microseconds of each contestant; None measures.

    Raises:
        DataError: there is nothing in the sample.
        RuntimeError: the model is in training mode.
    """
    if model.training:
        raise RuntimeError("the model is in training mode, with dropout: call model.eval() before compacting it")
    probed = twin(model)
    with Probe(config=config.probe, model=probed) as probe:
        own = [logits(probed, *arguments) for arguments in sample]
    if not sum(map(len, own)):
        raise DataError("the sample has no candidate to choose kernels by. Give a few hundred of recent requests.")
    dispatcher = _Dispatcher(model, config, sample, logits, torch.cat(own) if reference is None else reference)
    return dispatcher.decided(probe, timer or functools.partial(measuring.in_turn, rounds=config.rounds))


class _Dispatcher(Generic[ModelT]):
    """The measured options of one model, and the way from them to a choice."""

    def __init__(
        self,
        model: ModelT,
        config: Precision,
        sample: Sequence[tuple[Any, ...]],
        logits: Logits,
        reference_CT: Tensor,
    ) -> None:
        self.model = model
        self.config = config
        self.sample = sample
        self.logits = logits
        self.reference_CT = reference_CT
        self.linear: list[str] = []

    def decided(self, probe: Probe, timer: Timer) -> CompactModel[ModelT]:
        measured, unavailable = self._measured(probe, timer)
        self.linear = [name for name, (report, _) in measured.items() if report.kind == "linear"]
        reports = {name: report for name, (report, _) in measured.items()}
        chosen = {name: built[reports[name].kernel] for name, (_, built) in measured.items() if _changed(reports[name])}
        alone = {name: self._cost({name: layer})[0] for name, layer in chosen.items()}
        cost, change = self._cost(chosen)
        while chosen and not cost <= self.config.ne_cost_pct:  # nan is no cost to be content with
            worst = max(chosen, key=lambda name: reports[name].chosen.error)
            reports[worst] = self._put_back(reports[worst])
            if _changed(reports[worst]):
                chosen[worst] = measured[worst][1][reports[worst].kernel]
            else:
                del chosen[worst]
            cost, change = self._cost(chosen)
        report = Report(
            layers=[each.model_copy(update={"ne_cost_pct": alone.get(name, 0.0)}) for name, each in reports.items()],
            unavailable=unavailable,
            ne_cost_pct=cost,
            logit_change=change,
            candidates=len(self.reference_CT),
        )
        return CompactModel(model=self._with(chosen), layers=chosen, report=report)

    def _measured(
        self, probe: Probe, timer: Timer
    ) -> tuple[dict[str, tuple[LayerReport, dict[str, Layer]]], dict[str, str]]:
        """Every layer that the sample reached with its options built; and kernels that this machine has no use for."""
        reasons = {name: KERNELS[name].unavailable() for name in self.config.kernels}
        usable = [name for name, reason in reasons.items() if reason is None]
        measured: dict[str, tuple[LayerReport, dict[str, Layer]]] = {}
        for name, layer in self.model.named_modules():
            if type(layer) is nn.Linear and len(probe.layers[name].kept_NI()):
                keep = keeps(self.model, name)
                seen = probe.layers[name]
                found, kernels = measuring.linear_options(layer, seen, kernels=usable, keep=keep, timer=timer)
                report = LayerReport(
                    name=name,
                    kind="linear",
                    shape=(layer.out_features, layer.in_features),
                    rows=seen.typical_rows,
                    keep=keep,
                    options=found,
                    kernel=_best("linear", found, bound=self.config.layer_error),
                )
                measured[name] = report, dict(kernels)
            elif isinstance(layer, FeatureEmbedding) and probe.slots[name]:
                asked = probe.slots[name]
                found, tables = measuring.table_options(layer, asked, names=self.config.tables, timer=timer)
                report = LayerReport(
                    name=name,
                    kind="table",
                    shape=(layer.weight.shape[0], layer.width),
                    rows=sorted(len(slots.offsets) - 1 for slots in asked)[len(asked) // 2],
                    options=found,
                    kernel=_best("table", found, bound=self.config.table_error),
                )
                measured[name] = report, dict(tables)
        return measured, {name: reason for name, reason in reasons.items() if reason is not None}

    def _put_back(self, report: LayerReport) -> LayerReport:
        """The best of what errs less than the layer's kernel does; float32 at last."""
        less = {name: each for name, each in report.options.items() if each.error < report.chosen.error}
        less.setdefault("float32", report.float32)
        kernel = min(less, key=lambda name: _merit(report.kind, less[name]))
        return report.model_copy(update={"kernel": kernel, "put_back": [*report.put_back, report.kernel]})

    def _with(self, layers: dict[str, Layer]) -> ModelT:
        return with_layers(self.model, layers, linear=self.linear)

    def _cost(self, layers: dict[str, Layer]) -> tuple[float, float]:
        """Expected change of NE in %, and root mean square of the change of logits, with these layers exchanged."""
        other = self._with(layers)
        logit_CT = torch.cat([self.logits(other, *arguments) for arguments in self.sample])
        change = (logit_CT - self.reference_CT).square().mean().sqrt()
        return divergence(self.reference_CT, logit_CT).ne_cost_pct, float(change)


def _changed(report: LayerReport) -> bool:
    return report.kernel != "float32"


def _best(kind: Literal["linear", "table"], options: dict[str, Option], *, bound: float) -> str:
    within = {name: option for name, option in options.items() if option.error <= bound}
    return min(within, key=lambda name: _merit(kind, within[name]))


def _merit(kind: Literal["linear", "table"], option: Option) -> float:
    """What is to be small: of linear layers time, of tables size."""
    return option.microseconds if kind == "linear" else option.nbytes
