"""Sums per user: all that metrics and paired intervals need from prediction tables, some hundred times smaller.

A :class:`UserSums` is made from one table (:func:`accumulate`), added up over windows and surfaces (:func:`combine`)
and kept beside the predictions::

    RUN/sums/TASK/SURFACE/window=00012.npz
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streaming import files
from streaming.errors import DataError
from transfer import predictions
from transfer.metric import auc, calibration, normalised_entropy
from transfer.predictions import Column

SPLIT_TRIP = "split_trip"
"""Tag of requests whose basket was rung up as more than one trip; gains are also given without them."""

_FORMAT = 1
_UNUSED = ("request_id", "candidate_id", "time", "stratum")
_COHORTS = 4  # 2 * untouched + tagged


def is_untouched(user_id: np.ndarray) -> np.ndarray:
    """Whether users belong to the fifth that is left out of every development table, bool [N].

    Args:
        user_id: int64 [N]. The choice depends on the id alone: SplitMix64 (Steele et al., 2014), modulo 5.
    """
    with np.errstate(over="ignore"):
        mixed = np.asarray(user_id).astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) % np.uint64(5) == 0


@dataclass(frozen=True)
class UserSums:
    """Sums over rows with a known label, per user and per value of the tag; G such groups, A columns, float64.

    Attributes:
        columns: the A arms and seeds.
        user: int64 [G]; tagged: bool [G]. The pairs are unique and sorted.
        rows, positives: [G].
        weight, weight_positives: [G], the same with sampling weights.
        loss: [G, A], sum of log losses; weight_loss: [G, A]; predicted: [G, A], sum of probabilities.
        histogram: int64 [4, A, 2, BINS], rows by cohort (2 * untouched + tagged), label and bin of probability.
    """

    columns: tuple[Column, ...]
    user: np.ndarray
    tagged: np.ndarray
    rows: np.ndarray
    positives: np.ndarray
    weight: np.ndarray
    weight_positives: np.ndarray
    loss: np.ndarray
    weight_loss: np.ndarray
    predicted: np.ndarray
    histogram: np.ndarray

    def select(self, *, untouched: bool | None = None, tagged: bool | None = None) -> "UserSums":
        """Only the users of (or outside) the untouched fifth, only the rows with (or without) the tag; None = both."""
        keep = np.ones(len(self.user), dtype=bool)
        histogram = self.histogram.copy()
        if untouched is not None:
            keep &= is_untouched(self.user) == untouched
            histogram[[0, 1] if untouched else [2, 3]] = 0
        if tagged is not None:
            keep &= self.tagged == tagged
            histogram[[0, 2] if tagged else [1, 3]] = 0
        groups = {name: getattr(self, name)[keep] for name in _GROUP_FIELDS}
        return replace(self, histogram=histogram, **groups)

    def only(self, columns: Sequence[Column]) -> "UserSums":
        """Only those columns, in that order."""
        at = [self.columns.index(column) for column in columns]
        wide = {name: getattr(self, name)[:, at] for name in _WIDE_FIELDS}
        return replace(self, columns=tuple(columns), histogram=self.histogram[:, at], **wide)

    def beside(self, other: "UserSums") -> "UserSums | None":
        """With the columns of ``other`` after its own; None if the two are not over the same rows and labels."""
        if not all(np.array_equal(getattr(self, name), getattr(other, name)) for name in _ROW_FIELDS):
            return None
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in (*_WIDE_FIELDS, "histogram")}
        wide = {name: np.concatenate(pair, axis=1) for name, pair in pairs.items()}
        return replace(self, columns=self.columns + other.columns, **wide)

    def metrics(self) -> dict[Column, dict[str, float]]:
        """``ne``, ``ne_pop``, ``auc`` (binned), ``calibration``, ``rows`` per column; nan where not defined."""
        totals = {name: getattr(self, name).sum(axis=0).tolist() for name in _SUM_FIELDS}
        bins = self.histogram.sum(axis=0)
        values = {}
        for a, column in enumerate(self.columns):
            binned = auc.BinnedAuc(bins[a])
            values[column] = {
                "ne": normalised_entropy.from_sums(
                    loss=totals["loss"][a], positives=totals["positives"], rows=totals["rows"]
                ),
                "ne_pop": normalised_entropy.from_sums(
                    loss=totals["weight_loss"][a], positives=totals["weight_positives"], rows=totals["weight"]
                ),
                "auc": binned.value(),
                "calibration": calibration.from_sums(predicted=totals["predicted"][a], positives=totals["positives"]),
                "rows": totals["rows"],
            }
        return values

    def mean_by_arm(self, metric: str) -> dict[str, float]:
        """One of :meth:`metrics`, by arm, as a mean over its seeds."""
        of_arm: dict[str, list[float]] = {}
        for column, values in self.metrics().items():
            of_arm.setdefault(column.arm, []).append(values[metric])
        return {arm: sum(values) / len(values) for arm, values in of_arm.items()}


_NARROW_FIELDS = ("rows", "positives", "weight", "weight_positives")
_WIDE_FIELDS = ("loss", "weight_loss", "predicted")
_SUM_FIELDS = _NARROW_FIELDS + _WIDE_FIELDS
_GROUP_FIELDS = ("user", "tagged", *_SUM_FIELDS)
_ROW_FIELDS = ("user", "tagged", "rows", "positives")


def accumulate(table: pa.Table, *, task: str, tag: str = SPLIT_TRIP) -> UserSums:
    """Sums of one prediction table. Rows whose label is null are skipped.

    Args:
        table: see :mod:`transfer.predictions`.
        task: whose labels and probabilities.
        tag: the boolean column ``tag_TAG`` by which rows are kept apart; where absent or null, a row is not tagged.

    Raises:
        DataError: no label of that task, a label that is not 0 or 1, or a probability outside [0, 1].
    """
    if f"label_{task}" not in table.column_names:
        have = [name.removeprefix("label_") for name in table.column_names if name.startswith("label_")]
        raise DataError(f"predictions have no task '{task}'. Tasks there: {', '.join(have) or 'none'}.")
    label = table.column(f"label_{task}").to_numpy()
    known = ~np.isnan(label)
    if not known.all():
        table = table.filter(pa.array(known))
        label = label[known]
    if not ((label == 0) | (label == 1)).all():
        wrong = label[(label != 0) & (label != 1)][0]
        raise DataError(f"column 'label_{task}' holds {wrong}; a label is 0, 1 or null (not known).")
    columns = tuple(predictions.columns_of(table.column_names, task=task))
    user = table.column("user_id").to_numpy()
    tagged = np.zeros(len(user), dtype=bool)
    if f"tag_{tag}" in table.column_names:
        tagged = table.column(f"tag_{tag}").fill_null(False).to_numpy()

    groups = _Groups(user, tagged)
    label = label.astype(np.float64)
    weight = table.column("weight").to_numpy().astype(np.float64)
    cell = ((2 * is_untouched(groups.user) + groups.tagged)[groups.of_row()] * 2 + (label > 0)) * auc.BINS
    wide = {name: np.zeros((len(groups.user), len(columns))) for name in _WIDE_FIELDS}
    histogram = np.zeros((_COHORTS, len(columns), 2, auc.BINS), dtype=np.int64)
    for a, column in enumerate(columns):
        probability = table.column(column.name).to_numpy()
        if len(probability) and not (probability.min() >= 0 and probability.max() <= 1):
            row = int(np.flatnonzero(~((probability >= 0) & (probability <= 1)))[0])
            raise DataError(f"column '{column.name}', row {row}: {probability[row]} is not a probability in [0, 1].")
        loss = normalised_entropy.log_loss(probability, label)
        wide["loss"][:, a] = groups.sum(loss)
        wide["predicted"][:, a] = groups.sum(probability)
        wide["weight_loss"][:, a] = groups.sum(np.multiply(loss, weight, out=loss))
        counts = np.bincount(cell + auc.bin_of(probability), minlength=_COHORTS * 2 * auc.BINS)
        histogram[:, a] = counts.reshape(_COHORTS, 2, auc.BINS)
    return UserSums(
        columns=columns,
        user=groups.user,
        tagged=groups.tagged,
        rows=groups.sum(np.ones_like(label)),
        positives=groups.sum(label),
        weight=groups.sum(weight),
        weight_positives=groups.sum(weight * label),
        histogram=histogram,
        **wide,
    )


def combine(parts: Iterable[UserSums]) -> UserSums:
    """Add up sums of disjoint rows, over the columns that every part has, in the order of the first.

    Raises:
        ValueError: no parts.
    """
    every = list(parts)
    if not every:
        raise ValueError("combine() needs at least one UserSums")
    columns = [column for column in every[0].columns if all(column in part.columns for part in every[1:])]
    every = [part.only(columns) for part in every]
    stacked = {name: np.concatenate([getattr(part, name) for part in every]) for name in _GROUP_FIELDS}
    order = np.lexsort((stacked["tagged"], stacked["user"]))
    stacked = {name: values[order] for name, values in stacked.items()}
    starts = _run_starts(stacked["user"], stacked["tagged"])
    narrow = {name: stacked[name][starts] for name in ("user", "tagged")}
    totals = {name: _add_runs(stacked[name], starts) for name in _SUM_FIELDS}
    histogram = np.add.reduce([part.histogram for part in every])
    return UserSums(columns=tuple(columns), histogram=histogram, **narrow, **totals)


def of_window(run: Path, *, surface: str, window: int, task: str) -> UserSums:
    """Sums of a stored prediction table, computed once and kept until that table is replaced.

    Raises:
        DataError: there are no such predictions, or see :func:`accumulate`.
    """
    source = predictions.path_of(run, surface, window)
    if not source.exists():
        predictions.read(run, surface=surface, window=window)  # raises, and says which windows there are
    path = run / "sums" / task / surface / f"window={window:05d}.npz"
    stat = source.stat()
    stamp = np.array([_FORMAT, stat.st_size, stat.st_mtime_ns], dtype=np.int64)
    if path.exists():
        with np.load(path, allow_pickle=False) as stored:
            if np.array_equal(stored["stamp"], stamp):
                return _load(stored)
    try:
        wanted = [name for name in pq.read_schema(source).names if name not in _UNUSED]
        sums = accumulate(predictions.read(run, surface=surface, window=window, columns=wanted), task=task)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    _save(path, sums, stamp)
    return sums


class _Groups:
    """Groups rows by (user, tagged). Rows of one request are neighbours: they are added up as runs first."""

    def __init__(self, user: np.ndarray, tagged: np.ndarray) -> None:
        self._starts = _run_starts(user, tagged)
        self._rows = len(user)
        run_user, run_tagged = user[self._starts], tagged[self._starts]
        order = np.lexsort((run_tagged, run_user))
        firsts = _run_starts(run_user[order], run_tagged[order])
        self.user = run_user[order][firsts]
        self.tagged = run_tagged[order][firsts]
        self._group_of_run = np.empty(len(order), dtype=np.int64)
        sizes = np.diff(np.r_[firsts, len(order)])
        self._group_of_run[order] = np.repeat(np.arange(len(firsts)), sizes)

    def of_row(self) -> np.ndarray:
        """Group of every row, int64 [N]."""
        return np.repeat(self._group_of_run, np.diff(np.r_[self._starts, self._rows]))

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sums of ``values`` [N] per group, float64 [G]."""
        runs = _add_runs(values, self._starts)
        return np.bincount(self._group_of_run, weights=runs, minlength=len(self.user)).astype(np.float64)


