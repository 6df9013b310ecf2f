"""What the values of a column mean, whatever type the file gave them: ids, numbers, times. All by column, none by row.

Every function returns values of a fixed type together with a mask of those that mean nothing; nothing raises about
values, only about columns of a type that can never be what it is mapped to.

Legend: n rows.
"""

import contextlib
import hashlib
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streaming.errors import DataError
from streaming.importers.mapping.roles import UNITS, TimeConfig

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

LONGEST_ID = 512  # bytes
HASHED = 1 << 62
"""Codes from here on are hashes; those below are the ids themselves."""

_INTEGER = r"^(0|[1-9][0-9]{0,17})$"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$"


@dataclass(frozen=True, kw_only=True)
class Ids:
    """Ids as codes that depend on the id alone.

    A whole number from 0 to 10^18 - 1 is its own code; anything else gets a code from 2^62 on, of its BLAKE2 hash.

    Attributes:
        code: int64 [n], 0 where missing.
        check: more of the hash, by which two ids with one code are told apart, int64 [n].
        text: the id as it stands in the file, string [n].
        missing, long: masks [n].
    """

    code: Int
    check: Int
    text: pa.Array
    missing: Mask
    long: Mask

    def filter(self, keep: Mask) -> "Ids":
        """The ids of some rows [n]."""
        return Ids(
            code=self.code[keep],
            check=self.check[keep],
            text=self.text.filter(pa.array(keep)),
            missing=self.missing[keep],
            long=self.long[keep],
        )


def ids(array: pa.Array, *, column: str) -> Ids:
    """Codes of a column of ids: text, whole numbers, or floating-point numbers without a fraction.

    Raises:
        DataError: the column holds something else.
    """
    kind = array.type
    if pa.types.is_floating(kind):
        whole = pc.and_(pc.is_finite(array), pc.equal(pc.floor(array), array))
        small = pc.less(pc.abs(array), 2.0**53)  # beyond, floating-point numbers no longer tell whole ones apart
        array = pc.if_else(pc.and_(whole, small), array, pa.scalar(None, kind)).cast(pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_string(kind)):
        raise DataError(f"column '{column}' holds {kind}, which is no id. Ids are text or whole numbers.")
    text = trimmed(array.cast(pa.string()))
    encoded = text.dictionary_encode()
    known = encoded.dictionary
    number = np.asarray(pc.match_substring_regex(known, _INTEGER), dtype=bool)
    code, check = np.zeros(len(known) + 1, np.int64), np.zeros(len(known) + 1, np.int64)
    code[:-1][number] = known.filter(pa.array(number)).cast(pa.int64()).to_numpy(zero_copy_only=False)
    others = np.flatnonzero(~number)
    if len(others):
        names = known.filter(pa.array(~number)).to_pylist()
        digests = b"".join(hashlib.blake2b(name.encode(), digest_size=16).digest() for name in names)
        halves = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
        code[others] = (halves[:, 0] >> np.uint64(2)).astype(np.int64) + HASHED
        check[others] = halves[:, 1].astype(np.int64)
    at = encoded.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)
    long = np.append(np.asarray(pc.greater(pc.binary_length(known), LONGEST_ID), dtype=bool), False)
    return Ids(code=code[at], check=check[at], text=text, missing=at == len(known), long=long[at])


def trimmed(array: pa.Array) -> pa.Array:
    """Text without spaces around it; empty becomes null."""
    text = pc.utf8_trim_whitespace(array)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def numbers(array: pa.Array, *, column: str) -> tuple[Float, Mask]:
    """Numbers float64 [n], NaN where null, and which are no finite numbers [n].

    Raises:
        DataError: the column's type holds no numbers.
    """
    kind = array.type
    if pa.types.is_string(kind):
        values, bad = _parsed(trimmed(array), pa.float64(), _NUMBER)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        values, bad = array.cast(pa.float64(), safe=False), np.zeros(len(array), dtype=bool)
    elif pa.types.is_boolean(kind):
        values, bad = array.cast(pa.int8()).cast(pa.float64()), np.zeros(len(array), dtype=bool)
    else:
        raise DataError(f"column '{column}' holds {kind}, not numbers. Map another column.")
    result = values.to_numpy(zero_copy_only=False).astype(np.float64)
    return result, bad | np.isinf(result)


