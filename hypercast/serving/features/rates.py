"""Label rates that exported experts read: counts as they were when the expert had learned, looked up for what is asked.

To the bit what training would have read in the window after (:mod:`streaming.labels.rate_columns`). They stay as they
are until the next export takes their place, as the expert's weights do.

Shape legend: C candidates, F dense features, R columns of label rates.
"""

from dataclasses import replace
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np

from experts.export import SETTINGS, TABLES, ExportedRates
from hypercast import tensors
from hypercast.errors import RegistryError
from hypercast.serving.features.asked import Asked
from streaming import config as configuration
from streaming.errors import ConfigError, DataError
from streaming.files import sha256_of
from streaming.inputs import Inputs
from streaming.labels.rate_columns import FORMAT, LabelRateColumns
from streaming.labels.rates import keys_of
from streaming.workspace import Workspace


class ServedRates:
    """The label rates of one export. Any number of threads may ask.

    Args:
        columns: with the counts in them.
    """

    def __init__(self, columns: LabelRateColumns) -> None:
        self._columns = columns

    def inputs(self, inputs: Inputs) -> Inputs:
        """Those of an expert that reads label rates, from the data set's."""
        return replace(inputs, dense=inputs.dense + self._columns.names)

    def beside(self, asked: Asked) -> Asked:
        """``asked`` with label rates beside its dense features, ``[C, F + R]``."""
        rate_CR = self._columns.at(keys_of(asked, self._columns.items)).astype(np.float32)
        return replace(asked, dense=np.concatenate([asked.dense, rate_CR], axis=1))


class RateTables:
    """Opens the label rates of exports; equal ones in use are opened once, for all arms and surfaces."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._open: WeakValueDictionary[str, ServedRates] = WeakValueDictionary()

    def of(self, folder: Path) -> ServedRates | None:
        """What the expert that was exported to ``folder`` reads; None if it reads no label rates.

        Raises:
            RegistryError: they are missing, damaged, or were made for another data set or by another version.
        """
        path = folder / SETTINGS
        if not path.is_file():
            return None
        try:
            told = configuration.load(path, ExportedRates)
        except ConfigError as error:
            raise _refused(path, f"damaged ({error})") from None
        key = configuration.dump(told)
        found = self._open.get(key)
        if found is None:
            found = ServedRates(self._load(path, told, folder.parent / TABLES))
            self._open[key] = found
        return found

    def _load(self, path: Path, told: ExportedRates, tables: Path) -> LabelRateColumns:
        if told.format != FORMAT:
            raise _refused(path, f"of format {told.format}, and this version reads format {FORMAT}")
        workspace = self._workspace
        try:
            columns = told.columns.build(dataset=workspace.dataset, items=workspace.items, read=workspace.requests)
        except DataError as error:
            raise _refused(path, f"made for another data set ({error})") from None
        if columns.names != told.names:
            raise _refused(path, f"made for another data set than {workspace.dataset.path}: its columns are others")
        if not tables.is_file():
            raise _refused(tables, "missing")
        if sha256_of(tables) != told.sha256:
            raise _refused(tables, f"damaged, or not the one that {path} was exported with")
        columns.load_state_dict({name: value.numpy() for name, value in tensors.load(tables).items()})
        return columns


def _refused(file: Path, why: str) -> RegistryError:
    return RegistryError(
        f"{file}: {why}. Delete the folder of that export and export again: hypercast run PLATFORM.yaml, or of "
        "an expert that has a file hypercast expert train NAME."
    )
