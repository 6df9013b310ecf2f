"""The requests of one window in memory: inputs on one side, supervision on the other (law L6)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import pyarrow as pa

from streaming.catalogue import Catalogue, encode
from streaming.dataset import Dataset, Window
from streaming.history import gather
from streaming.history_check import COLUMN


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """What losses and metrics may see, and models may not.

    Attributes:
        label: float32 ``[C, T]``; 0 where unknown.
        known_time: int64 microseconds ``[C, T]``, when the label became known; the largest int64 where it never did.
        weight: float32 ``[C]``, how many of the population a sampled candidate stands for.
        stratum: int8 ``[C]``, which sampling stratum it came from.
    """

    NEVER = np.iinfo(np.int64).max

    label: np.ndarray
    known_time: np.ndarray
    weight: np.ndarray
    stratum: np.ndarray

    def known(self, *, since: int, before: int) -> np.ndarray:
        """Which labels became known in ``[since, before)``, bool ``[C, T]`` (law L2)."""
        return (self.known_time >= since) & (self.known_time < before)

    def take(self, index: np.ndarray) -> "Supervision":
        return Supervision(
            label=self.label[index],
            known_time=self.known_time[index],
            weight=self.weight[index],
            stratum=self.stratum[index],
        )


@dataclass(frozen=True, kw_only=True)
class Requests:
    """R requests with C candidates in all, sorted by time.

    Attributes:
        request_id, user_id, time: int64 ``[R]``.
        user: rows of the user catalogue, int64 ``[R]``.
        context: codes of the context features, int64 ``[R, K]``.
        tags: reporting-only flags by name, bool ``[R]``.
        offsets: int64 ``[R + 1]``; request r owns candidates ``offsets[r]:offsets[r + 1]``.
        candidate_id, item_id, item, surface: int64 ``[C]``; ``item`` is a row of the item catalogue.
        dense: float32 ``[C, F]``.
        supervision: apart from the inputs.
        history_check: checksum of the history that each was written with, int64 ``[R]``; None where the data set has
            none (:mod:`streaming.history_check`).
    """

    request_id: np.ndarray
    user_id: np.ndarray
    user: np.ndarray
    time: np.ndarray
    context: np.ndarray
    tags: dict[str, np.ndarray]
    offsets: np.ndarray
    candidate_id: np.ndarray
    item_id: np.ndarray
    item: np.ndarray
    surface: np.ndarray
    dense: np.ndarray
    supervision: Supervision
    history_check: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.request_id)

    @property
    def owner(self) -> np.ndarray:
        """Index of each candidate's request, int64 ``[C]``."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def on_surface(self, *surfaces: int) -> "Requests":
        """The candidates of one surface, or of any of several, and the requests that have any."""
        keep = np.flatnonzero(np.isin(self.surface, surfaces))
        count = np.bincount(self.owner[keep], minlength=len(self))
        return self._of_candidates(keep, count).take(np.flatnonzero(count))

    def learned_in(self, window: Window) -> "Requests":
        """The requests of which some label became known in ``window`` (law L2)."""
        known = self.supervision.known(since=window.start, before=window.end).any(axis=1)
        return self.take(np.flatnonzero(np.bincount(self.owner[known], minlength=len(self))))

    def slice(self, start: int, stop: int) -> "Requests":
        """Requests ``start:stop`` with their candidates."""
        return self.take(np.arange(start, min(stop, len(self))))

    def _of_candidates(self, index: np.ndarray, count: np.ndarray) -> "Requests":
        return replace(
            self,
            offsets=np.concatenate([[0], np.cumsum(count)]),
            candidate_id=self.candidate_id[index],
            item_id=self.item_id[index],
            item=self.item[index],
            surface=self.surface[index],
            dense=self.dense[index],
            supervision=self.supervision.take(index),
        )

    def take(self, index: np.ndarray) -> "Requests":
        candidates, _ = gather(self.offsets[index], self.offsets[index + 1])
        return self._of_candidates(candidates, np.diff(self.offsets)[index])._of_requests(index)

    def impressions(self) -> "Requests":
        """Every candidate as a request of its own, in the same order: what is the user's is repeated for each."""
        alone = replace(self, offsets=np.arange(len(self.item) + 1))
        return alone._of_requests(self.owner)

    def _of_requests(self, index: np.ndarray) -> "Requests":
        return replace(
            self,
            request_id=self.request_id[index],
            user_id=self.user_id[index],
            user=self.user[index],
            time=self.time[index],
            context=self.context[index],
            tags={name: flags[index] for name, flags in self.tags.items()},
            history_check=None if self.history_check is None else self.history_check[index],
        )