def flags(array: pa.Array, *, column: str) -> tuple[Float, Mask]:
    """0 or 1 of a column of 0 and 1, or of true and false; NaN where null; and which are neither."""
    if pa.types.is_string(array.type):
        lower = pc.utf8_lower(array)
        array = pc.case_when(
            pc.make_struct(pc.fill_null(pc.equal(lower, "true"), False), pc.fill_null(pc.equal(lower, "false"), False)),
            pa.scalar("1"),
            pa.scalar("0"),
            array,
        )
    value, bad = numbers(array, column=column)
    return value, bad | ~(np.isnan(value) | (value == 0) | (value == 1))


def times(array: pa.Array, config: TimeConfig) -> tuple[Int, Mask, Mask]:
    """Microseconds UTC int64 [n] with 0 where there is none, which are null [n], and which are no times [n].

    Raises:
        DataError: the column's type holds no times, or times without a zone while the mapping names none.
    """
    kind, bad = array.type, np.zeros(len(array), dtype=bool)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        stamps = _zoned(array.cast(pa.timestamp("us", tz=getattr(kind, "tz", None)), safe=False), config)
        missing = array.is_null()
    elif config.unit == "iso":
        if not pa.types.is_string(kind):
            raise DataError(f"column '{config.column}' holds {kind}, not ISO text. Give its unit: s, ms or us.")
        text = trimmed(array)
        stamps, bad = _iso(text, config)
        missing = text.is_null()
    else:
        return _since_1970(array, config)
    value = stamps.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return value, np.asarray(missing, dtype=bool), bad


def _since_1970(array: pa.Array, config: TimeConfig) -> tuple[Int, Mask, Mask]:
    if config.zone is not None:
        raise DataError(
            f"column '{config.column}' holds numbers since 1970-01-01 UTC, which have no zone. Leave out the zone, or "
            "write times as text with unit: iso."
        )
    factor = UNITS[config.unit]
    if pa.types.is_string(array.type):
        with contextlib.suppress(pa.ArrowInvalid):  # numbers with a fraction, or none: as floating-point ones, below
            array = trimmed(array).cast(pa.int64())
    if pa.types.is_integer(array.type) and not pa.types.is_uint64(array.type):
        whole = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        limit = np.iinfo(np.int64).max // factor
        bad = (whole > limit) | (whole < -limit)
        return np.where(bad, 0, whole) * factor, np.asarray(array.is_null(), dtype=bool), bad
    value, bad = numbers(array, column=config.column)
    missing = np.isnan(value) & ~bad
    bad |= np.abs(value) * factor > 2.0**62
    return np.rint(np.where(missing | bad, 0.0, value) * factor).astype(np.int64), missing, bad


def _iso(text: pa.Array, config: TimeConfig) -> tuple[pa.Array, Mask]:
    """Timestamps with null for what is null or no time."""
    try:
        if config.zone is not None:
            return _zoned(text.cast(pa.timestamp("us")), config), np.zeros(len(text), dtype=bool)
        return text.cast(pa.timestamp("us", tz="UTC")), np.zeros(len(text), dtype=bool)
    except pa.ArrowInvalid:  # some are no such text: find out which
        found = [_iso_or_none(value, config) for value in text.to_pylist()]
        array = pa.array(found, pa.timestamp("us", tz="UTC"))
        return array, np.asarray(pc.and_(array.is_null(), text.is_valid()), dtype=bool)


def _iso_or_none(value: str | None, config: TimeConfig) -> datetime | None:
    try:
        time = None if value is None else datetime.fromisoformat(value)
    except (ValueError, OverflowError):
        return None
    if time is None or time.tzinfo is not None:
        return time
    if config.zone is None:
        return None
    try:
        return _zoned(pa.array([time], pa.timestamp("us")), config)[0].as_py()
    except OverflowError:  # in the first or last hours that a date can be in
        return None


def _zoned(stamps: pa.Array, config: TimeConfig) -> pa.Array:
    if stamps.type.tz is None:
        if config.zone is None:
            raise DataError(f"column '{config.column}' has times without a zone. Give its zone, for example UTC.")
        stamps = pc.assume_timezone(stamps, config.zone, ambiguous="earliest", nonexistent="earliest")
    return stamps.cast(pa.timestamp("us", tz="UTC"))


def _parsed(text: pa.Array, kind: pa.DataType, pattern: str) -> tuple[pa.Array, Mask]:
    """Text as ``kind``, null where it does not match ``pattern``, and where that is [n]."""
    try:
        return text.cast(kind), np.zeros(len(text), dtype=bool)
    except pa.ArrowInvalid:
        good = pc.match_substring_regex(text, pattern)
        values = pc.if_else(good, text, pa.scalar(None, pa.string())).cast(kind)
        return values, np.asarray(pc.fill_null(pc.invert(good), False), dtype=bool)
