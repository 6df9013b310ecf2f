"""From codes to rows: every feature in rows of its own, admission in training only, all kinds in one table."""

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from foundation.hstu.eviction import DAY
from foundation.hstu.vocabulary import BatchVocabulary, Slots, Vocabulary
from streaming.batch import keyed
from streaming.errors import ConfigError
from streaming.workspace import Workspace


def codes(*rows: tuple[int, ...], features: tuple[str, ...] = ("item", "brand")) -> KeyedJaggedTensor:
    return keyed(list(features), np.array(rows, dtype=np.int64).reshape(-1, len(features)))


def rows(slots: Slots) -> list[list[int]]:
    """The row of every thing and feature."""
    return [bag.tolist() for bag in slots.row_I.split(slots.offsets.diff().tolist())]


BATCHES = st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=6), min_size=1, max_size=5)


@settings(deadline=None)
@given(BATCHES)
def test_rows_follow_from_the_admission_tables(batches: list[list[tuple[int, int]]]) -> None:
    vocabulary = Vocabulary({"item": 6, "brand": 4}).train()
    owner: dict[int, tuple[int, int]] = {}  # row -> (feature, code)
    for batch in batches:
        slots = vocabulary(codes(*batch), time=0)
        assert slots.offsets.tolist() == list(range(0, 2 * len(batch) + 1, 2))
        assert slots.row_I.dtype == slots.offsets.dtype == slots.evicted.dtype == torch.int64
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
    slots = vocabulary(codes((0, 0), (5, 7), (0, 8)), time=0)
    assert rows(slots) == [[0, 4]] * 3
    assert len(slots.evicted) == 0


def test_evaluation_admits_nothing() -> None:
    vocabulary = Vocabulary({"item": 4, "brand": 3}).train()
    vocabulary(codes((5, 7)), time=0)
    before = {name: tensor.clone() for name, tensor in vocabulary.state_dict().items()}
    assert rows(vocabulary.eval()(codes((5, 7), (6, 8)), time=0)) == [[1, 5], [0, 4]]
    assert all(tensor.equal(before[name]) for name, tensor in vocabulary.state_dict().items())


def test_evicted_rows_are_told() -> None:
    vocabulary = Vocabulary({"item": 4, "brand": 2}).train()
    assert len(vocabulary(codes((5, 7)), time=0).evicted) == 0
    slots = vocabulary(codes((6, 8)), time=0)
    assert slots.evicted.tolist() == [5]  # the only row of a brand
    assert rows(slots) == [[2, 5]]
    assert vocabulary.statistics() == {
        "item/occupancy": pytest.approx(2 / 3),
        "item/evicted": 0,
        "item/refused": 0,
        "item/collisions": 0,
        "brand/occupancy": 1.0,
        "brand/evicted": 1,
        "brand/refused": 0,
        "brand/collisions": 0,
    }


def test_the_state_of_a_snapshot_gives_the_same_rows() -> None:
    vocabulary, twin = (Vocabulary({"item": 4, "brand": 3}).train() for _ in range(2))
    for batch in ([(5, 7), (6, 8)], [(9, 7)], [(4, 6)]):
        vocabulary(codes(*batch), time=0)
    twin.load_state_dict(vocabulary.state_dict())
    everything = codes(*((item, item) for item in range(12)))
    assert rows(twin.eval()(everything, time=0)) == rows(vocabulary.eval()(everything, time=0))


def test_no_features() -> None:
    slots = Vocabulary({})(keyed([], np.zeros((4, 0), dtype=np.int64)), time=0)
    assert rows(slots) == [[], [], [], []]
    assert len(slots.evicted) == 0


@pytest.mark.parametrize("name", ["type", "forward", "a.b"])
def test_a_feature_may_have_any_name(name: str) -> None:
    assert rows(Vocabulary({name: 3}).train()(codes((7,), features=(name,)), time=0)) == [[1]]


def test_sizes(workspace: Workspace) -> None:
    inputs = workspace.inputs
    config = BatchVocabulary.Config(default=16, rows={"brand": 4})
    vocabulary = config.build(inputs)
    assert vocabulary.items.rows == 16 * 4 + 4  # id, category, department, type; brand
    assert vocabulary.users.rows == 16 * len(inputs.user_features)
    assert vocabulary.context.rows == 16 * len(inputs.context)
    assert vocabulary.rows == vocabulary.items.rows + vocabulary.users.rows + vocabulary.context.rows
    for wrong in ({"default": 1}, {"rows": {"brand": 1}}):
        with pytest.raises(pydantic.ValidationError):
            BatchVocabulary.Config.model_validate(wrong)


def test_of_a_batch(workspace: Workspace) -> None:
    """All kinds in one table: items' bags first, then users', then contexts', each in rows of their own."""
    batch = workspace.reader({"all": (workspace.engagements, 5)}).batch(workspace.requests(2).slice(0, 6))
    vocabulary = BatchVocabulary.Config(default=128).build(workspace.inputs).train()
    slots = vocabulary(batch)
    assert slots.counts == (batch.items.stride(), 6, 6)
    one_by_one, first_row = [], 0
    for kind in ("items", "users", "context"):
        each, asked = getattr(vocabulary, kind), getattr(batch, kind)
        one_by_one += [[row + first_row for row in bag] for bag in rows(each.eval()(asked, time=0))]
        first_row += each.rows
    assert rows(slots) == one_by_one
    assert first_row == vocabulary.rows
    assert rows(vocabulary.eval()(batch)) == one_by_one


