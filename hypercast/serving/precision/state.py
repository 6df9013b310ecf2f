"""A compact model on disk, without its float32 tables.

::

    FOLDER/
      report.json             what was chosen (hypercast.serving.precision.report)
      tensors.safetensors     model.NAME of what is as it was, layer.NAME.PART of what was exchanged
      digests.json            SHA-256 of the two
"""

import json
from pathlib import Path
from typing import cast

import pydantic
import torch
from torch import Tensor, nn

from hypercast import tensors
from hypercast.errors import CheckpointError
from hypercast.serving.precision.compact import CompactModel, Layer
from hypercast.serving.precision.kernels import KERNELS, KernelName
from hypercast.serving.precision.report import LayerReport, Report
from hypercast.serving.precision.tables import CompactTable, Quantised, unfused_width
from hypercast.serving.precision.twin import ModelT, with_layers
from streaming import files

REPORT, TENSORS, DIGESTS = "report.json", "tensors.safetensors", "digests.json"


def save(folder: Path, compacted: CompactModel[ModelT]) -> None:
    """Write a compact model; ``folder`` is whole or absent.

    Raises:
        FileExistsError: ``folder`` exists and is not empty.
    """
    exchanged = {each.name for each in compacted.report.layers if each.kind == "linear"} | compacted.layers.keys()
    kept = {f"model.{name}": tensor for name, tensor in compacted.model.state_dict().items()}
    for name in exchanged:
        layer = cast(Layer, compacted.model.get_submodule(name))
        kept |= {f"layer.{name}.{part}": tensor for part, tensor in layer.tensors().items()}

    def write(partial: Path) -> None:
        tensors.save(partial / TENSORS, kept)
        (partial / REPORT).write_text(compacted.report.model_dump_json(indent=1), encoding="utf-8")
        digests = {name: files.sha256_of(partial / name) for name in (REPORT, TENSORS)}
        (partial / DIGESTS).write_text(json.dumps(digests), encoding="utf-8")

    files.write_directory(folder, write)


@torch.no_grad()
def load(folder: Path, model: ModelT) -> CompactModel[ModelT]:
    """Read what :func:`save` wrote.

    Args:
        folder: of the compact model.
        model: built by the same configuration, in evaluation mode. Its weights become those of the folder, as far as
            they are there; its tables' and layers' own are left behind, so let go of it.

    Raises:
        CheckpointError: files are missing or damaged, this machine cannot compute with them, or ``model`` has other
            layers.
    """
    report, found = _read(folder)
    layers = {each.name: _restored(folder, each, found) for each in report.layers if each.kernel != "float32"}
    for each in report.layers:
        if each.kind == "linear" and each.kernel == "float32":
            _give(folder, each, _layer(folder, model, each.name), found)
    for name, layer in layers.items():
        _check_shape(folder, name, _layer(folder, model, name), layer)
    linear = [each.name for each in report.layers if each.kind == "linear"]
    own = {name.removeprefix("model."): value for name, value in found.items() if name.startswith("model.")}
    missing, unexpected = model.load_state_dict(own, strict=False)
    exchanged = tuple(f"{name}." for name in [*linear, *layers])
    if unexpected or not all(name.startswith(exchanged) for name in missing):
        raise CheckpointError(f"{folder}: is of another model: {unexpected[:3]} or {missing[:3]} do not fit together")
    return CompactModel(model=with_layers(model, layers, linear=linear), layers=layers, report=report)


def _read(folder: Path) -> tuple[Report, dict[str, Tensor]]:
    try:
        for name, digest in json.loads((folder / DIGESTS).read_text(encoding="utf-8")).items():
            if files.sha256_of(folder / Path(name).name) != digest:
                raise CheckpointError(f"{folder / Path(name).name}: damaged, its digest is not the one written with it")
        report = Report.model_validate_json((folder / REPORT).read_text(encoding="utf-8"))
        return report, tensors.load(folder / TENSORS)
    except (OSError, ValueError, AttributeError, pydantic.ValidationError) as error:
        raise CheckpointError(f"{folder}: is not a whole compact model: {error}. Compact the model again.") from error


def _restored(folder: Path, each: LayerReport, found: dict[str, Tensor]) -> Layer:
    prefix = f"layer.{each.name}."
    parts = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    if each.kind == "table":
        return CompactTable(parts["rows"], name=cast(Quantised, each.kernel))
    kernel = KERNELS[cast(KernelName, each.kernel)]
    if reason := kernel.unavailable():
        raise CheckpointError(
            f"{folder}: {each.name} is {each.kernel}, but {reason}. Compact the model on this machine."
        )
    return kernel.restored(parts, keep=each.keep)


def _layer(folder: Path, model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise CheckpointError(f"{folder}: the model has no layer '{name}', so it is another one") from None


def _give(folder: Path, each: LayerReport, layer: nn.Module, found: dict[str, Tensor]) -> None:
    for part, parameter in layer.named_parameters():
        value = found.get(f"layer.{each.name}.{part}")
        if value is None or value.shape != parameter.shape:
            raise CheckpointError(f"{folder}: '{each.name}.{part}' is not of shape {tuple(parameter.shape)}")
        parameter.copy_(value)


def _check_shape(folder: Path, name: str, old: nn.Module, new: Layer) -> None:
    if isinstance(new, CompactTable):
        mine = (new.rows, unfused_width(new.tensors()["rows"].shape[1], new.name))
    else:
        mine = (new.out_features, new.in_features)
    theirs = tuple(cast(Tensor, old.weight).shape)
    if mine != theirs:
        raise CheckpointError(
            f"{folder}: layer '{name}' is {mine[0]} x {mine[1]}, the model's {theirs[0]} x {theirs[1]}"
        )
