"""Surfaces by name, from whatever the data call them.

A surface's name becomes part of file names elsewhere, so that it never is the data's text itself: it is a letter
followed by letters, digits, ``_`` and ``-``, and everything else in a value becomes ``_``.
"""

import re

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streaming.errors import DataError
from streaming.importers.mapping.columns import Mask, trimmed
from streaming.importers.mapping.roles import SurfaceConfig

MOST = 127  # as many as int8 can number


class Surfaces:
    """Numbers of surfaces in the order in which they are first seen.

    Attributes:
        names: what the data set calls each.
    """

    def __init__(self, *, config: SurfaceConfig) -> None:
        self.names: list[str] = []
        self._config = config
        self._number: dict[str, int] = {}

    def constant(self, name: str, size: int) -> npt.NDArray[np.int8]:
        """The number of one surface, ``size`` times."""
        return np.full(size, self._add(name, name), dtype=np.int8)

    def of(self, array: pa.Array) -> tuple[npt.NDArray[np.int8], Mask]:
        """Numbers [n], -1 where there is none, and where there is none [n].

        Raises:
            DataError: there are more surfaces than the format has room for, or two that would have one name.
        """
        encoded = trimmed(array.cast(pa.string())).dictionary_encode()
        values = encoded.dictionary.to_pylist() if len(encoded.dictionary) <= 4 * MOST else []
        if not values and len(encoded.dictionary):
            raise self._too_many(len(encoded.dictionary))
        number = [self._add(value, self._name(value)) for value in values]
        at = pc.fill_null(encoded.indices, len(number)).to_numpy(zero_copy_only=False)
        otherwise = self._config.otherwise
        missing = -1 if otherwise is None or not (at == len(number)).any() else self._add(otherwise, otherwise)
        found = np.array([*number, missing], dtype=np.int8)[at]
        return found, found < 0

    def order(self) -> npt.NDArray[np.int64]:
        """Place of each number when names are sorted, so that it does not depend on the order of rows."""
        place = np.zeros(len(self.names) + 1, dtype=np.int64)
        place[np.argsort(self.names)] = np.arange(len(self.names))
        place[-1] = -1
        return place

    def renamed(self) -> dict[str, str]:
        """Values that are called otherwise without the mapping saying so."""
        pairs = ((value, self.names[number]) for value, number in self._number.items())
        return {value: name for value, name in pairs if value not in self._config.names and name != value}

    def _name(self, value: str) -> str:
        given = self._config.names.get(value)
        if given is not None:
            return given
        text = re.sub(r"[^A-Za-z0-9-]+", "_", self._config.prefix + value).strip("_-") or "unnamed"
        return (text if text[0].isalpha() else f"surface_{text}")[:64]

    def _add(self, value: str, name: str) -> int:
        if value in self._number:
            return self._number[value]
        if name in self.names:
            self._number[value] = self.names.index(name)
            others = [other for other, number in self._number.items() if number == self._number[value]]
            unnamed = [other for other in others if other != name and other not in self._config.names]
            if unnamed:
                raise DataError(
                    f"surfaces {others[0][:60]!r} and {value[:60]!r} would both be called {name}. Name both in "
                    f"surface.names, as one or as two; for example {{{unnamed[0][:60]!r}: {name[:60]}_2}}."
                )
            return self._number[value]
        if len(self.names) == MOST:
            raise self._too_many(MOST + 1)
        self._number[value] = len(self.names)
        self.names.append(name)
        return self._number[value]

    @staticmethod
    def _too_many(found: int) -> DataError:
        return DataError(
            f"the surface's column has {found} values or more; at most {MOST} surfaces are possible. Map a column with "
            "fewer, or give one surface as constant."
        )
