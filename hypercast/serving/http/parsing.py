"""From the bytes that a client sent to a question or to engagements; whatever does not fit is refused with a reason.

Nothing is built from numbers that have not been counted and checked: a list that is too long is refused as a list.

Shape legend: C candidates, N engagements.
"""

import itertools
import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from hypercast.serving.config import ServingConfig
from hypercast.serving.features.question import Question
from streaming.schema import DatasetConfig

FLOAT32_MAX = 3.4028235e38
LONGEST_TEXT = 256
"""Characters of a context value."""
AHEAD = 10_000_000
"""Microseconds by which the clock of whoever posts an engagement may be ahead of this one."""
LATEST = 1 << 62
"""Microseconds since 1970 beyond which a time is a mistake; leaves room for sums of two."""


REASONS = {
    400: "no JSON",
    401: "token",
    408: "slow body",
    413: "too large",
    415: "content type",
    422: "unfit",
    429: "rate",
    503: "unavailable",
}
"""What refusals are counted under, by status."""


class Refusal(Exception):
    """A request that is not answered. ``status`` is one of :data:`REASONS`; the rest is what the client is told."""

    def __init__(self, status: int, error: str, *, where: str, allowed: str, example: Any) -> None:
        super().__init__(error)
        self.status = status
        self.reason = REASONS[status]
        self.told = {"error": error, "where": where, "allowed": allowed, "example": example}


class RequestIds:
    """Numbers for requests that bring none: by time, then by process. 63 bits, never twice in a process."""

    def __init__(self) -> None:
        self._own = os.getpid() & 0x3FF
        self._last = 0

    def next(self) -> int:
        self._last = max(self._last + 1, time.time_ns() >> 10)
        return (self._last << 10 | self._own) & (2**63 - 1)