def joined(parts: Sequence[Requests]) -> Requests:
    """Requests of several parts of one data set, at least one, part after part: in order of time if the parts are."""
    if len(parts) == 1:
        return parts[0]
    own = ("tags", "offsets", "supervision", "history_check")
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    supervision = [part.supervision for part in parts]
    checks = [part.history_check for part in parts if part.history_check is not None]
    return Requests(
        **_concatenated(parts, [column.name for column in fields(Requests) if column.name not in own]),
        tags={name: np.concatenate([part.tags[name] for part in parts]) for name in parts[0].tags},
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        supervision=Supervision(**_concatenated(supervision, [column.name for column in fields(Supervision)])),
        history_check=np.concatenate(checks) if checks else None,
    )


def _concatenated(parts: Sequence[object], columns: list[str]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}


def read_requests(dataset: Dataset, window: int, *, items: Catalogue, users: Catalogue) -> Requests:
    """Read one window's requests with their supervision."""
    config = dataset.config
    table = dataset.requests(window).combine_chunks()
    item_ids = table["item_id"].combine_chunks()
    item_id = item_ids.flatten().to_numpy()
    dense = table["dense"].combine_chunks().flatten().flatten().to_numpy(zero_copy_only=False)
    user_id = table["user_id"].to_numpy()
    context = [encode(table[name]) for name in config.context]
    return Requests(
        request_id=table["request_id"].to_numpy(),
        user_id=user_id,
        user=users.rows(user_id),
        time=table["time"].cast(pa.int64()).to_numpy(),
        context=np.stack(context, axis=1) if context else np.zeros((len(user_id), 0), dtype=np.int64),
        tags={name: table[f"tag_{name}"].to_numpy() for name in config.tags},
        offsets=np.concatenate([[0], np.cumsum(item_ids.value_lengths().to_numpy(zero_copy_only=False))]),
        candidate_id=_flat(table["candidate_id"]).astype(np.int64),
        item_id=item_id,
        item=items.rows(item_id),
        surface=_flat(table["surface"]).astype(np.int64),
        dense=dense.reshape(len(item_id), len(config.dense)).astype(np.float32),
        supervision=_supervision(table["supervision"].combine_chunks(), [task.name for task in config.tasks]),
        history_check=table[COLUMN].to_numpy() if COLUMN in table.column_names else None,
    )


def _supervision(struct: pa.StructArray, tasks: list[str]) -> Supervision:
    label = [struct.field(f"label_{task}").flatten().fill_null(0.0) for task in tasks]
    times = [struct.field(f"label_time_{task}").flatten().cast(pa.int64()) for task in tasks]
    known = [column.fill_null(Supervision.NEVER) for column in times]
    return Supervision(
        label=np.stack([column.to_numpy(zero_copy_only=False) for column in label], axis=1).astype(np.float32),
        known_time=np.stack([column.to_numpy(zero_copy_only=False) for column in known], axis=1),
        weight=struct.field("weight").flatten().to_numpy(zero_copy_only=False),
        stratum=struct.field("stratum").flatten().to_numpy(zero_copy_only=False),
    )


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
