import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.sequential.sequences import ItemSequences


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    length=st.integers(1, 6),
    held_out=st.integers(0, 2),
    data=st.data(),
)
def test_batch_is_each_sequence_shifted_by_one_and_cut_to_the_latest(lengths, length, held_out, data):
    items = np.arange(sum(lengths), dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    sequences = ItemSequences(item_E=items, time_E=items * 7, offsets=offsets, items=len(items))
    rows = np.array(data.draw(st.permutations(range(len(lengths)))))
    batch = sequences.batch(rows, length=length, held_out=held_out)
    for place, row in enumerate(rows):
        kept = items[offsets[row] : offsets[row + 1]][: max(lengths[row] - held_out, 0)]
        own = slice(int(batch.offsets[place]), int(batch.offsets[place + 1]))
        expected = kept[:-1][-length:]
        assert batch.item_T[own].tolist() == expected.tolist()
        assert batch.time_T[own].tolist() == (expected * 7).tolist()
        assert batch.target_T[own].tolist() == (expected + 1).tolist()
        assert batch.position_T[own].tolist() == list(range(len(expected)))
    assert int(batch.offsets[-1]) == len(batch.item_T)


@pytest.mark.parametrize("first", [0, 5, 12])
def test_split_keeps_every_sequence_once_and_whole(sequences, first):
    parts = sequences.split(first)
    assert [len(part) for part in parts] == [first, 12 - first]
    assert np.concatenate([part.item_E for part in parts]).tolist() == sequences.item_E.tolist()
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    assert lengths.tolist() == np.diff(sequences.offsets).tolist()
