"""Vectors come back within the bound that each codec states, which is tight, and their bytes never vary."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hypercast.codec import rows
from hypercast.errors import StoreError

TOP = {"int8": 255, "int4": 15}
FLOATS = [name for name in rows.NAMES if name not in TOP]


def vectors(largest: float) -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(st.integers(0, 5), st.integers(1, 9))
    return arrays.arrays(np.float32, shapes, elements=st.floats(-largest, largest, width=32))


def bound(name: str, vector_ND: np.ndarray) -> np.ndarray:
    """What the module's docstring promises of every number, float64 ``[N, D]``."""
    wide_ND = vector_ND.astype(np.float64)
    size_ND = np.abs(wide_ND)
    if name in FLOATS:
        share, floor = {"float32": (0, 0), "float16": (2**-11, 2**-25), "bfloat16": (2**-8, 2**-134)}[name]
        return np.maximum(share * size_ND, floor)
    low_N1, high_N1 = wide_ND.min(axis=1, keepdims=True), wide_ND.max(axis=1, keepdims=True)
    step_N1 = (high_N1 - low_N1) / TOP[name] * (1 + 2**-10) + 2**-10 * np.abs(low_N1) / TOP[name] + 2**-23
    return np.broadcast_to(step_N1 / 2 + 2**-22 * size_ND.max(axis=1, keepdims=True), wide_ND.shape)


def there_and_back(name: str, vector_ND: np.ndarray) -> np.ndarray:
    codec, width = rows.named(name), vector_ND.shape[1]
    payload_NB = codec.encode(vector_ND)
    assert payload_NB.dtype == np.uint8 and payload_NB.shape == (len(vector_ND), codec.row_bytes(width))
    decoded_ND = codec.decode(payload_NB, width)
    assert decoded_ND.dtype == np.float32 and decoded_ND.shape == vector_ND.shape
    return decoded_ND


def error(name: str, vector_ND: np.ndarray) -> np.ndarray:
    return np.abs(there_and_back(name, vector_ND).astype(np.float64) - vector_ND)


