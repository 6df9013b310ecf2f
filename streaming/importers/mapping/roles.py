"""What a column can be: time, surface, label, attribute or dense number. The parts of a mapping file about columns."""

from typing import Annotated, Any, Literal, Self
from zoneinfo import available_timezones

import pydantic

from streaming.config import Config

Name = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
"""Names that the mapping gives: they become parts of column and file names."""

UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
"""Microseconds in each unit of time."""


class _Column(Config):
    """Something that a column's name alone can stand for."""

    column: str | None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value


class TimeConfig(_Column):
    """A column of times.

    Attributes:
        unit: of numbers since 1970-01-01 UTC; ``iso`` for text as in 2024-05-01T12:00:00+02:00. Columns of a Parquet
            file that are timestamps already need none.
        zone: the time zone of ``iso`` text without one, such as Europe/Berlin.
    """

    column: str
    unit: Literal["s", "ms", "us", "iso"] = "s"
    zone: str | None = None

    @pydantic.field_validator("zone")
    @classmethod
    def _known(cls, zone: str | None) -> str | None:
        if zone is not None and zone not in available_timezones():
            raise ValueError(f"there is no time zone {zone!r}; allowed are names such as UTC or Europe/Berlin")
        return zone


class SurfaceConfig(_Column):
    """Which surface a row belongs to: exactly one of the first three.

    Attributes:
        column: of the rows.
        constant: all rows are on this surface.
        item_attribute: the surface is this attribute of the row's item (see ``items``).
        otherwise: the surface of rows that have none; without it they are bad rows.
        names: other names for the surfaces found, by the value in the data.
        prefix: put before every value that ``names`` does not name.
    """

    column: str | None = None
    constant: Name | None = None
    item_attribute: str | None = None
    otherwise: Name | None = None
    names: dict[str, Name] = {}
    prefix: str = pydantic.Field(default="", pattern=r"^([A-Za-z][A-Za-z0-9_-]{0,31})?$")

    @pydantic.field_validator("names", mode="before")
    @classmethod
    def _text(cls, names: Any) -> Any:
        return {str(key): value for key, value in names.items()} if isinstance(names, dict) else names

    @pydantic.model_validator(mode="after")
    def _one(self) -> Self:
        if sum(each is not None for each in (self.column, self.constant, self.item_attribute)) != 1:
            raise ValueError("give exactly one of column, constant, item_attribute; for example {constant: feed}")
        if self.constant is not None and (self.names or self.prefix or self.otherwise is not None):
            raise ValueError("constant is the one surface: leave out names, prefix and otherwise")
        return self


class LabelConfig(Config):
    """One task, and when its label is 1.

    Attributes:
        column: None = every row is a positive, as in a log of purchases; then negatives are drawn.
        equals: the label is 1 where the column has this value.
        at_least: the label is 1 where the column is at least this number. With neither of the two the column holds
            0 and 1, or true and false. A null is a label that is not known.
        given: another task; this label counts only where that one is 1.
        known_at: column of the time at which the label became known.
        delay_seconds: how long after its row a label becomes known that has no time of its own.
    """

    name: Name
    column: str | None = None
    equals: str | None = None
    at_least: float | None = None
    given: str | None = None
    known_at: TimeConfig | None = None
    delay_seconds: float = pydantic.Field(default=0.0, ge=0.0, le=10 * 365 * 86400.0)

    @pydantic.field_validator("equals", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @pydantic.model_validator(mode="after")
    def _rule(self) -> Self:
        if self.equals is not None and self.at_least is not None:
            raise ValueError("give 'equals' or 'at_least', not both")
        if self.column is None and (self.equals is not None or self.at_least is not None or self.known_at is not None):
            raise ValueError("'equals', 'at_least' and 'known_at' need a 'column'")
        return self


class AttributeConfig(_Column):
    """A categorical attribute.

    Attributes:
        first_of: what separates several values in one; the first is taken.
    """

    column: str
    first_of: str | None = pydantic.Field(default=None, min_length=1, max_length=8)


class DenseConfig(_Column):
    r"""A number that a model reads, as of the request.

    Attributes:
        transform: ``log1p`` is sign(x) log(1 + |x|).
    """

    column: str
    transform: Literal["none", "log1p"] = "none"
