"""Where a consumer stands in each partition: everything that a restart needs to arrive at the same windows."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

NEVER = -(2**63)
"""Event time before any other."""
FOREVER = 2**63 - 1
"""Event time after any other: that of a partition that has ended."""


@dataclass(frozen=True, order=True)
class Partition:
    """A partition of a topic."""

    topic: str
    index: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.index}"

    @staticmethod
    def parse(name: str) -> "Partition":
        """The inverse of ``str``."""
        topic, _, index = name.rpartition("/")
        return Partition(topic, int(index))


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where to go on reading in one partition.

    Attributes:
        begin: the offset at which reading began; what lies before was never there.
        offset: the smallest offset that a window which is still open needs.
        latest: the largest event time before ``offset``, microseconds UTC; :data:`NEVER` before the first,
            :data:`FOREVER` once the partition has ended.
        read: the offset up to which messages have had an effect: below it, only those of open windows count again.
    """

    begin: int
    offset: int
    latest: int
    read: int


Positions = dict[Partition, Position]


def to_json(positions: Mapping[Partition, Position]) -> dict[str, Any]:
    """JSON values, partitions in order."""
    return {str(partition): asdict(positions[partition]) for partition in sorted(positions)}


def from_json(values: Mapping[str, Any]) -> Positions:
    """The inverse of :func:`to_json`."""
    return {Partition.parse(name): Position(**position) for name, position in values.items()}
