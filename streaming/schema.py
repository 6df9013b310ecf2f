"""The format of a data set: what ``dataset.yaml`` says, and the Arrow schemas that follow from it.

::

    DATASET/
      dataset.yaml                             DatasetConfig
      items.parquet  users.parquet             attributes, one row per id, sorted by id
      requests/window=00012/part-0.parquet     one row per request, sorted by (time, request_id)
      engagements/window=00012/part-0.parquet  one row per engagement, sorted by (user_id, time)

Times are ``timestamp[us, tz=UTC]``. A request's candidates are lists of equal length; everything that knows an outcome
lives in the struct ``supervision``, apart from what a model may read. ``docs/data.md`` has a worked example.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Literal, Self

import pyarrow as pa
import pydantic

from streaming.config import Config

TIME = pa.timestamp("us", tz="UTC")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# Types in which a categorical column (context, item or user attribute) may be stored.
CATEGORICAL_TYPES = (pa.int64(), pa.string())

# Columns whose lists run over a request's candidates and which a model may read.
CANDIDATE_COLUMNS = ("candidate_id", "item_id", "surface", "dense")


class TaskConfig(Config):
    """One thing to predict about a (request, candidate).

    Attributes:
        name: The task's name; its columns are ``label_NAME`` and ``label_time_NAME``.
        type: ``binary``: labels are 0 or 1.
        given: Another task; this one's label is defined only where that one's is 1.
        delay_seconds: The largest delay between a request and the moment at which its label is known; the attribution
            window, if there is one and nothing else is said.
        attribution_seconds: Only what comes within so long of a request counts: label 1 is known when it comes, label 0
            when the window has passed. None: labels are facts of their own, known at their label times.
    """

    name: str
    type: Literal["binary"] = "binary"
    given: str | None = None
    delay_seconds: float = pydantic.Field(default=0.0, ge=0.0)
    attribution_seconds: float | None = pydantic.Field(default=None, gt=0.0)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _delay_covers_the_attribution_window(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("attribution_seconds") is not None:
            return {"delay_seconds": values["attribution_seconds"], **values}
        return values

    @pydantic.model_validator(mode="after")
    def _attribution_fits(self) -> Self:
        if self.attribution_seconds is not None and self.attribution_seconds > self.delay_seconds:
            raise ValueError(
                f"task {self.name}: a label is known attribution_seconds ({self.attribution_seconds:g}) after its "
                f"request, so delay_seconds ({self.delay_seconds:g}) must be at least that. Leave delay_seconds out"
            )
        return self


class DatasetConfig(Config):
    """Contents of ``dataset.yaml``.

    Attributes:
        surfaces: Names of the surfaces; a stored surface is an index in this list.
        actions: Names of the engagements' actions; a stored action is an index in this list.
        dense: Names of the columns of ``dense``, in their order.
        item_attributes: Categorical columns of ``items.parquet`` (null = unknown).
        user_attributes: Categorical columns of ``users.parquet`` (null = unknown).
        context: Categorical columns of a request (null = unknown).
        tags: Boolean request columns, stored as ``tag_NAME``; for reporting only, never a model's input.
        first_window: Index of the first window.
        window_boundaries: n + 1 times with a time zone; the i-th window covers [boundary i, boundary i + 1).
    """

    name: str
    description: str
    provenance: str
    licence: str
    surfaces: list[str] = pydantic.Field(min_length=1, max_length=127)
    actions: list[str] = pydantic.Field(min_length=1, max_length=127)
    tasks: list[TaskConfig] = pydantic.Field(min_length=1)
    dense: list[str] = pydantic.Field(min_length=1)
    item_attributes: list[str] = []
    user_attributes: list[str] = []
    context: list[str] = []
    tags: list[str] = []
    first_window: int = pydantic.Field(default=0, ge=0)
    window_boundaries: list[pydantic.AwareDatetime] = pydantic.Field(min_length=2)

    @pydantic.field_validator("surfaces", "actions", "dense", "item_attributes", "user_attributes", "context", "tags")
    @classmethod
    def _unique(cls, names: list[str]) -> list[str]:
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"names must differ, but {', '.join(repeated)} is repeated")
        return names

    @pydantic.field_validator("window_boundaries")
    @classmethod
    def _increasing(cls, boundaries: list[datetime]) -> list[datetime]:
        for earlier, later in pairwise(boundaries):
            if later <= earlier:
                raise ValueError(f"boundaries must increase, but {later.isoformat()} follows {earlier.isoformat()}")
        return boundaries

    @pydantic.model_validator(mode="after")
    def _tasks(self) -> Self:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"tasks must have different names; got {', '.join(names)}")
        for task in self.tasks:
            if task.given is not None and (task.given not in names or task.given == task.name):
                raise ValueError(f"task {task.name}: 'given' must be another of the tasks {', '.join(names)}")
        return self


def microseconds(time: datetime) -> int:
    """Microseconds since 1970-01-01 UTC of a time with a time zone, exactly."""
    return (time - EPOCH) // timedelta(microseconds=1)


def request_schema(config: DatasetConfig, *, context_types: Mapping[str, pa.DataType] | None = None) -> pa.Schema:
    """Schema of a request part.

    Args:
        context_types: Type of each context column that is not stored as int64.
    """
    types = context_types or {}
    width = len(config.dense)
    fields = [
        pa.field("request_id", pa.int64()),
        pa.field("user_id", pa.int64()),
        pa.field("time", TIME),
        *(pa.field(name, types.get(name, pa.int64())) for name in config.context),
        *(pa.field(f"tag_{name}", pa.bool_()) for name in config.tags),
        pa.field("candidate_id", pa.list_(pa.int32())),
        pa.field("item_id", pa.list_(pa.int64())),
        pa.field("surface", pa.list_(pa.int8())),
        pa.field("dense", pa.list_(pa.list_(pa.float32(), width))),
        pa.field("supervision", pa.struct(supervision_fields(config))),
    ]
    return pa.schema(fields)


def supervision_fields(config: DatasetConfig) -> list[pa.Field]:
    """Fields of the struct ``supervision``: a label and a label time per task, then weight and stratum."""
    fields = []
    for task in config.tasks:
        fields.append(pa.field(f"label_{task.name}", pa.list_(pa.float32())))
        fields.append(pa.field(f"label_time_{task.name}", pa.list_(TIME)))
    return [*fields, pa.field("weight", pa.list_(pa.float32())), pa.field("stratum", pa.list_(pa.int8()))]


def engagement_schema(config: DatasetConfig) -> pa.Schema:
    """Schema of an engagement part, the same for every data set. ``surface`` is -1 for an engagement on none."""
    return pa.schema(
        [
            pa.field("user_id", pa.int64()),
            pa.field("time", TIME),
            pa.field("item_id", pa.int64()),
            pa.field("surface", pa.int8()),
            pa.field("action", pa.int8()),
            pa.field("quantity", pa.float32()),
        ]
    )


def entity_schema(key: str, attributes: list[str], types: Mapping[str, pa.DataType] | None = None) -> pa.Schema:
    """Schema of ``items.parquet`` (key ``item_id``) or ``users.parquet`` (key ``user_id``).

    Args:
        types: Type of each attribute that is not stored as a string.
    """
    found = types or {}
    return pa.schema([pa.field(key, pa.int64()), *(pa.field(n, found.get(n, pa.string())) for n in attributes)])
