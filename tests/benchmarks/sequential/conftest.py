"""Small sequences for the offline benchmarks."""

import numpy as np
import pytest

from benchmarks.sequential.sequences import ItemSequences


@pytest.fixture
def sequences() -> ItemSequences:
    """12 sequences of 3 to 14 different items of 30, without times."""
    random = np.random.default_rng(0)
    lengths = np.concatenate([[3, 14], random.integers(3, 15, size=10)])
    return ItemSequences(
        item_E=np.concatenate([random.permutation(30)[:length] for length in lengths]).astype(np.int64),
        time_E=None,
        offsets=np.concatenate([[0], lengths.cumsum()]).astype(np.int64),
        items=30,
    )
