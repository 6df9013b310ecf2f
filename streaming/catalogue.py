"""Attributes of items and users as stable integer codes, one row per id.

A code is a 63-bit hash of the attribute's value: it needs no vocabulary and so knows nothing of the future (law L5).
Models admit codes to table rows as they first see them in training.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streaming.errors import DataError

UNKNOWN = 0
"""The code of a null or of an id that the catalogue does not list."""


def encode(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Stable codes of categorical values, int64 in [0, 2**63); null becomes :data:`UNKNOWN`.

    Equal values have equal codes in every process and on every machine.
    """
    chunk = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    encoded = pc.dictionary_encode(chunk)
    distinct = [UNKNOWN if value is None else _hash(value) for value in encoded.dictionary.to_pylist()]
    lookup = np.asarray([*distinct, UNKNOWN], dtype=np.int64)
    return lookup[pc.fill_null(encoded.indices, len(distinct)).to_numpy(zero_copy_only=False)]


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All ids of one kind (items or users) with the codes of their attributes.

    Attributes:
        features: names of the columns of ``code``; the first is the id itself.
        ids: sorted ids, int64 ``[rows]``.
        code: int64 ``[rows + 1, len(features)]``; the last row is :data:`UNKNOWN` everywhere.
    """

    features: list[str]
    ids: np.ndarray
    code: np.ndarray

    @staticmethod
    def read(table: pa.Table, *, id_column: str, attributes: list[str]) -> "Catalogue":
        """Encode ``table``, which is sorted by its unique ``id_column``."""
        ids = table[id_column].to_numpy()
        if len(ids) > 1 and not (ids[1:] > ids[:-1]).all():
            raise DataError(f"{id_column}: ids must be unique and ascending; sort the table by {id_column}.")
        columns = [encode(table[name]) for name in [id_column, *attributes]]
        code = np.stack([np.append(column, UNKNOWN) for column in columns], axis=1)
        return Catalogue(features=[id_column, *attributes], ids=ids, code=np.ascontiguousarray(code))

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Row of each id in ``code``, int64; ids that are not listed get the last row."""
        if len(self.ids) == 0:
            return np.zeros(len(ids), dtype=np.int64)
        row = np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)
        return np.where(self.ids[row] == ids, row, len(self.ids))


def _hash(value: object) -> int:
    digest = hashlib.blake2b(str(value).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1 or 1
