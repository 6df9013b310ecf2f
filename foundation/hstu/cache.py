"""Keys and values of tokens that a layer has encoded, for the tokens that come after them.

Shape legend: S stored tokens of all sequences, B sequences, H heads, D width of keys, V width of values.
"""

from dataclasses import dataclass

from torch import Tensor

from foundation.hstu.jagged import Join


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

    def sequences(self, first: int, last: int) -> "KeyValueCache":
        """Sequences ``[first, last)``; shares memory."""
        start, end = int(self.offsets[first]), int(self.offsets[last])
        return KeyValueCache(
            keys_SHD=self.keys_SHD[start:end],
            values_SHV=self.values_SHV[start:end],
            offsets=self.offsets[first : last + 1] - start,
            timestamps=self.timestamps[start:end],
        )
