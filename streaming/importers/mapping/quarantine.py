"""Bad rows: counted by reason, kept with what was there, and too many of them end the import.

The file is Parquet and never CSV: what was there may be a formula that a spreadsheet would run.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streaming.errors import DataError
from streaming.importers.mapping.columns import Mask
from streaming.importers.mapping.source import Block, shown

SCHEMA = pa.schema(
    [
        pa.field("file", pa.string()),
        pa.field("row", pa.int64()),  # from 0, without the header
        pa.field("reason", pa.string()),
        pa.field("content", pa.string()),
    ]
)
EARLY = 100_000  # rows after which a share that is too large ends the import at once


class TooManyBadRowsError(DataError):
    """More bad rows than the mapping allows."""


class Quarantine:
    """Where bad rows go.

    Args:
        file: new Parquet file that gets them.
        max_share: the largest share of rows that may be bad.
    """

    def __init__(self, *, file: Path, max_share: float) -> None:
        self.file = file
        self.rows = 0
        self.reasons: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self._max_share = max_share
        self._writer = pq.ParquetWriter(file, SCHEMA, compression="zstd")

    @property
    def bad(self) -> int:
        return sum(self.reasons.values())

    def take(self, block: Block, checks: "Checks") -> Mask:
        """Set a block's bad rows aside; returns which of its rows are good.

        Raises:
            TooManyBadRowsError: their share is too large already.
        """
        bad = pa.array(checks.bad)
        self.rows += len(block.row) + len(block.refused)
        self._keep(
            block.file,
            row=pa.array(block.row).filter(bad),
            reason=checks.reasons(),
            content=shown({name: array.filter(bad) for name, array in block.columns.items()}),
        )
        self._keep(
            block.file,
            row=pa.array([each.row for each in block.refused], pa.int64()),
            reason=pa.array([each.reason for each in block.refused], pa.string()),
            content=pa.array([each.text[:1000] for each in block.refused], pa.string()),
        )
        if self.rows >= EARLY:
            self.require_few()
        return ~checks.bad

    def _keep(self, file: Path, *, row: pa.Array, reason: pa.Array, content: pa.Array) -> None:
        if len(row) == 0:
            return
        for each in pc.value_counts(reason).to_pylist():
            self.reasons[each["values"]] += each["counts"]
        for at in _first_of_each(reason):
            place = f"{file} row {row[at]}: {content[at].as_py()[:200]}"
            self.first.setdefault(reason[at].as_py(), place)
        self._writer.write_table(pa.table([pa.array([str(file)] * len(row)), row, reason, content], schema=SCHEMA))

    def require_few(self) -> None:
        """Raise a :class:`TooManyBadRowsError` if the share of bad rows is too large."""
        if self.bad > self._max_share * self.rows:
            (reason, count), *_ = self.reasons.most_common(1)
            raise TooManyBadRowsError(
                f"{self.bad} of {self.rows} rows are bad, more than max_bad_share {self._max_share:g} allows. "
                f"Most often ({count}): {reason}; the first is {self.first[reason]}. Correct the mapping or the files."
            )

    def close(self) -> None:
        """End the file."""
        self._writer.close()


class Checks:
    """The first reason, for each row of a block, why it is bad."""

    def __init__(self, size: int) -> None:
        self._reasons: list[str] = []
        self._reason = np.full(size, -1, dtype=np.int32)

    @property
    def bad(self) -> Mask:
        return self._reason >= 0

    def refuse(self, mask: Mask, reason: str) -> None:
        """Rows of ``mask`` [n] are bad."""
        if mask.any():
            self._reason[mask & ~self.bad] = len(self._reasons)
            self._reasons.append(reason)

    def reasons(self) -> pa.Array:
        """Reasons of the bad rows, in their order."""
        return pa.array(self._reasons, pa.string()).take(pa.array(self._reason[self.bad]))


def _first_of_each(values: pa.Array) -> list[int]:
    indices = values.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return np.unique(indices, return_index=True)[1].tolist()
