"""Which ids there are: their codes in memory, their text on disk only.

Per id 16 bytes stay in memory, a code and a check; the text goes to ``extra/ids_NAME.parquet`` as it is first seen.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from streaming.errors import DataError
from streaming.importers.mapping.columns import Ids

Int = npt.NDArray[np.int64]
RUNS = 8  # sorted arrays that are looked up one after the other before they are merged into one


class IdRegistry:
    """The ids of one kind.

    Args:
        file: new Parquet file that gets ``code`` and ``id``, in the order in which ids are first seen.
    """

    def __init__(self, *, file: Path) -> None:
        self.file = file
        self._schema = pa.schema([pa.field("code", pa.int64()), pa.field("id", pa.string())])
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")
        self._runs: list[tuple[Int, Int]] = []

    def add(self, ids: Ids) -> None:
        """Take in ids, none of which is missing.

        Raises:
            DataError: two different ids have one code.
        """
        code, first = np.unique(ids.code, return_index=True)
        check = ids.check[first]
        _require_same(ids.check, check[np.searchsorted(code, ids.code)], ids.text)
        new = np.ones(len(code), dtype=bool)
        for known, checks in self._runs:
            at = np.searchsorted(known, code).clip(max=len(known) - 1)
            old = known[at] == code
            _require_same(np.where(old, check, 0), np.where(old, checks[at], 0), ids.text.take(pa.array(first)))
            new &= ~old
        if new.any():
            text = ids.text.take(pa.array(first[new]))
            self._writer.write_table(pa.table([pa.array(code[new]), text], schema=self._schema))
            self._runs.append((code[new], check[new]))
            if len(self._runs) > RUNS:
                self._merge()

    def codes(self) -> Int:
        """All codes, ascending."""
        self._merge()
        return self._runs[0][0] if self._runs else np.zeros(0, np.int64)

    def close(self) -> None:
        """End the file."""
        self._writer.close()

    def _merge(self) -> None:
        if len(self._runs) > 1:
            code = np.concatenate([run[0] for run in self._runs])
            check = np.concatenate([run[1] for run in self._runs])
            order = np.argsort(code, kind="stable")
            self._runs = [(code[order], check[order])]


def _require_same(check: Int, expected: Int, text: pa.Array) -> None:
    different = np.flatnonzero(check != expected)
    if len(different):
        name = str(text[int(different[0])].as_py())[:100]
        raise DataError(f"id {name!r} has the same code as another id. Rename one of them in the source.")
