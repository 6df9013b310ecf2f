"""The online feature state: what a question needs to know of the past, as of the moment it is asked.

It begins with a data set as of a time and goes on with engagements as they come. For any question it gives what an
importer would have written of it: the same histories (:mod:`hypercast.serving.features.past`), the same dense features
(law L5, :mod:`hypercast.serving.features.dense`).

An engagement may come late, out of order, or, if it has an id, twice: from then on it counts once, as if it had been on
time, as it does for training, which reads the whole log. What was answered before it came was answered without it; how
many came late is counted.
"""

import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pydantic

from hypercast.serving.features.asked import Asked, no_outcome
from hypercast.serving.features.dense import DerivedColumns, Groups, OwnPast, Popularity
from hypercast.serving.features.past import NO_ID, Pasts
from hypercast.serving.features.question import Question, Value
from hypercast.serving.features.rehearsal import rehearse
from streaming.catalogue import encode
from streaming.config import Config as BaseConfig
from streaming.errors import DataError
from streaming.history import Events
from streaming.workspace import Workspace

SECOND = 1_000_000  # microseconds


class QuestionError(DataError):
    """A question that this data set has no answer for."""


class FeatureState:
    """Histories and dense features of questions. Any number of threads may ask while others observe."""

    class Config(BaseConfig):
        """Attributes:

        users: whose past is held in memory, at most; those last touched stay.
        events: engagements of a user that are held, at most; counts of a user who has more fall behind.
        lateness_seconds: how far before the newest one a question may be asked.
        unsettled: engagements of the last ``lateness_seconds`` that are held one by one, at most.
        given: dense columns that callers give although they could be derived. They must, where the data set's importer
            has seen engagements that its log does not hold.
        rehearsed: requests of the last window that are asked again at opening
            (:mod:`hypercast.serving.features.rehearsal`).
        """

        users: int = pydantic.Field(default=200_000, ge=1)
        events: int = pydantic.Field(default=1 << 15, ge=1)
        lateness_seconds: float = pydantic.Field(default=10.0, ge=0)
        unsettled: int = pydantic.Field(default=1 << 16, ge=2)
        given: list[str] = []
        rehearsed: int = pydantic.Field(default=32, ge=0)

    def __init__(self, *, config: Config, workspace: Workspace, as_of: int) -> None:
        """See :meth:`open`."""
        described = workspace.dataset.config
        if unknown := sorted({*config.given} - {*described.dense}):
            raise DataError(f"given: no dense columns {', '.join(unknown)}; allowed are {', '.join(described.dense)}.")
        self.config = config
        self.workspace = workspace
        self._lock = threading.Lock()
        self._columns = DerivedColumns.of(described.dense, described.item_attributes, given=config.given)
        self.given = [name for name in described.dense if name not in self._columns.columns]
        """Dense columns that a question must bring."""
        groups = Groups(items=workspace.items, attributes=described.item_attributes)
        self._own = OwnPast(groups=groups, names=self._columns.own)
        self._popularity = Popularity(
            groups=groups,
            surfaces=len(described.surfaces),
            names=self._columns.all,
            as_of=as_of,
            lateness=round(config.lateness_seconds * SECOND),
            most=config.unsettled,
        )
        self._popularity.read(workspace.engagements)
        self._pasts = Pasts(log=workspace.engagements, as_of=as_of, users=config.users, most=config.events)
        self._surfaces = {name: index for index, name in enumerate(described.surfaces)}
        self._counted = {"observed": 0, "late": 0, "copies": 0, "asked": 0}
        self._newest = as_of
        self.as_of = as_of

    @staticmethod
    def open(workspace: Workspace, *, as_of: int, config: Config | None = None) -> "FeatureState":
        """The state as of ``as_of``, microseconds: it knows the data set's engagements strictly before, no others.

        Raises:
            DataError: ``config.given`` names a column that is not there, or lacks one that cannot be derived.
        """
        config = config or FeatureState.Config()
        over = [window for window in workspace.dataset.windows if window.end <= as_of]
        if over and config.rehearsed:
            before = FeatureState(config=config, workspace=workspace, as_of=over[-1].start)
            rehearse(before, over[-1], requests=config.rehearsed)
        return FeatureState(config=config, workspace=workspace, as_of=as_of)

    def observe(self, engagements: Mapping[str, np.ndarray] | pa.Table) -> int:
        """Take in engagements; returns how many, without copies.

        Args:
            engagements: ``user_id``, ``item_id``, ``surface`` (index, -1 for none), ``action`` (index) and ``time``
                (microseconds UTC), of equal lengths, in any order; of one user at one time they keep theirs, unless
                there is an ``engagement_id`` too, which orders them and tells copies. Items need not be listed.

        Raises:
            DataError: a column is missing, of another length, or holds a surface or an action that is not there. Then
                nothing is taken in.
        """
        user_id, events, ids = self._checked(engagements)
        order = np.lexsort((ids, events.time, user_id))
        user_id, events, ids = user_id[order], _take(events, order), ids[order]
        bounds = [0, *(np.flatnonzero(np.diff(user_id)) + 1).tolist(), len(user_id)]
        fresh = np.ones(len(user_id), dtype=bool)
        with self._lock:
            for first, end in pairwise(bounds):
                if end > first:
                    part = slice(first, end)
                    fresh[part] = self._pasts.add(int(user_id[first]), _take(events, part), ids[part])
            events = _take(events, fresh)
            self._popularity.add(events)
            taken = len(events.time)
            self._counted["observed"] += taken
            self._counted["copies"] += len(fresh) - taken
            self._counted["late"] += int((events.time < self._newest).sum())
            if taken:
                self._newest = max(self._newest, int(events.time.max()))
        return taken

    def requests(self, questions: Sequence[Question]) -> Asked:
        """What models read of ``questions``, in their order.

        Raises:
            QuestionError: a surface or context feature that is not there, a dense column too many or too few, or a time
                before what the state can still look back to.
        """
        described, inputs = self.workspace.dataset.config, self.workspace.inputs
        for question in questions:
            self._check(question)
        sizes = [len(question.item_ids) for question in questions]
        item_id = _joined([question.item_ids for question in questions])
        item = self.workspace.items.rows(item_id)
        offsets = np.cumsum([0, *sizes])
        surfaces = [self._surfaces[question.surface] for question in questions]
        time = np.array([question.time for question in questions], dtype=np.int64)
        user_id = np.array([question.user_id for question in questions], dtype=np.int64)
        dense = np.empty((len(item), len(described.dense)), dtype=np.float32)
        pasts = []
        with self._lock:
            for row, question in enumerate(questions):
                part = slice(offsets[row], offsets[row + 1])
                pasts.append(self._fill(dense[part], question, item[part], surfaces[row]))
            self._counted["asked"] += len(questions)
        return Asked(
            request_id=np.array([question.request_id for question in questions], dtype=np.int64),
            user_id=user_id,
            user=self.workspace.users.rows(user_id),
            time=time,
            context=self._context(questions),
            tags={name: np.zeros(len(questions), dtype=bool) for name in described.tags},
            offsets=offsets,
            candidate_id=_joined(
                [
                    np.arange(size) if question.candidate_ids is None else question.candidate_ids
                    for question, size in zip(questions, sizes, strict=True)
                ]
            ),
            item_id=item_id,
            item=item,
            surface=np.repeat(np.array(surfaces, dtype=np.int64), sizes),
            dense=dense,
            supervision=no_outcome(len(item), len(inputs.tasks)),
            past=tuple(pasts),
        )

    @property
    def earliest(self) -> int:
        """Questions before this moment are refused, microseconds: ``as_of`` at first, and later as time goes on."""
        with self._lock:
            return self._popularity.settled

    def statistics(self) -> dict[str, float]:
        """Engagements ``observed``, how many of them came ``late``, after a later one, and ``copies`` of them;
        questions ``asked``; ``users`` in memory, and how many were ``forgotten``; engagements that are ``unsettled``.
        """
        with self._lock:
            memory = {"users": len(self._pasts), "forgotten": self._pasts.forgotten}
            return {**self._counted, **memory, "unsettled": self._popularity.unsettled}

    def _fill(self, dense_CF: np.ndarray, question: Question, item: np.ndarray, surface: int) -> Events:
        """Write the question's dense features; returns its user's past."""
        time, columns = question.time, self._columns
        if time < self._popularity.settled:
            raise QuestionError(
                f"request {question.request_id}: time {time} is before {self._popularity.settled}, up to which "
                "everybody's engagements are summed. Ask in the order of time, or raise lateness_seconds "
                f"({self.config.lateness_seconds:g})."
            )
        self._popularity.asked_at(time)
        past = self._pasts.of(question.user_id).before(time)
        own = self._own.before(past, item, surface, time)
        values = columns.values(own, self._popularity.before(item, surface, time, columns.all), time)
        for index, name in enumerate(self.workspace.dataset.config.dense):
            dense_CF[:, index] = values[name] if name in values else question.dense[name]
        return past

    def _check(self, question: Question) -> None:
        where, context = f"request {question.request_id}", self.workspace.dataset.config.context
        if question.surface not in self._surfaces:
            raise QuestionError(
                f"{where}: there is no surface {question.surface!r}; allowed are {', '.join(self._surfaces)}."
            )
        if question.context.keys() != {*context}:
            raise QuestionError(
                f"{where}: context has {sorted(question.context)}, expected {sorted(context)}, null where unknown."
            )
        if question.dense.keys() != {*self.given}:
            raise QuestionError(
                f"{where}: dense has {sorted(question.dense)}, expected {sorted(self.given)}: what cannot be derived "
                'from engagements. Example: {"dense": {"stores_promoting": [4, 0, 12]}}, one number a candidate.'
            )
        brought = {**question.dense, "candidate_ids": question.candidate_ids}
        for name, values in brought.items():
            if values is not None and np.shape(values) != (len(question.item_ids),):
                raise QuestionError(
                    f"{where}: {name} has shape {np.shape(values)}, expected ({len(question.item_ids)},): one a "
                    "candidate."
                )

    def _context(self, questions: Sequence[Question]) -> np.ndarray:
        names = self.workspace.dataset.config.context
        code = [
            [_code(type(value).__name__, value) for value in map(question.context.get, names)] for question in questions
        ]
        return np.array(code, dtype=np.int64).reshape(len(questions), len(names))

    def _checked(self, engagements: Mapping[str, np.ndarray] | pa.Table) -> tuple[np.ndarray, Events, np.ndarray]:
        """Users, engagements and ids."""
        named = _columns(engagements) if isinstance(engagements, pa.Table) else engagements
        if missing := [name for name in _OBSERVED if name not in named]:
            raise DataError(f"engagements: column {missing[0]!r} is missing; expected are {', '.join(_OBSERVED)}.")
        columns = {name: np.asarray(named[name]) for name in (*_OBSERVED, _ID) if name in named}
        shapes = {name: column.shape for name, column in columns.items()}
        whole = all(np.issubdtype(column.dtype, np.integer) for column in columns.values())
        if len({*shapes.values()}) > 1 or len(shapes["time"]) != 1 or not whole:
            kinds = {name: f"{column.dtype} {column.shape}" for name, column in columns.items()}
            raise DataError(f"engagements: columns are {kinds}; expected are integers, one of each an engagement.")
        described = self.workspace.dataset.config
        for name, least, names in (("surface", -1, described.surfaces), ("action", 0, described.actions)):
            wrong = np.flatnonzero((columns[name] < least) | (columns[name] >= len(names)))
            if len(wrong):
                raise DataError(
                    f"engagements: row {wrong[0]} has {name} {columns[name][wrong[0]]}; allowed are {least} to "
                    f"{len(names) - 1}, which are {', '.join(names)}."
                )
        events = Events(
            item=self.workspace.items.rows(columns["item_id"]),
            surface=columns["surface"],
            action=columns["action"],
            time=columns["time"].astype(np.int64),
        )
        ids = columns.get(_ID, np.full(len(events.time), NO_ID))
        return columns["user_id"].astype(np.int64), events, ids.astype(np.int64)


_NONE = np.zeros(0, dtype=np.int64)
_OBSERVED = ("user_id", "item_id", "surface", "action", "time")
_ID = "engagement_id"


def _columns(table: pa.Table) -> dict[str, np.ndarray]:
    found = {name: table[name] for name in table.column_names if name in (*_OBSERVED, _ID)}
    if "time" in found and pa.types.is_timestamp(found["time"].type):
        found["time"] = found["time"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    return {name: column.to_numpy() for name, column in found.items()}


def _take(events: Events, rows: np.ndarray | slice) -> Events:
    return Events(*(column[rows] for column in events))


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([_NONE, *(np.asarray(part, dtype=np.int64) for part in parts)])


@lru_cache(maxsize=1 << 16)
def _code(kind: str, value: Value) -> int:
    """A context feature's code; ``kind`` tells 1 from True and from 1.0, which are equal."""
    return int(encode(pa.array([value]))[0])
