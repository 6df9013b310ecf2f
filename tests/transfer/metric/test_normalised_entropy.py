import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from transfer.metric.normalised_entropy import CLIP, NormalisedEntropy, log_loss, normalised_entropy


def test_base_rate_scores_one() -> None:
    label = np.array([1, 0, 0, 0, 1])
    assert normalised_entropy(np.full(5, 0.4), label) == pytest.approx(1.0)


def test_against_the_definition() -> None:
    p, y, w = np.array([0.9, 0.2, 0.6]), np.array([1.0, 0.0, 0.0]), np.array([1.0, 2.0, 3.0])
    loss = -(math.log(0.9) + 2 * math.log(0.8) + 3 * math.log(0.4)) / 6
    entropy = -(1 / 6 * math.log(1 / 6) + 5 / 6 * math.log(5 / 6))
    assert normalised_entropy(p, y, w) == pytest.approx(loss / entropy)


def test_weight_counts_as_repetition() -> None:
    p, y, w = np.array([0.3, 0.7, 0.1]), np.array([0, 1, 0]), np.array([2, 1, 3])
    assert normalised_entropy(p, y, w) == pytest.approx(normalised_entropy(np.repeat(p, w), np.repeat(y, w)))


def test_certain_mistakes_are_clipped() -> None:
    assert log_loss([0.0, 1.0], [1, 0]) == pytest.approx(-math.log(CLIP))
    assert log_loss([1.0, 0.0], [1, 0]) == pytest.approx(0.0, abs=1e-6)


def test_unknown_labels_are_skipped() -> None:
    assert normalised_entropy([0.5, 0.9, 0.2], [1, np.nan, 0]) == normalised_entropy([0.5, 0.2], [1, 0])


@pytest.mark.parametrize("label", [[], [1, 1], [0, 0], [np.nan]])
def test_not_defined(label: list[float]) -> None:
    assert math.isnan(normalised_entropy(np.full(len(label), 0.5), label))


@given(data=st.data(), rows=st.integers(2, 60))
def test_any_split_of_the_stream_gives_the_same(data: st.DataObject, rows: int) -> None:
    p = data.draw(hnp.arrays(np.float32, rows, elements=st.floats(0, 1, width=32)))
    y = data.draw(hnp.arrays(np.float32, rows, elements=st.sampled_from([0.0, 1.0, np.nan])))
    cut = data.draw(st.integers(0, rows))
    whole = normalised_entropy(p, y)
    streamed = NormalisedEntropy().update(p[:cut], y[:cut]).merge(NormalisedEntropy().update(p[cut:], y[cut:]))
    assert streamed.value() == pytest.approx(whole, nan_ok=True)
