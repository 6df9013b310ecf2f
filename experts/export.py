"""Experts on disk, with all that they need to predict and nothing that only training has.

::

    FOLDER/label_rates.safetensors    only where arms read label rates: all counts, as of the end of the last window
                                      that they have learned (streaming.labels.rate_columns); arms share it
    FOLDER/ARM/expert.yaml            ExpertModel.Config
    FOLDER/ARM/expert.safetensors     model.NAME and vocabulary.NAME
    FOLDER/ARM/label_rates.yaml       only there, too: ExportedRates

So an expert reads in the windows that follow what training would have read in the first of them (laws L2, L5).
"""

from pathlib import Path

import torch

from experts.model import ExpertModel
from foundation.hstu.vocabulary import BatchVocabulary
from hypercast.tensors import save
from streaming.config import Config as BaseConfig
from streaming.config import dump
from streaming.files import sha256_of
from streaming.labels.rate_columns import FORMAT, LabelRateColumns
from streaming.workspace import Workspace

TABLES, SETTINGS = "label_rates.safetensors", "label_rates.yaml"


class ExportedRates(BaseConfig):
    """Which label rates an exported expert reads. Attributes:

    format: of what is computed of the counts.
    columns: what was counted; names: of the columns, as the expert reads them.
    sha256: of the file that holds the counts.
    """

    format: int
    columns: LabelRateColumns.Config
    names: list[str]
    sha256: str


def export_rates(folder: Path, workspace: Workspace, *, before: int) -> ExportedRates | None:
    """Write to ``folder``, which is there, what requests of window ``before`` read; None where they read no rates."""
    columns = workspace.label_rates_before(before)
    if columns is None:
        return None
    tables = folder / TABLES
    save(tables, {name: torch.from_numpy(value) for name, value in columns.state_dict().items()})
    return ExportedRates(format=FORMAT, columns=columns.config, names=columns.names, sha256=sha256_of(tables))


def export_expert(
    folder: Path, *, model: ExpertModel, vocabulary: BatchVocabulary, rates: ExportedRates | None
) -> None:
    """Write one arm to ``folder``, a new one, with the weights that it has now."""
    parts = {"model": model.serving_state(), "vocabulary": vocabulary.state_dict()}
    tensors = {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}
    folder.mkdir()
    save(folder / "expert.safetensors", tensors)
    (folder / "expert.yaml").write_text(dump(model.config.serving()), encoding="utf-8")
    if rates is not None:
        (folder / SETTINGS).write_text(dump(rates), encoding="utf-8")
