"""Keys and values of tokens that a layer has encoded, for the tokens that come after them.

Shape legend: S stored tokens of all sequences, B sequences, H heads, D width of keys, V width of values.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foundation.hstu.jagged import Join, offsets_of


@dataclass(frozen=True, kw_only=True)
class KeyValueCache:
    """What one layer keeps of context and history: all that later tokens ask of them (arXiv 2402.17152, M-FALCON).

    Targets are never stored, for nothing attends to them.

    Attributes:
        keys_SHD, values_SHV: float.
        offsets: int64 ``[B + 1]``.
        timestamps: int64 microseconds ``[S]``.
    """

    keys_SHD: Tensor
    values_SHV: Tensor
    offsets: Tensor
    timestamps: Tensor

    @staticmethod
    def together(parts: "Sequence[KeyValueCache]") -> "KeyValueCache":
        """The sequences of several caches, one after the other; at least one cache. Alone it shares memory."""
        if len(parts) == 1:
            return parts[0]
        return KeyValueCache(
            keys_SHD=torch.cat([part.keys_SHD for part in parts]),
            values_SHV=torch.cat([part.values_SHV for part in parts]),
            offsets=offsets_of(torch.cat([part.offsets.diff() for part in parts])),
            timestamps=torch.cat([part.timestamps for part in parts]),
        )

    @property
    def nbytes(self) -> int:
        """Of what a token adds to: keys, values and timestamps."""
        return self.keys_SHD.nbytes + self.values_SHV.nbytes + self.timestamps.nbytes

    def extend(self, new: "KeyValueCache") -> "KeyValueCache":
        """Both together: each sequence's stored tokens, then its new ones.

        Raises:
            ValueError: ``new`` holds another number of sequences.
        """
        if len(new.offsets) != len(self.offsets):
            raise ValueError(
                f"cannot extend a cache of {len(self.offsets) - 1} sequences by {len(new.offsets) - 1}; expected as "
                "many, with no new tokens for those that stay as they are"
            )
        join = Join.of(self.offsets, new.offsets)
        return KeyValueCache(
            keys_SHD=join(self.keys_SHD, new.keys_SHD),
            values_SHV=join(self.values_SHV, new.values_SHV),
            offsets=join.offsets,
            timestamps=join(self.timestamps, new.timestamps),
        )

    def beginning(self, timestamps: Tensor) -> "KeyValueCache":
        """As many first tokens of one sequence as there are ``timestamps``, at those times; shares memory."""
        length = len(timestamps)
        return KeyValueCache(
            keys_SHD=self.keys_SHD[:length],
            values_SHV=self.values_SHV[:length],
            offsets=torch.tensor([0, length]),
            timestamps=timestamps,
        )

    def own(self) -> "KeyValueCache":
        """The same in memory of its own, so that what it was a part of can go."""
        return KeyValueCache(
            keys_SHD=self.keys_SHD.clone(),
            values_SHV=self.values_SHV.clone(),
            offsets=self.offsets.clone(),
            timestamps=self.timestamps.clone(),
        )

    def sequences(self, first: int, last: int) -> "KeyValueCache":
        """Sequences ``[first, last)``; shares memory."""
        start, end = int(self.offsets[first]), int(self.offsets[last])
        return KeyValueCache(
            keys_SHD=self.keys_SHD[start:end],
            values_SHV=self.values_SHV[start:end],
            offsets=self.offsets[first : last + 1] - start,
            timestamps=self.timestamps[start:end],
        )
