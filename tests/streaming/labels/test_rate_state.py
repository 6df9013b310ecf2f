"""The state of label rates is all there is to them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streaming.labels.rates import LabelRates

WINDOW = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.booleans()), max_size=12)
ASKED_CK = np.stack([np.arange(-4, 5), np.arange(4, -5, -1)], axis=1)


def _learn(rates: LabelRates, rows: list[tuple[int, int, bool]]) -> None:
    read = np.array(rows, dtype=np.int64).reshape(-1, 3)
    rates.learn(read[:, :2], read[:, 2])


@given(before=st.lists(WINDOW, max_size=4), after=WINDOW)
def test_from_their_state_rates_go_on_to_the_bit(
    before: list[list[tuple[int, int, bool]]], after: list[tuple[int, int, bool]]
) -> None:
    rates, again = (LabelRates(keys=2, decay=0.7, strength=3.0) for _ in range(2))
    for rows in before:
        _learn(rates, rows)
    again.load_state_dict({name: value.copy() for name, value in rates.state_dict().items()})
    for _ in range(2):
        for left, right in zip(rates.at(ASKED_CK), again.at(ASKED_CK), strict=True):
            assert left.tobytes() == right.tobytes()
        _learn(rates, after)
        _learn(again, after)
