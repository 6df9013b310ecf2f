"""Messages: one JSON object each, with the version of its schema; whatever does not fit is refused with a reason.

===========  ============================================================================================
kind         what it says
===========  ============================================================================================
request      one row of a request part: inputs, and the supervision that is known by then
engagement   one row of an engagement part, with an ``engagement_id`` of its own
labels       labels of one request that became known at one time, after the request
end          nothing will follow in this partition
===========  ============================================================================================

Times are integers, microseconds UTC. JSON keeps float32 exactly, as every decimal that it writes reads back the same.
``docs/streams.md`` has an example of each.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from streaming.dataset import Dataset
from streaming.schema import DatasetConfig

VERSION = 1
"""Version of the schema that this module writes, and the only one that it reads."""

Kind = Literal["request", "engagement", "labels", "end"]

REQUEST_FIELDS = (
    *("request_id", "user_id", "time", "context", "tags"),
    *("candidate_id", "item_id", "surface", "dense"),
    *("label", "label_time", "weight", "stratum"),
)
_NONE = object()
_INT64 = 2**63


class BadMessage(Exception):
    """A message that cannot be used; says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message that fits the data set.

    Attributes:
        kind: see the module.
        id: of the request or engagement; of the request for labels; 0 for an end.
        time: event time in microseconds UTC: of a request or engagement when it happened, of labels when they became
            known; 0 for an end.
        row: the object that came, without version and kind.
    """

    kind: Kind
    id: int
    time: int
    row: dict[str, Any]


def encode(kind: Kind, row: Mapping[str, Any]) -> bytes:
    """The bytes of a message."""
    return json.dumps({"v": VERSION, "kind": kind, **row}, separators=(",", ":"), allow_nan=False).encode()


END = encode("end", {})


class MessageReader:
    """Decodes messages about one data set and checks them against its configuration and catalogue.

    Args:
        config: of the data set.
        items, users: sorted ids that the catalogue lists, int64.
    """

    def __init__(self, *, config: DatasetConfig, items: np.ndarray, users: np.ndarray) -> None:
        self.config = config
        self._items, self._users = items, users
        self._tasks = {task.name: round(task.delay_seconds * 1e6) for task in config.tasks}
        self._attributed = {
            task.name: round((task.attribution_seconds or task.delay_seconds) * 1e6) for task in config.tasks
        }

    @staticmethod
    def of(dataset: Dataset) -> "MessageReader":
        """A reader of messages about ``dataset``, of which the catalogue is read and nothing else."""
        items, users = dataset.items()["item_id"].to_numpy(), dataset.users()["user_id"].to_numpy()
        return MessageReader(config=dataset.config, items=items, users=users)

    def read(self, payload: bytes | None) -> Message:
        """Decode and check.

        Raises:
            BadMessage: it is no JSON object, of an unknown version or kind, lacks a field, has one too many, or a value
                does not fit.
        """
        try:
            row = json.loads(payload or b"", parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise BadMessage(f"not JSON: {str(error)[:80]}") from None
        if not isinstance(row, dict):
            raise BadMessage(f"not an object but {type(row).__name__}")
        version, kind = row.pop("v", None), row.pop("kind", None)
        if version != VERSION or type(version) is not int:
            raise BadMessage(f"version {str(version)[:20]!r} is unknown; known is {VERSION}")
        if kind == "request":
            return self._request(row)
        if kind == "engagement":
            return self._engagement(row)
        if kind == "labels":
            return self._labels(row)
        if kind == "end":
            _fields(row, ())
            return Message(kind="end", id=0, time=0, row=row)
        raise BadMessage(f"kind {str(kind)[:20]!r} is unknown; allowed are request, engagement, labels, end")

    def _request(self, row: dict[str, Any]) -> Message:
        config = self.config
        _fields(row, REQUEST_FIELDS)
        request_id, time = _integer(row, "request_id"), _integer(row, "time")
        self._require_user(_integer(row, "user_id"))
        context = _mapping(row, "context", config.context)
        for name, value in context.items():
            if isinstance(value, str):
                _require_text(value, f"context.{name}")
            elif value is not None:
                _integer(context, name)
        for name, value in _mapping(row, "tags", config.tags).items():
            if type(value) is not bool:
                raise BadMessage(f"tags.{name}: must be true or false")
        candidates = _integers(row, "candidate_id", bits=32)
        if len(set(candidates)) < len(candidates) or min(candidates, default=0) < 0:
            raise BadMessage("candidate_id: negative, or repeated within the request")
        size = len(candidates)
        items = np.asarray(_integers(row, "item_id", size), np.int64)
        if not (known := _listed(items, self._items)).all():
            raise BadMessage(f"item_id: {items[~known][0]} is not in items.parquet")
        for surface in _integers(row, "surface", size):
            if not 0 <= surface < len(config.surfaces):
                raise BadMessage(f"surface: {surface} is out of range; there are {len(config.surfaces)}")
        for values in _list(row, "dense", size):
            if not isinstance(values, list) or len(values) != len(config.dense) or not all(map(_is_float32, values)):
                raise BadMessage(f"dense: each must be {len(config.dense)} finite numbers")
        for value in _list(row, "weight", size):
            if not _is_float32(value) or value < 0:
                raise BadMessage("weight: must be finite, 0 or more")
        _integers(row, "stratum", size, bits=8)
        labels, times = _mapping(row, "label", [*self._tasks]), _mapping(row, "label_time", [*self._tasks])
        for task in self._tasks:
            for label, known_at in zip(_list(labels, task, size), _list(times, task, size), strict=True):
                if (label is None) != (known_at is None):
                    raise BadMessage(f"label.{task}: a label and its time are both there or both null")
                if label is not None:
                    self._check_label(task, label, known_at, made=time)
        return Message(kind="request", id=request_id, time=time, row=row)

    def _engagement(self, row: dict[str, Any]) -> Message:
        _fields(row, ("engagement_id", "user_id", "time", "item_id", "surface", "action", "quantity"))
        self._require_user(_integer(row, "user_id"))
        item = _integer(row, "item_id")
        if not _listed(np.asarray([item]), self._items)[0]:
            raise BadMessage(f"item_id: {item} is not in items.parquet")
        for name, low, names in (("surface", -1, self.config.surfaces), ("action", 0, self.config.actions)):
            if not low <= _integer(row, name) < len(names):
                raise BadMessage(f"{name}: {row[name]} is out of range; there are {len(names)}")
        if not _is_float32(row["quantity"]) or row["quantity"] < 0:
            raise BadMessage("quantity: must be finite, 0 or more")
        return Message(kind="engagement", id=_integer(row, "engagement_id"), time=_integer(row, "time"), row=row)

    def _labels(self, row: dict[str, Any]) -> Message:
        _fields(row, ("request_id", "request_time", "time", "labels"))
        made, time = _integer(row, "request_time"), _integer(row, "time")
        for entry in _list(row, "labels"):
            if not isinstance(entry, list) or len(entry) != 3 or str(entry[1]) not in self._tasks:
                raise BadMessage(
                    f"labels: each must be [candidate_id, task, label]; tasks are {', '.join(self._tasks)}"
                )
            if type(entry[0]) is not int or not 0 <= entry[0] < 2**31:
                raise BadMessage("labels: a candidate_id is not an integer of 32 bits")
            self._check_label(entry[1], entry[2], time, made=made)
        return Message(kind="labels", id=_integer(row, "request_id"), time=time, row=row)

    def _check_label(self, task: str, label: Any, known_at: Any, *, made: int) -> None:
        if type(label) not in (int, float) or label not in (0, 1):
            raise BadMessage(f"label.{task}: allowed are 0 and 1")
        if type(known_at) is not int or not made <= known_at <= made + self._tasks[task]:
            raise BadMessage(f"label.{task}: known before its request, or later than delay_seconds allows")
        if label == 1 and known_at > made + self._attributed[task]:
            raise BadMessage(f"label.{task}: a 1 later than attribution_seconds allows; only what comes before counts")

    def _require_user(self, user: int) -> None:
        if not _listed(np.asarray([user]), self._users)[0]:
            raise BadMessage(f"user_id: {user} is not in users.parquet")


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number of JSON")


def _fields(row: Mapping[str, Any], names: tuple[str, ...]) -> None:
    lacking = [name for name in names if name not in row]
    if lacking:
        raise BadMessage(f"{lacking[0]}: missing")
    if len(row) > len(names):
        raise BadMessage(f"unknown field {sorted(row.keys() - set(names))[0][:40]!r}; fields are {', '.join(names)}")


def _mapping(row: Mapping[str, Any], name: str, keys: list[str]) -> dict[str, Any]:
    value = row[name]
    if not isinstance(value, dict) or value.keys() != set(keys):
        raise BadMessage(f"{name}: must be an object with exactly {', '.join(keys) or 'nothing'}")
    return value


def _require_text(value: str, name: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadMessage(f"{name}: not text that UTF-8 can hold") from None


def _list(row: Mapping[str, Any], name: str, size: int | None = None) -> list[Any]:
    value = row[name]
    if not isinstance(value, list) or (size is not None and len(value) != size):
        raise BadMessage(f"{name}: must be a list" + ("" if size is None else f" of {size}, one a candidate"))
    return value


def _integer(row: Mapping[str, Any], name: str) -> int:
    value = row.get(name, _NONE)
    if type(value) is not int or not -_INT64 <= value < _INT64:
        raise BadMessage(f"{name}: must be an integer of 64 bits")
    return value


def _integers(row: Mapping[str, Any], name: str, size: int | None = None, *, bits: int = 64) -> list[int]:
    values, limit = _list(row, name, size), 2 ** (bits - 1)
    if not all(type(value) is int and -limit <= value < limit for value in values):
        raise BadMessage(f"{name}: must be integers of {bits} bits")
    return values


def _is_float32(value: Any) -> bool:
    """A number that float32 holds without becoming infinite."""
    return type(value) in (int, float) and abs(value) <= 3.4028235e38 and math.isfinite(value)


def _listed(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Which of ``values`` are among the sorted ``ids``, bool [N]."""
    if len(ids) == 0:
        return np.zeros(len(values), bool)
    return ids[np.searchsorted(ids, values).clip(max=len(ids) - 1)] == values
