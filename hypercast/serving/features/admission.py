"""Which engagements of a stream count, one message at a time: those that training learns of, by the same rule.

The rule is that of :mod:`streaming.sources.windows`: a message is late if its own partition's clock had passed the end
of its window by the allowed lateness before it came. It depends on the order within partitions alone, so that whoever
begins at the positions that were recorded when a window was sealed comes to what training comes to, without waiting
for a window to be complete. Copies are told apart where engagements are kept (:mod:`hypercast.serving.features.past`).
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, Literal

from streaming.dataset import Dataset
from streaming.sources.kafka import Record
from streaming.sources.messages import BadMessage, MessageReader
from streaming.sources.positions import FOREVER, NEVER, Partition, Positions
from streaming.sources.source import StreamConfig

Outcome = Literal["observed", "old", "late", "bad", "end"]
"""What becomes of a message: it counts; the data set that was begun with has it, or was sealed without it; it is late;
it cannot be used; it says that nothing follows.
"""


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """Attributes: ``outcome``; ``row``, the engagement if it counts; ``reason``, why it cannot be used."""

    outcome: Outcome
    row: dict[str, Any] | None = None
    reason: str = ""


class Admission:
    """The rule over one topic of engagements.

    Args:
        config: of the stream.
        catalogue: the data set that is to come, as training has it: windows, items, users.
        since: end of the last window that the data set which was begun with holds, microseconds UTC.
        positions: where reading begins; of partitions that are not there, at their beginning.
    """

    def __init__(self, *, config: StreamConfig, catalogue: Dataset, since: int, positions: Positions) -> None:
        self._messages = MessageReader.of(catalogue)
        self._ends = [window.end for window in catalogue.windows]
        self._since = since
        self._lateness = round(config.allowed_lateness_seconds * 1e6)
        self._tolerance = config.clock_tolerance_seconds
        self._clock: dict[Partition, int] = {each: position.latest for each, position in positions.items()}

    def admit(self, record: Record) -> Admitted:
        """What becomes of the message; messages of a partition must come in its order, each once."""
        try:
            message = self._messages.read(record.payload)
            if message.kind not in ("engagement", "end"):
                raise BadMessage(f"kind '{message.kind}' in the topic of kind 'engagement'")
            ahead = 0.0 if record.produced is None else (message.time - record.produced) / 1e6
            if ahead > self._tolerance:
                raise BadMessage(f"its time is {ahead:.0f} s after it was produced")
        except BadMessage as error:
            return Admitted(outcome="bad", reason=str(error))
        before = self._clock.get(record.partition, NEVER)
        self._clock[record.partition] = FOREVER if message.kind == "end" else max(before, message.time)
        if message.kind == "end":
            return Admitted(outcome="end")
        if message.time < self._since:
            return Admitted(outcome="old")
        window = bisect_right(self._ends, message.time)
        # What is beyond the last window is not late yet: it waits for boundaries, and is known here meanwhile.
        if window < len(self._ends) and before >= self._ends[window] + self._lateness:
            return Admitted(outcome="late")
        return Admitted(outcome="observed", row=message.row)
