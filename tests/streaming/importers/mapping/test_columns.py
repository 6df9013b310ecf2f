"""What values mean: ids, numbers and times of any type, with what means nothing told apart."""

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.errors import DataError
from streaming.importers.mapping.columns import HASHED, flags, ids, numbers, times
from streaming.importers.mapping.roles import TimeConfig

SECOND = 1_000_000


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 10**18 - 1)))
def test_whole_numbers_are_their_own_codes_in_every_type(values: list[int]) -> None:
    as_text = ids(pa.array([f" {value} " for value in values], pa.string()), column="item")
    as_number = ids(pa.array(values, pa.int64()), column="item")
    assert as_text.code.tolist() == as_number.code.tolist() == values
    assert not as_text.missing.any() and not as_number.missing.any()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(min_size=1, max_size=20)))
def test_codes_of_text_depend_on_the_text_alone(values: list[str]) -> None:
    found = ids(pa.array(values, pa.string()), column="user")
    for position, value in enumerate(values):
        alone = ids(pa.array([value]), column="user")
        assert (alone.code[0], alone.check[0]) == (found.code[position], found.check[position])
    kept = {value.strip() for value, missing in zip(values, found.missing, strict=True) if not missing}
    assert len(set(found.code[~found.missing].tolist())) <= len(kept)


def test_ids_that_are_no_canonical_numbers_are_hashed() -> None:
    found = ids(pa.array(["007", "7", "-7", "1e3", "7.0", str(10**18), "ä"]), column="item")
    assert found.code[1] == 7
    assert (np.delete(found.code, 1) >= HASHED).all()
    assert len(set(found.code.tolist())) == 7


def test_floating_point_ids_count_if_they_are_whole() -> None:
    found = ids(pa.array([3.0, None, float("nan"), float("inf"), 0.5, 1e17]), column="item")
    assert found.missing.tolist() == [False, True, True, True, True, True]
    assert found.code[0] == 3


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_an_empty_id_is_missing(empty: str | None) -> None:
    assert ids(pa.array([empty, "x"], pa.string()), column="user").missing.tolist() == [True, False]


def test_an_id_of_a_megabyte_is_too_long() -> None:
    found = ids(pa.array(["x" * (1 << 20), "y"]), column="user")
    assert found.long.tolist() == [True, False]


def test_a_column_of_flags_is_no_column_of_ids() -> None:
    with pytest.raises(DataError, match="column 'user' holds bool"):
        ids(pa.array([True]), column="user")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers(-9, 9))))
def test_numbers_are_read_back_from_their_text(values: list[float | None]) -> None:
    text = pa.array([None if value is None else repr(value) for value in values], pa.string())
    value, bad = numbers(text, column="price")
    assert not bad.any()
    np.testing.assert_array_equal(value, np.array([np.nan if v is None else float(v) for v in values]))


def test_what_is_no_number_is_told_apart_from_nothing() -> None:
    value, bad = numbers(pa.array(["1", "", None, "one", "inf", "1,5", "=1+1", "1e999"]), column="price")
    assert bad.tolist() == [False, False, False, True, True, True, True, True]
    assert value[0] == 1 and np.isnan(value[1:3]).all()


def test_flags_may_be_words() -> None:
    value, bad = flags(pa.array(["1", "0", "True", "false", None, "2", "yes", "1.0"]), column="clicked")
    assert bad.tolist() == [False] * 5 + [True, True, False]
    np.testing.assert_array_equal(value[[0, 1, 2, 3, 4, 7]], [1, 0, 1, 0, np.nan, 1])
    np.testing.assert_array_equal(flags(pa.array([True, False, None]), column="clicked")[0], [1, 0, np.nan])


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1_000), ("us", 1_000_000)])
@pytest.mark.parametrize("kind", [pa.string(), pa.int64(), pa.float64()])
def test_numbers_of_any_unit_and_type_are_the_same_time(unit: str, factor: int, kind: pa.DataType) -> None:
    array = pa.array([1_700_000_000 * factor, None]).cast(kind)
    time, missing, bad = times(array, TimeConfig(column="ts", unit=unit))  # type: ignore[arg-type]
    assert time.tolist() == [1_700_000_000 * SECOND, 0]
    assert missing.tolist() == [False, True] and not bad.any()


@settings(deadline=None, max_examples=50)
@given(st.datetimes(datetime(1990, 1, 1), datetime(2099, 1, 1)), st.integers(-12 * 60, 12 * 60))
def test_iso_text_is_the_moment_that_it_says(moment: datetime, minutes: int) -> None:
    zoned = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    expected = (zoned - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    for array in (pa.array([zoned.isoformat()]), pa.array([zoned.isoformat(), "no time"])):
        time, missing, bad = times(array, TimeConfig(column="ts", unit="iso"))
        assert time[0] == expected
        assert not missing.any() and bad.tolist() == [False, True][: len(array)]


def test_iso_text_without_a_zone_needs_one() -> None:
    text = pa.array(["2024-07-01T12:00:00", "2024-07-01 12:00:00", "2024-07-01T12:00:00+00:00"])
    assert times(text, TimeConfig(column="ts", unit="iso"))[2].tolist() == [True, True, False]
    time, _, bad = times(text, TimeConfig(column="ts", unit="iso", zone="Europe/Berlin"))
    assert not bad.any()
    assert time[2] - time[0] == 2 * 3600 * SECOND and time[0] == time[1]


def test_timestamps_of_parquet_need_no_unit_but_a_zone() -> None:
    moment = datetime(2024, 7, 1, 12, tzinfo=UTC)
    for unit in ("s", "ms", "us", "ns"):
        time, missing, _ = times(pa.array([moment, None], pa.timestamp(unit, tz="UTC")), TimeConfig(column="ts"))
        assert time[0] == 1_719_835_200 * SECOND and missing.tolist() == [False, True]
    naive = pa.array([moment.replace(tzinfo=None)], pa.timestamp("us"))
    with pytest.raises(DataError, match="without a zone"):
        times(naive, TimeConfig(column="ts"))
    assert times(naive, TimeConfig(column="ts", zone="UTC"))[0][0] == 1_719_835_200 * SECOND


def test_absurd_times_are_no_times_and_do_not_overflow() -> None:
    text = pa.array(["9" * 18, "-" + "9" * 18, "9" * 400, "nan", "12:00", "1e300"])
    assert times(text, TimeConfig(column="ts"))[2].all()
    whole = pa.array([np.iinfo(np.int64).max, np.iinfo(np.int64).min])
    assert times(whole, TimeConfig(column="ts"))[2].all()


def test_numbers_have_no_zone() -> None:
    with pytest.raises(DataError, match="column 'ts' holds numbers since 1970-01-01 UTC, which have no zone"):
        times(pa.array([1_719_835_200]), TimeConfig(column="ts", unit="s", zone="Europe/Berlin"))


def test_a_time_at_the_first_hour_of_dates_is_none() -> None:
    text = pa.array(["2024-05-01T00:00:00", "0001-01-01T00:00:00", "no time"])
    _, _, bad = times(text, TimeConfig(column="ts", unit="iso", zone="Europe/Berlin"))
    assert bad.tolist()[2] and not bad[0]
