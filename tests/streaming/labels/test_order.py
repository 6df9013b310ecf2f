"""Batches of several windows, mixed evenly."""

from hypothesis import given
from hypothesis import strategies as st

from streaming.labels.order import interleaved


@given(st.lists(st.integers(0, 12), max_size=5))
def test_every_batch_once_each_part_in_order_and_evenly_spread(sizes: list[int]) -> None:
    parts = [(size, iter([(number, place) for place in range(size)])) for number, size in enumerate(sizes)]
    found = list(interleaved(parts))
    total = sum(sizes)
    assert len(found) == total
    for number, size in enumerate(sizes):
        assert [place for part, place in found if part == number] == list(range(size))
        for at in range(1, total + 1):
            # Never more than a batch of its own, and one of each other part, from where it should be.
            seen = sum(part == number for part, _ in found[:at])
            assert abs(seen - at * size / total) <= 1 + len(sizes) * size / total


def test_one_part_is_read_as_it_comes() -> None:
    taken = []

    def source() -> object:
        for value in (3, 1, 2):
            taken.append(value)
            yield value

    batches = interleaved([(3, source())])  # type: ignore[list-item]
    assert next(batches) == 3
    assert taken == [3]
