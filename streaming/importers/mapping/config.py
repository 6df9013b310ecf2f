"""The mapping file: which columns of which files play which role. Read by ``hypercast data import MAPPING.yaml``.

::

    name: shop
    rows: {files: logs/*.csv.gz}
    user: user_id
    item: sku
    time: {column: ts, unit: ms}
    surface: page
    tasks:
      - {name: click, column: clicked}
      - {name: purchase, column: bought, given: click, known_at: {column: bought_ts, unit: ms}, delay_seconds: 86400}
    windows: {length: 1d}

Wherever a column is asked for, its name alone will do. ``docs/data.md`` has worked examples.
"""

import codecs
import re
from datetime import datetime, timedelta
from typing import Any, Literal, Self

import pydantic

from streaming.config import Config
from streaming.features import derived
from streaming.importers.mapping.negatives import Negatives
from streaming.importers.mapping.roles import (
    AttributeConfig,
    DenseConfig,
    LabelConfig,
    Name,
    SurfaceConfig,
    TimeConfig,
)

LENGTHS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
RESERVED = {
    *("request_id", "user_id", "time", "candidate_id", "item_id", "surface", "dense", "supervision"),
    *("history_check", "item", "surface_item"),
}


class CsvConfig(Config):
    r"""How CSV files are written.

    Attributes:
        delimiter: between columns; 1 to 8 characters, ``"\t"`` for a tabulator.
        columns: names of the columns of files without a header line, in their order; None = the first line has them.
        encoding: of the text, such as ``utf-8`` or ``latin-1``.
        quote: what encloses values that hold a delimiter; None = nothing does.
        newlines_in_values: quoted values may go over several lines.
        null_values: what stands for a missing value.
    """

    delimiter: str = pydantic.Field(default=",", min_length=1, max_length=8)
    columns: list[str] | None = None
    encoding: str = "utf-8"
    quote: str | None = pydantic.Field(default='"', min_length=1, max_length=1)
    newlines_in_values: bool = False
    null_values: list[str] = ["", "NULL", "null", "NaN", "nan", "None", "\\N"]

    @pydantic.field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str) -> str:
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise ValueError(f"there is no encoding {encoding!r}; allowed are names such as utf-8 or cp1252") from None
        return encoding


class FilesConfig(Config):
    """Files of one layout.

    Attributes:
        files: path or glob, or a list of them, relative to the mapping file; a ``.gz`` is unpacked as it is read.
        format: None = by the files' suffix (``.csv``, ``.tsv``, ``.jsonl``, ``.parquet``).
        csv: how CSV files are written.
        max_row_bytes: longest row of a CSV or JSONL file; up to 64 times as much of a CSV file is read ahead.
        max_unpacked_ratio: a ``.gz`` that unpacks to more than this many times its size is refused.
    """

    files: list[str] = pydantic.Field(min_length=1)
    format: Literal["csv", "jsonl", "parquet"] | None = None
    csv: CsvConfig = CsvConfig()
    max_row_bytes: int = pydantic.Field(default=1 << 20, ge=1 << 10, le=1 << 28)
    max_unpacked_ratio: float = pydantic.Field(default=200.0, gt=1.0)

    @pydantic.field_validator("files", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class EngagementConfig(Config):
    """What histories are made of: rows with a label, all rows, or rows of other files.

    Attributes:
        action: name of the action.
        task: rows whose label of this task is ``label``, at the time at which it became known. None = every row.
        files: other files of engagements, whose columns the following name.
        user, item, time, surface: columns of ``files``; without ``surface`` they happened on none.
        quantity: column of a number, 0 or more; 1 where there is none. Of ``files``, or of the rows.
    """

    action: Name
    task: str | None = None
    label: Literal[0, 1] = 1
    files: FilesConfig | None = None
    user: str | None = None
    item: str | None = None
    time: TimeConfig | None = None
    surface: str | None = None
    quantity: str | None = None

    @pydantic.model_validator(mode="after")
    def _whole(self) -> Self:
        own = {"user": self.user, "item": self.item, "time": self.time}
        if self.files is not None and (self.task is not None or None in own.values()):
            raise ValueError("'files' needs user, item and time, and no task")
        given = [name for name, value in {**own, "surface": self.surface}.items() if value is not None]
        if self.files is None and given:
            raise ValueError(f"'{given[0]}' is for engagements from other files: give 'files', or leave it out")
        if self.task is None and self.label == 0:
            raise ValueError("'label' is that of a task: name the task, or leave it out")
        return self


class EntityConfig(Config):
    """Attributes of items or users: by name, columns of ``files``, or of the rows where there are none.

    Attributes:
        files: files with one row per id; the first row of an id counts.
        id: the column of the id in ``files``.
        attributes: by name. From the rows, an id's earliest row counts, so that nothing later is known earlier.
    """

    files: FilesConfig | None = None
    id: str | None = None
    attributes: dict[Name, AttributeConfig] = {}

    @pydantic.model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.files is None) != (self.id is None):
            raise ValueError("'files' and 'id' go together: the files, and the column of the id in them")
        return self


class RequestConfig(Config):
    """Which rows make one request. The earliest row gives it its time; it never crosses a window's end.

    Attributes:
        id: column of the request's id; None = rows of one user make requests by their time alone.
        within_seconds: how long after its first row a row may still belong to a request. Default 0 without an ``id``
            (same user and same time), 3600 with one.
    """

    id: str | None = None
    within_seconds: float | None = pydantic.Field(default=None, ge=0.0, le=86400.0)

    @property
    def within(self) -> int:
        """Microseconds."""
        seconds = self.within_seconds if self.within_seconds is not None else (0.0 if self.id is None else 3600.0)
        return round(seconds * 1e6)