@pytest.mark.parametrize("name", rows.NAMES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_error_is_bounded(name: str, data: st.DataObject) -> None:
    scale = data.draw(st.sampled_from([1e-6, 1.0, 60_000.0, 3e38 if name in ("float32", "bfloat16") else 1.0]))
    vector_ND = data.draw(vectors(float(np.float32(scale))))
    assert (error(name, vector_ND) <= bound(name, vector_ND)).all()


@pytest.mark.parametrize(
    ("name", "worst"),
    [
        ("float16", [[1 + 2**-11]]),  # between two numbers: a tie
        ("float16", [[2**-25]]),
        ("bfloat16", [[1 + 2**-8]]),
        ("int8", [[0, 7.5, 255]]),
        ("int8", [[-(2.0**-3), 2.5 * 2.0**-10 - 2.0**-3, 255 * 2.0**-10 - 2.0**-3]]),
        ("int4", [[0, 7.5, 15]]),
    ],
)
def test_the_bound_is_tight(name: str, worst: list[list[float]]) -> None:
    vector_ND = np.array(worst, np.float32)
    assert (error(name, vector_ND) >= 0.99 * bound(name, vector_ND)).any()


@pytest.mark.parametrize("name", rows.NAMES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_writing_what_was_read_loses_nothing_more(name: str, data: st.DataObject) -> None:
    codec, vector_ND = rows.named(name), data.draw(vectors(60_000))
    width = vector_ND.shape[1]
    payload_NB = codec.encode(vector_ND)
    decoded_ND = codec.decode(payload_NB, width)
    if name in FLOATS:
        assert codec.encode(decoded_ND).tobytes() == payload_NB.tobytes()
    assert (error(name, decoded_ND) <= bound(name, decoded_ND)).all()


@pytest.mark.parametrize("name", rows.NAMES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_bytes_depend_on_nothing_but_the_vector(name: str, data: st.DataObject) -> None:
    codec, vector_ND = rows.named(name), data.draw(vectors(60_000))
    payload_NB = codec.encode(vector_ND)
    wide = np.zeros((2 * vector_ND.shape[0], 3 * vector_ND.shape[1]), np.float32)
    wide[::2, ::3] = vector_ND
    for same in (np.asfortranarray(vector_ND), wide[::2, ::3], vector_ND.astype(np.float64)):
        assert codec.encode(same).tobytes() == payload_NB.tobytes()
    alone = [codec.encode(vector_ND[row : row + 1])[0] for row in range(len(vector_ND))]
    assert all(np.array_equal(one, row) for one, row in zip(alone, payload_NB, strict=True))
    padded = np.zeros((len(vector_ND), payload_NB.shape[1] + 3), np.uint8)
    padded[:, 1:-2] = payload_NB
    width = vector_ND.shape[1]
    assert codec.decode(padded[:, 1:-2], width).tobytes() == codec.decode(payload_NB, width).tobytes()


@pytest.mark.parametrize("name", rows.NAMES)
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 60_000.0, -65_504.0, 2.0**-24])
@pytest.mark.parametrize("width", [1, 2, 7])
def test_rows_of_one_number_come_back_exactly(name: str, value: float, width: int) -> None:
    if not (name == "bfloat16" and value in (60_000.0, -65_504.0)):  # more than 8 bits
        assert there_and_back(name, np.full((3, width), value, np.float32)).tolist() == [[value] * width] * 3


def test_a_row_of_one_number_that_float16_lacks_comes_back_by_steps_of_its_own() -> None:
    assert error("int8", np.full((1, 4), 1000.1, np.float32)).max() < 1e-3
    assert error("float16", np.full((1, 4), 1000.1, np.float32)).min() > 1e-2


def test_every_half_precision_number_is_read_as_it_is() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    half = bits.view(np.float16)
    bits = bits[np.isfinite(half)]
    payload_NB = bits.astype("<u2").view(np.uint8).reshape(-1, 2)
    decoded_ND = rows.named("float16").decode(payload_NB, 1)
    np.testing.assert_array_equal(decoded_ND[:, 0].view(np.uint32), half[np.isfinite(half)].astype("f4").view("u4"))
    assert rows.named("float16").encode(decoded_ND).tobytes() == payload_NB.tobytes()


@settings(max_examples=40, deadline=None)
@given(vectors(float(np.float32(3e38))))
def test_brain_floats_are_those_of_torch(vector_ND: np.ndarray) -> None:
    expected = torch.from_numpy(vector_ND).bfloat16().view(torch.int16).numpy()
    assert rows.named("bfloat16").encode(vector_ND).tobytes() == expected.astype("<i2").tobytes()


def test_room_that_rows_take() -> None:
    assert {name: rows.named(name).row_bytes(65) for name in rows.NAMES} == {
        "float32": 260,
        "float16": 130,
        "bfloat16": 130,
        "int8": 69,
        "int4": 37,
    }


def test_single_precision_is_read_without_a_copy() -> None:
    payload_NB = rows.named("float32").encode(np.ones((2, 3), np.float32))
    assert np.shares_memory(rows.named("float32").decode(payload_NB, 3), payload_NB)


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, bad) for name in rows.NAMES for bad in (np.nan, np.inf, -np.inf)]
    + [("float16", 65_520.0), ("int8", -65_520.0), ("int4", 1e30), ("bfloat16", 3.4e38), ("float32", 1e39)],
)
def test_what_cannot_be_held_is_refused_and_the_row_named(name: str, value: float) -> None:
    vector_ND = np.zeros((4, 3))
    vector_ND[2, 1] = value
    with pytest.raises(StoreError, match=rf"row 2 .* not finite in {name}.*normalise"):
        rows.named(name).encode(vector_ND)


def test_what_are_no_vectors_or_no_rows_is_refused() -> None:
    codec = rows.named("int8")
    for bad in (np.zeros(3), np.zeros((3, 0)), np.zeros((3, 2), np.int64)):
        with pytest.raises(StoreError, match=r"floats of shape \[N, D\]"):
            codec.encode(bad)
    for bad in (np.zeros((2, 8), np.uint8), np.zeros(9, np.uint8), np.zeros((2, 9), np.int8)):
        with pytest.raises(StoreError, match=r"rows of int8 with width 5 are uint8 \[N, 9\]"):
            codec.decode(bad, 5)
    for name in ("int7", None, ["int8"]):
        with pytest.raises(StoreError, match="allowed are float32, float16, bfloat16, int8, int4"):
            rows.named(name)  # type: ignore[arg-type]


def test_a_prefix_is_the_first_numbers() -> None:
    vector_ND = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert rows.prefix(vector_ND, 2).tolist() == [[0, 1], [3, 4]]
    assert rows.prefix(vector_ND, 3).tolist() == vector_ND.tolist()
    for width in (0, 4):
        with pytest.raises(StoreError, match=f"prefix of {width} numbers .* vectors of 3"):
            rows.prefix(vector_ND, width)
