import math

import numpy as np
import pytest

from transfer.metric.calibration import Calibration, calibration


def test_ratio_of_sums() -> None:
    assert calibration([0.5, 0.4, 0.9], [1, 0, np.nan]) == pytest.approx(0.9)
    assert calibration([0.5, 0.4], [1, 0], [2, 1]) == pytest.approx(0.7)


def test_streaming_equals_whole() -> None:
    random = np.random.default_rng(0)
    p, y = random.random(100), random.integers(0, 2, 100)
    streamed = Calibration().update(p[:30], y[:30]).merge(Calibration().update(p[30:], y[30:]))
    assert streamed.value() == pytest.approx(calibration(p, y))


def test_nan_without_a_positive() -> None:
    assert math.isnan(calibration([0.5], [0]))