class WindowConfig(Config):
    """How event time is cut: windows of one length, or a number of equally long ones.

    Attributes:
        length: a number with h, d or w, such as 7d.
        start: of the first window; None = the earliest event, rounded down to a day (an hour, for windows of hours).
    """

    length: str | None = pydantic.Field(default=None, pattern=r"^[1-9][0-9]{0,3}[hdw]$")
    count: int | None = pydantic.Field(default=None, ge=1, le=10_000)
    start: pydantic.AwareDatetime | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _length_alone(cls, value: Any) -> Any:
        return {"length": value} if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _one(self) -> Self:
        if (self.length is None) == (self.count is None):
            raise ValueError("give either length, such as 7d, or count")
        return self

    @property
    def span(self) -> timedelta | None:
        """The length as a time."""
        return None if self.length is None else int(self.length[:-1]) * LENGTHS[self.length[-1]]


class MappingConfig(Config):
    """A mapping file.

    Attributes:
        rows: what was shown: one row per (request, item).
        engagements: what histories are made of; None = rows whose label of the first task is 1, named like it.
        weight: column: how many rows of the population a row stands for; None = 1.
        dense: numbers that a model reads, by name, as of the request.
        as_of_features: compute counts, recencies and popularities from what lies before each request; None = where
            there are no ``dense`` columns.
        context: categorical columns of a request, by name; its first row counts.
        clock: parts of the request's time, in UTC, that become context as well.
        negatives: for logs that hold positives only: what else could have been taken.
        earliest, latest: a row outside of these times is a bad row.
        max_bad_share: the largest share of rows that may be set aside as bad; with more the import stops.
        seed: of the candidates' order and of the draws of negatives.
    """

    name: str = pydantic.Field(min_length=1)
    description: str = ""
    provenance: str = ""
    licence: str = "unknown"
    rows: FilesConfig
    user: str
    item: str
    time: TimeConfig
    surface: SurfaceConfig
    tasks: list[LabelConfig] = pydantic.Field(min_length=1)
    engagements: list[EngagementConfig] | None = pydantic.Field(default=None, min_length=1)
    requests: RequestConfig = RequestConfig()
    weight: str | None = None
    dense: dict[Name, DenseConfig] = {}
    as_of_features: bool | None = None
    context: dict[Name, AttributeConfig] = {}
    clock: list[Literal["hour", "weekday"]] = ["hour", "weekday"]
    items: EntityConfig = EntityConfig()
    users: EntityConfig = EntityConfig()
    windows: WindowConfig
    negatives: Negatives.Config | None = None
    earliest: pydantic.AwareDatetime = datetime.fromisoformat("1990-01-01T00:00:00+00:00")
    latest: pydantic.AwareDatetime = datetime.fromisoformat("2100-01-01T00:00:00+00:00")
    max_bad_share: float = pydantic.Field(default=0.01, ge=0.0, le=1.0)
    seed: int = pydantic.Field(default=0, ge=0)

    @property
    def actions(self) -> list[EngagementConfig]:
        """The engagements, with their default."""
        first = self.tasks[0].name
        return self.engagements or [EngagementConfig(action=first, task=first)]

    @property
    def with_as_of_features(self) -> bool:
        return not self.dense if self.as_of_features is None else self.as_of_features

    @pydantic.model_validator(mode="after")
    def _names(self) -> Self:
        tasks = [task.name for task in self.tasks]
        actions = [each.action for each in self.actions]
        for what, names in {"tasks": tasks, "actions": actions, "context": [*self.context, *self.clock]}.items():
            repeated = {name for name in names if names.count(name) > 1}
            if repeated:
                raise ValueError(f"{what} must have different names, but {min(repeated)} is repeated")
        for name in [*self.context, *self.items.attributes, *self.users.attributes]:
            if name in RESERVED or re.match("tag_", name):
                raise ValueError(f"{name} is a name of the format: give this context or attribute another name")
        for action in self.actions:
            if action.task is not None and action.task not in tasks:
                raise ValueError(f"engagement {action.action}: task must be one of {', '.join(tasks)}")
        for task in self.tasks:
            if task.given is not None and (task.given not in tasks or task.given == task.name):
                raise ValueError(f"task {task.name}: 'given' must be another of the tasks {', '.join(tasks)}")
        return self

    def _context_of_items(self) -> list[str]:
        """Context features that are read from columns which rows have of their items."""
        of_items = {self.item, *(each.column for each in self.items.attributes.values() if self.items.files is None)}
        return sorted(name for name, each in self.context.items() if each.column in of_items)

    @pydantic.model_validator(mode="after")
    def _fit(self) -> Self:
        wanted = self.surface.item_attribute
        if wanted is not None and (wanted not in self.items.attributes or self.items.files is None):
            raise ValueError(f"surface.item_attribute {wanted!r} must be an attribute of items with files")
        if self.negatives is not None and self.dense:
            raise ValueError("drawn negatives have no dense columns: leave out 'dense', as-of features are computed")
        if self.negatives is not None and (telling := self._context_of_items()):
            raise ValueError(
                f"context {telling} reads a column of the item: with drawn negatives a row's item is the positive, and "
                "its category in the context would tell the label. Make it an attribute of items only"
            )
        if self.negatives is not None and self.weight is not None:
            raise ValueError("drawn negatives weigh what they stand for in their pool: leave out 'weight'")
        if self.with_as_of_features and (same := sorted(self.dense.keys() & derived([*self.items.attributes]).keys())):
            raise ValueError(f"dense {same[0]} is the name of an as-of feature: give the column another name")
        if not self.dense and not self.with_as_of_features:
            raise ValueError("nothing to read: give 'dense' columns, or leave out 'as_of_features'")
        if self.latest <= self.earliest:
            raise ValueError("latest must be after earliest")
        return self
