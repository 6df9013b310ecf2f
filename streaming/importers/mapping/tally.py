"""What is counted while rows pass by."""

import math

import numpy as np
import pyarrow as pa


class Tally:
    """Sums over good rows, and nulls over all of them.

    Attributes:
        null: nulls by column.
        shown: rows by surface number [127].
        known, positive: labels that are known, and that are 1, by surface number and task [127, T].
        first, last: earliest and latest time of rows and engagements; first > last where there are none.
        grain: greatest common divisor of the rows' times, microseconds.
        engagements: how many.
        longest_delay: largest time from a row to its label [T].
    """

    def __init__(self, *, tasks: list[str]) -> None:
        self.tasks = tasks
        self.null: dict[str, int] = {}
        self.shown = np.zeros(128, dtype=np.int64)
        self.known = np.zeros((128, len(tasks)), dtype=np.int64)
        self.positive = np.zeros((128, len(tasks)), dtype=np.int64)
        self.first, self.last = np.iinfo(np.int64).max, np.iinfo(np.int64).min
        self.grain = 0
        self.engagements = 0
        self.longest_delay = np.zeros(len(tasks), dtype=np.int64)

    def nulls(self, columns: dict[str, pa.Array], prefix: str = "") -> None:
        for name, array in columns.items():
            self.null[prefix + name] = self.null.get(prefix + name, 0) + array.null_count

    def rows(self, arrays: dict[str, np.ndarray]) -> None:
        surface, time = arrays["surface"], arrays["time"]
        self.shown += np.bincount(surface, minlength=128)
        self._span(time)
        self.grain = math.gcd(self.grain, int(np.gcd.reduce(time)))
        for task in range(len(self.tasks)):
            label, delay = arrays[f"label_{task}"], arrays[f"known_{task}"] - time
            known = ~np.isnan(label)
            self.known[:, task] += np.bincount(surface[known], minlength=128)
            self.positive[:, task] += np.bincount(surface[label == 1], minlength=128)
            self.longest_delay[task] = max(self.longest_delay[task], delay[known].max(initial=0))

    def engaged(self, time: np.ndarray) -> None:
        self.engagements += len(time)
        self._span(time)

    def _span(self, time: np.ndarray) -> None:
        if len(time):
            self.first, self.last = min(self.first, int(time.min())), max(self.last, int(time.max()))
