"""From codes to rows: each distinct row once, every feature in rows of its own, admission in training only."""

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from foundation.hstu.vocabulary import BatchVocabulary, Slots, Vocabulary
from streaming.batch import keyed
from streaming.dataset import Dataset
from streaming.workspace import Workspace


def codes(*rows: tuple[int, ...], features: tuple[str, ...] = ("item", "brand")) -> KeyedJaggedTensor:
    return keyed(list(features), np.array(rows, dtype=np.int64).reshape(-1, len(features)))


def rows(slots: Slots) -> list[list[int]]:
    """The row of every thing and feature."""
    return slots.row_M[slots.place_NF].tolist()


BATCHES = st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=6), min_size=1, max_size=5)


@settings(deadline=None)
@given(BATCHES)
def test_rows_follow_from_the_admission_tables(batches: list[list[tuple[int, int]]]) -> None:
    vocabulary = Vocabulary({"item": 6, "brand": 4}).train()
    owner: dict[int, tuple[int, int]] = {}  # row -> (feature, code)
    for batch in batches:
        slots = vocabulary(codes(*batch))
        assert slots.row_M.tolist() == sorted(set(slots.row_M.tolist()))  # each distinct row once
        assert slots.place_NF.shape == (len(batch), 2)
        assert sorted(set(slots.place_NF.flatten().tolist())) == list(range(len(slots.row_M)))
        for freed in slots.evicted.tolist():
            del owner[freed]
        for thing, places in zip(batch, rows(slots), strict=True):
            for feature, (code, row) in enumerate(zip(thing, places, strict=True)):
                first, last = ((0, 6), (6, 10))[feature]
                assert first <= row < last
                if row == first:
                    continue  # unknown, or refused: shared
                assert code != 0
                assert owner.setdefault(row, (feature, code)) == (feature, code)  # only eviction gives a row away


def test_unknown_codes_share_the_first_row_of_their_feature() -> None:
    vocabulary = Vocabulary({"item": 4, "brand": 3}).eval()
    slots = vocabulary(codes((0, 0), (5, 7), (0, 8)))
    assert rows(slots) == [[0, 4]] * 3
    assert slots.row_M.tolist() == [0, 4] and len(slots.evicted) == 0


def test_evaluation_admits_nothing() -> None:
    vocabulary = Vocabulary({"item": 4, "brand": 3}).train()
    vocabulary(codes((5, 7)))
    before = {name: tensor.clone() for name, tensor in vocabulary.state_dict().items()}
    assert rows(vocabulary.eval()(codes((5, 7), (6, 8)))) == [[1, 5], [0, 4]]
    assert all(tensor.equal(before[name]) for name, tensor in vocabulary.state_dict().items())


def test_evicted_rows_are_told() -> None:
    vocabulary = Vocabulary({"item": 4, "brand": 2}).train()
    assert len(vocabulary(codes((5, 7))).evicted) == 0
    slots = vocabulary(codes((6, 8)))
    assert slots.evicted.tolist() == [5]  # the only row of a brand
    assert rows(slots) == [[2, 5]]
    assert vocabulary.statistics() == {
        "item/occupancy": pytest.approx(2 / 3),
        "item/evicted": 0,
        "item/refused": 0,
        "brand/occupancy": 1.0,
        "brand/evicted": 1,
        "brand/refused": 0,
    }


def test_the_state_of_a_snapshot_gives_the_same_rows() -> None:
    vocabulary, twin = (Vocabulary({"item": 4, "brand": 3}).train() for _ in range(2))
    for batch in ([(5, 7), (6, 8)], [(9, 7)], [(4, 6)]):
        vocabulary(codes(*batch))
    twin.load_state_dict(vocabulary.state_dict())
    everything = codes(*((item, item) for item in range(12)))
    assert rows(twin.eval()(everything)) == rows(vocabulary.eval()(everything))


def test_no_features() -> None:
    slots = Vocabulary({})(keyed([], np.zeros((4, 0), dtype=np.int64)))
    assert slots.place_NF.shape == (4, 0)
    assert len(slots.row_M) == len(slots.evicted) == 0


@pytest.mark.parametrize("name", ["type", "forward", "a.b"])
def test_a_feature_may_have_any_name(name: str) -> None:
    assert rows(Vocabulary({name: 3}).train()(codes((7,), features=(name,)))) == [[1]]


def test_sizes(tiny_dataset: Dataset) -> None:
    inputs = Workspace(tiny_dataset).inputs
    config = BatchVocabulary.Config(default=16, rows={"brand": 4})
    vocabulary = config.build(inputs)
    assert vocabulary.items.rows == 16 * 4 + 4  # id, category, department, type; brand
    assert vocabulary.users.rows == 16 * len(inputs.user_features)
    assert vocabulary.context.rows == 16 * len(inputs.context)
    with pytest.raises(pydantic.ValidationError):
        BatchVocabulary.Config(default=1)


def test_of_a_batch(tiny_dataset: Dataset) -> None:
    workspace = Workspace(tiny_dataset)
    batch = workspace.reader({"all": (workspace.engagements, 5)}).batch(workspace.requests(2).slice(0, 6))
    vocabulary = BatchVocabulary.Config(default=128).build(workspace.inputs).train()
    slots = vocabulary(batch)
    assert len(slots.items.place_NF) == batch.items.stride()
    assert len(slots.users.place_NF) == len(slots.context.place_NF) == len(batch)
    assert set(vocabulary.statistics()) >= {"items/item_id/occupancy", "users/age/evicted", "context/hour/refused"}
    assert torch.equal(vocabulary.eval()(batch).items.place_NF, slots.items.place_NF)