class Parser:
    """Reads bodies about one data set.

    Args:
        dataset: its configuration: surfaces, actions, context, dense columns.
        given: dense columns that a caller must send, by name.
        config: of the service.
    """

    def __init__(self, *, dataset: DatasetConfig, given: list[str], config: ServingConfig) -> None:
        self._dataset, self._given, self._limits = dataset, given, config.limits
        self._timed = config.clock == "given"
        self._ids = RequestIds()
        self.example = {
            "surface": dataset.surfaces[0],
            "user_id": 17,
            **({"time": 1_700_000_000_000_000} if self._timed else {}),
            **({"context": dict.fromkeys(dataset.context)} if dataset.context else {}),
            "item_ids": [4, 8],
            **({"dense": {name: [0.0, 0.0] for name in given}} if given else {}),
        }
        self.event_example = {
            "events": [
                {
                    **{"user_id": 17, "item_id": 4, "time": 1_700_000_000_000_000},
                    **{"surface": dataset.surfaces[0], "action": dataset.actions[0]},
                }
            ]
        }

    def question(self, body: bytes) -> Question:
        """The question in a body of ``/v1/rank``.

        Raises:
            Refusal: 400 for what is no JSON object, 422 for values that do not fit.
        """
        row = self._object(body, self.example)
        needed = ("surface", "user_id", "item_ids", *(("time",) if self._timed else ()))
        self._fields(row, self.example, needed, ("context", "dense", "request_id", "candidate_ids"))
        surface = row["surface"]
        if not isinstance(surface, str) or surface not in self._dataset.surfaces:
            raise self._wrong("surface", "unknown surface", "one of " + ", ".join(self._dataset.surfaces))
        item_id = self._items(row["item_ids"])
        return Question(
            request_id=self._ids.next() if row.get("request_id") is None else self._integer(row, "request_id", low=0),
            surface=surface,
            user_id=self._integer(row, "user_id"),
            time=self._integer(row, "time", low=0, high=LATEST) if self._timed else _now(),
            context=self._context(row.get("context")),
            item_ids=item_id,
            candidate_ids=self._candidates(row.get("candidate_ids"), len(item_id)),
            dense=self._dense(row.get("dense"), len(item_id)),
        )

    def events(self, body: bytes) -> list[dict[str, int]]:
        """The engagements in a body of ``/v1/events``: user_id, item_id, time, surface (-1: none), action.

        Raises:
            Refusal: as :meth:`question`; 413 for too many.
        """
        row = self._object(body, self.event_example)
        self._fields(row, self.event_example, ("events",), ())
        listed, most = row["events"], self._limits.events
        if not isinstance(listed, list):
            raise self._wrong_event("events", "not a list", f"a list of at most {most} objects")
        if len(listed) > most:
            raise Refusal(413, "too many events", where="events", allowed=f"at most {most}", example=self.event_example)
        return [self._event(event, f"events[{index}]") for index, event in enumerate(listed)]

    def _event(self, row: Any, where: str) -> dict[str, int]:
        if not isinstance(row, dict):
            raise self._wrong_event(where, "not an object", "an object")
        unknown = row.keys() - {"user_id", "item_id", "time", "surface", "action"}
        if unknown:
            raise self._wrong_event(f"{where}.{_shown(min(unknown))}", "unknown field", "the fields of the example")
        surface, action = row.get("surface"), row.get("action")
        if surface is not None and not (isinstance(surface, str) and surface in self._dataset.surfaces):
            raise self._wrong_event(f"{where}.surface", "unknown surface", "null, " + ", ".join(self._dataset.surfaces))
        if not isinstance(action, str) or action not in self._dataset.actions:
            raise self._wrong_event(f"{where}.action", "unknown action", ", ".join(self._dataset.actions))
        latest = LATEST if self._timed else _now() + AHEAD
        for name, low, high in (("user_id", -(1 << 63), 1 << 63), ("item_id", 0, 1 << 63), ("time", 0, latest)):
            if not _is_int(row.get(name), low, high):
                raise self._wrong_event(f"{where}.{name}", "not an integer in range", f"integers, {low} to {high - 1}")
        return {
            **{name: row[name] for name in ("user_id", "item_id", "time")},
            "surface": -1 if surface is None else self._dataset.surfaces.index(surface),
            "action": self._dataset.actions.index(action),
        }

    def _object(self, body: bytes, example: Any) -> dict[str, Any]:
        try:
            row = json.loads(body, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise Refusal(
                400, f"not JSON: {str(error)[:100]}", where="body", allowed="a JSON object", example=example
            ) from None
        if not isinstance(row, dict):
            raise Refusal(400, "not a JSON object", where="body", allowed="a JSON object", example=example)
        return row

    def _fields(self, row: Mapping[str, Any], example: Any, needed: tuple[str, ...], optional: tuple[str, ...]) -> None:
        allowed = f"{', '.join(needed)}" + (f"; optional: {', '.join(optional)}" if optional else "")
        for name in needed:
            if name not in row:
                raise Refusal(422, "missing", where=name, allowed=allowed, example=example)
        for name in row:
            if name not in needed and name not in optional:
                raise Refusal(422, "unknown field", where=_shown(name), allowed=allowed, example=example)

    def _items(self, listed: Any) -> np.ndarray:
        most = self._limits.items
        allowed = f"a list of 1 to {most} integers from 0 to 2**63 - 1"
        if not isinstance(listed, list) or not listed:
            raise self._wrong("item_ids", "not a list with something in it", allowed)
        if len(listed) > most:
            raise Refusal(
                413, f"{len(listed)} items are too many", where="item_ids", allowed=allowed, example=self.example
            )
        for index, item in enumerate(listed):
            if not _is_int(item, 0, 1 << 63):
                raise self._wrong(f"item_ids[{index}]", "not an integer of 63 bits", allowed)
        return np.array(listed, np.int64)

    def _candidates(self, listed: Any, size: int) -> np.ndarray | None:
        if listed is None:
            return None
        whole = isinstance(listed, list) and len(listed) == size and all(_is_int(each, 0, 1 << 31) for each in listed)
        if not whole or len(set(listed)) < size:
            raise self._wrong("candidate_ids", "not one number an item", f"{size} distinct integers of 31 bits")
        return np.array(listed, np.int64)

    def _context(self, value: Any) -> dict[str, str | int | None]:
        known = self._dataset.context
        allowed = f"an object with any of {', '.join(known) or 'nothing'}; text, an integer or null each"
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self._wrong("context", "not an object", allowed)
        for name, each in value.items():
            if name not in known:
                raise self._wrong(f"context.{_shown(name)}", "unknown feature", allowed)
            if isinstance(each, str):
                if len(each) > LONGEST_TEXT or not _is_utf8(each):
                    raise self._wrong(f"context.{name}", "too long, or no text", f"{LONGEST_TEXT} characters")
            elif each is not None and not _is_int(each, -(1 << 63), 1 << 63):
                raise self._wrong(f"context.{name}", "neither text nor an integer of 64 bits", allowed)
        return {name: value.get(name) for name in known}

    def _dense(self, value: Any, size: int) -> dict[str, np.ndarray]:
        allowed = f"an object with {', '.join(self._given) or 'nothing'}; a list of {size} finite numbers each"
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self._wrong("dense", "not an object", allowed)
        for name in itertools.chain(self._given, value):
            if name not in self._given:
                raise self._wrong(f"dense.{_shown(name)}", "not a column that callers send", allowed)
            column = value.get(name)
            if not isinstance(column, list) or len(column) != size or not all(map(_is_float32, column)):
                raise self._wrong(f"dense.{name}", "not a finite number for each item", allowed)
        return {name: np.array(value[name], np.float32) for name in self._given}

    def _integer(self, row: Mapping[str, Any], name: str, *, low: int = -(1 << 63), high: int = 1 << 63) -> int:
        if not _is_int(row[name], low, high):
            raise self._wrong(name, "not an integer in range", f"an integer from {low} to {high - 1}")
        return row[name]

    def _wrong(self, where: str, error: str, allowed: str) -> Refusal:
        return Refusal(422, error, where=where, allowed=allowed, example=self.example)

    def _wrong_event(self, where: str, error: str, allowed: str) -> Refusal:
        return Refusal(422, error, where=where, allowed=allowed, example=self.event_example)


def _is_int(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value < high  # bools are ints to isinstance


def _is_float32(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= FLOAT32_MAX and math.isfinite(value)


def _now() -> int:
    return time.time_ns() // 1000


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: str) -> str:
    """A name that a client made up, short and printable."""
    return ascii(name[:40])[1:-1]


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number of JSON")