def _run_starts(user: np.ndarray, tagged: np.ndarray) -> np.ndarray:
    """Where a run of equal (user, tagged) begins, int64."""
    changes = (user[1:] != user[:-1]) | (tagged[1:] != tagged[:-1])
    return np.flatnonzero(np.concatenate([np.ones(min(len(user), 1), dtype=bool), changes]))


def _add_runs(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    if not len(starts):
        return np.zeros((0, *values.shape[1:]))
    return np.add.reduceat(values, starts, axis=0, dtype=np.float64)


def _save(path: Path, sums: UserSums, stamp: np.ndarray) -> None:
    filled = np.flatnonzero(sums.histogram)
    arrays = {name: getattr(sums, name) for name in _GROUP_FIELDS}
    arrays |= {
        "stamp": stamp,
        "columns": np.array([column.name for column in sums.columns], dtype=np.str_),
        "histogram_cell": filled.astype(np.int32),
        "histogram_rows": sums.histogram.ravel()[filled].astype(np.int32),
    }

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, **arrays)

    files.write_file(path, write)


def _load(stored: np.lib.npyio.NpzFile) -> UserSums:
    columns = tuple(column for name in stored["columns"] if (column := Column.parse(str(name))) is not None)
    histogram = np.zeros(_COHORTS * len(columns) * 2 * auc.BINS, dtype=np.int64)
    histogram[stored["histogram_cell"]] = stored["histogram_rows"]
    return UserSums(
        columns=columns,
        histogram=histogram.reshape(_COHORTS, len(columns), 2, auc.BINS),
        **{name: stored[name] for name in _GROUP_FIELDS},
    )