def test_evicted_rows_are_those_of_the_one_table(workspace: Workspace) -> None:
    reader = workspace.reader({"all": (workspace.engagements, 5)})
    config = BatchVocabulary.Config(default=16, rows={"item_id": 6, "user_id": 3, "hour": 2})
    vocabulary = config.build(workspace.inputs)
    for window in (1, 2, 3):
        for batch in reader.batches(workspace.requests(window), size=2):
            before = {name: tensor.clone() for name, tensor in vocabulary.state_dict().items() if name.endswith("code")}
            evicted = vocabulary.train()(batch).evicted.tolist()
            after, first_row, changed = vocabulary.state_dict(), 0, []
            for name, code in before.items():
                gone = (code != 0) & (code != after[name])
                changed += [row + first_row for row in gone.nonzero()[:, 0].tolist()]
                first_row += len(code)
            assert sorted(evicted) == changed
    told = vocabulary.statistics()
    for name in ("items/item_id", "users/user_id", "context/hour"):
        assert told[f"tables/{name}/evicted"] > 0 and told[f"tables/{name}/occupancy"] == 1.0
    assert told["tables/items/item_id/refused"] > 0  # more items in a batch than rows


def test_ids_give_way_as_configured_by_the_latest_time_of_the_batch(workspace: Workspace) -> None:
    reader = workspace.reader({"all": (workspace.engagements, 5)})
    early, batch = (reader.batch(workspace.requests(window).slice(0, 9)) for window in (1, 2))
    span = int(batch.time_B.max() - early.time_B.max()) / DAY
    for days, expired in ((0.99 * span, True), (1.01 * span, False)):
        config = BatchVocabulary.Config.model_validate({"eviction": {"policy": "ttl", "days": days}})
        vocabulary = config.build(workspace.inputs).train()
        vocabulary(early)
        assert (len(vocabulary(batch).evicted) > 0) == expired
    clocks = {name: tensor for name, tensor in vocabulary.state_dict().items() if name.endswith("clock")}
    assert len(clocks) > 3
    assert all(clock.tolist() == [2, int(batch.time_B.max())] for clock in clocks.values())


def test_collisions_of_what_is_asked_for(workspace: Workspace) -> None:
    """Every candidate's item counts, histories do not; ids seen in training have a row while there is room."""
    requests = workspace.requests(2)
    reader = workspace.reader({"all": (workspace.engagements, 5)})
    vocabulary = BatchVocabulary.Config(default=128).build(workspace.inputs).train()
    untrained = vocabulary.collision_rates(reader, requests)
    assert set(untrained.values()) == {1.0}
    assert {"tables/items/item_id/collision_rate", "tables/context/hour/collision_rate"} <= set(untrained)
    half = requests.slice(0, len(requests) // 2)
    vocabulary(reader.batch(half))
    assert set(vocabulary.collision_rates(reader, half).values()) == {0.0}
    seen, users = set(half.user.tolist()), requests.user.tolist()
    strangers = sum(user not in seen for user in users)
    assert 0 < strangers < len(users)
    rates = vocabulary.collision_rates(reader, requests)
    assert rates["tables/users/user_id/collision_rate"] == pytest.approx(strangers / len(users))
    assert set(vocabulary.collision_rates(reader, requests.slice(0, 0)).values()) == {0.0}


def test_statistics_are_named_for_the_monitor(workspace: Workspace) -> None:
    told = BatchVocabulary.Config().build(workspace.inputs).statistics()
    features = [f"items/{name}" for name in workspace.inputs.item_features]
    features += [f"users/{name}" for name in workspace.inputs.user_features]
    features += [f"context/{name}" for name in workspace.inputs.context]
    counters = ("occupancy", "evicted", "refused", "collisions")
    assert set(told) == {f"tables/{feature}/{counter}" for feature in features for counter in counters}


def test_slots_of_some_items_are_their_bags_and_all_others(workspace: Workspace) -> None:
    vocabulary = BatchVocabulary.Config(default=16).build(workspace.inputs).train()
    reader = workspace.reader({"all": (workspace.engagements, 8)})
    slots = vocabulary(reader.batch(workspace.requests(workspace.dataset.windows[0].index)))
    bags, items = rows(slots), slots.counts[0]
    for kept in ([], [0], [items - 1, 1], list(range(items))):
        some = slots.of_items(torch.tensor(kept, dtype=torch.int64))
        assert some.counts == (len(kept), *slots.counts[1:])
        assert rows(some) == [bags[item] for item in kept] + bags[items:]
        assert some.evicted.equal(slots.evicted)


def test_rows_of_a_feature_that_is_not_there(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"vocabulary\.rows: there is no feature sku; allowed are item_id, "):
        BatchVocabulary.Config(rows={"sku": 64}).build(workspace.inputs)
