"""Label rates as further dense features, window by window, kept on disk for all who read the data set.

What a practitioner adds to any model of clicks or purchases first: how often the label was 1 for this item, this user,
this user and this category. Histories of engagements cannot tell it, as they do not hold what was shown in vain. A
request reads the labels known before its window began, and no later ones (laws L2, L5)::

    CACHE/label_rates/BEFORE-OF.npy    float16 [C, F] of one window; digests of all that was counted and of its requests

Shape legend: C candidates, K keys, T tasks, F = 2KT columns.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pydantic

from streaming.cache import cache_folder, locked, unwritable
from streaming.catalogue import Catalogue
from streaming.config import Config as BaseConfig
from streaming.dataset import Dataset, Window
from streaming.errors import DataError
from streaming.files import sha256_of, write_file
from streaming.labels.plan import LabelPlan
from streaming.labels.rates import LabelRates, key_names, keys_of
from streaming.requests import Requests

FORMAT = 1
_LEAST = 1e-3  # rates nearer to 0 or 1 than that are read as that near


class LabelRateColumns:
    """For each task and key, ``log(rate / (1 - rate))`` and ``log1p(count)``, rounded to float16.

    Args:
        config: see :class:`Config`.
        dataset: whose labels are counted.
        items: its catalogue.
        read: the stored requests of the window of that index.

    Attributes:
        names: of the F columns.
    """

    class Config(BaseConfig):
        """Attributes:

        tasks: whose labels are counted; all of the data set's if not given.
        half_life: windows after which a label counts half.
        strength: labels that the rate of everything stands for in the rate of anything.
        """

        tasks: list[str] | None = pydantic.Field(default=None, min_length=1)
        half_life: float = pydantic.Field(default=16.0, gt=0)
        strength: float = pydantic.Field(default=10.0, gt=0)

        def build(self, *, dataset: Dataset, items: Catalogue, read: Callable[[int], Requests]) -> "LabelRateColumns":
            return LabelRateColumns(config=self, dataset=dataset, items=items, read=read)

    def __init__(self, *, config: Config, dataset: Dataset, items: Catalogue, read: Callable[[int], Requests]) -> None:
        """Raises:
        DataError: the data set lacks one of the tasks.
        """
        self.config = config
        self.dataset = dataset
        self.items = items
        self.tasks = _chosen(config.tasks, [task.name for task in dataset.config.tasks], str(dataset.path))
        keys = key_names(dataset.config.item_attributes)
        self.names = [
            f"label_{kind}/{dataset.config.tasks[task].name}/{key}"
            for task in self.tasks
            for kind in ("rate", "count")
            for key in keys
        ]
        self._read = read
        self._plan = LabelPlan.of(dataset.config.tasks)
        self._keys = len(keys)
        self._cache = cache_folder() / "label_rates"
        self._digest = {dataset.windows[0].index: self._described()}
        self.restart()

    def restart(self) -> None:
        """Forget all labels."""
        decay = 0.5 ** (1 / self.config.half_life)
        self.rates = [LabelRates(keys=self._keys, decay=decay, strength=self.config.strength) for _ in self.tasks]
        self.learned = self.dataset.windows[0].index
        """The first window of which nothing is counted yet."""

    def of(self, window: int, requests: Requests) -> np.ndarray:
        """float32 ``[C, F]`` of the window's stored ``requests``: from disk, or made and put there.

        Raises:
            DataError: what is on disk was damaged, or nothing can be put there.
        """
        file = self._cache / f"{self._digest_before(window)}-{self.dataset.requests_digest(window)}.npy"
        if not file.is_file():
            with locked(self._cache):
                if not file.is_file():  # nobody else has made it while this process waited
                    self.learn_before(window)
                    _save(file, self.at(keys_of(requests, self.items)))
        return _load(file, shape=(len(requests.item), len(self.names))).astype(np.float32)

    def learn_before(self, window: int) -> None:
        """Count the labels that were known before ``window`` began, and no others."""
        if window < self.learned:
            self.restart()
        for index in range(self.learned, window):
            self._learn(self.dataset.window(index))
            self.learned = index + 1

    def at(self, key_CK: np.ndarray) -> np.ndarray:
        """float16 ``[C, F]`` of candidates with these keys (:func:`streaming.labels.rates.keys_of`)."""
        columns = []
        for rates in self.rates:
            rate_CK, count_CK = rates.at(key_CK)
            rate_CK = rate_CK.clip(_LEAST, 1 - _LEAST)
            columns += [np.log(rate_CK / (1 - rate_CK)), count_CK]
        return np.concatenate(columns, axis=1).astype(np.float16)

    def state_dict(self) -> dict[str, np.ndarray]:
        """The counts, ``TASK.NAME`` as in :meth:`streaming.labels.rates.LabelRates.state_dict`, and ``learned``, int64
        ``[]``. Shares memory.
        """
        state = {"learned": np.array(self.learned)}
        for task, rates in self._by_task():
            state |= {f"{task}.{name}": value for name, value in rates.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what :meth:`state_dict` of columns of the same names returned."""
        for task, rates in self._by_task():
            prefix = f"{task}."
            rates.load_state_dict(
                {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            )
        self.learned = int(state["learned"])

    def _by_task(self) -> Iterator[tuple[str, LabelRates]]:
        tasks = self.dataset.config.tasks
        return ((tasks[task].name, rates) for task, rates in zip(self.tasks, self.rates, strict=True))

    def _learn(self, window: Window) -> None:
        parts = [self._told(made.index, window).learned_in(window) for made in self.dataset.teaching(window)]
        keys = [keys_of(part, self.items) for part in parts]
        for task, rates in zip(self.tasks, self.rates, strict=True):
            known = [part.supervision.known(since=window.start, before=window.end)[:, task] for part in parts]
            labels = [part.supervision.label[rows, task] for part, rows in zip(parts, known, strict=True)]
            rates.learn(
                np.concatenate([key[rows] for key, rows in zip(keys, known, strict=True)]), np.concatenate(labels)
            )

    def _told(self, made: int, window: Window) -> Requests:
        """Requests with what became known of them in ``window``; an open label is 0 once it is known that it stays so.

        Whatever training does until a label is known, rates count labels.
        """
        return self._plan.told(self._read(made), since=window.start, before=window.end)

    def _digest_before(self, window: int) -> str:
        """Of the settings and of every file that told of labels before ``window``."""
        for index in range(max(self._digest), window):
            over, late = self.dataset.window(index), self.dataset.label_file(index)
            told = [self._digest[index], over.start, over.end, self.dataset.requests_digest(index)]
            told += [sha256_of(late)] if late.is_file() else []
            self._digest[index + 1] = hashlib.sha256(json.dumps(told).encode()).hexdigest()
        return self._digest[window]

    def _described(self) -> str:
        tasks = [task.model_dump(mode="json") for task in self.dataset.config.tasks]  # their delays say what is read
        described = [FORMAT, self.names, self.config.half_life, self.config.strength, tasks]
        digest = hashlib.sha256(json.dumps(described).encode())
        digest.update(self.items.ids.tobytes())
        digest.update(np.ascontiguousarray(self.items.code).tobytes())
        return digest.hexdigest()


def _chosen(asked: list[str] | None, tasks: list[str], source: str) -> list[int]:
    for name in asked or []:
        if name not in tasks:
            raise DataError(f"label_rates: {source} has no task '{name}'; allowed are {', '.join(tasks)}.")
    return [tasks.index(name) for name in asked or tasks]


def _save(path: Path, column_CF: np.ndarray) -> None:
    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, column_CF, allow_pickle=False)

    try:
        write_file(path, write)
    except OSError as error:
        raise unwritable(path, error) from None


def _load(path: Path, *, shape: tuple[int, int]) -> np.ndarray:
    advice = "Delete it; it is made anew when it is needed."
    try:
        with path.open("rb") as file:
            column_CF = np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{path}: not readable ({error}). {advice}") from None
    if column_CF.shape != shape or column_CF.dtype != np.float16:
        raise DataError(f"{path}: holds {column_CF.dtype} {column_CF.shape}, not float16 {shape}. {advice}")
    return column_CF
