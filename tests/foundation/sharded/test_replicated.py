"""Data-parallel tables: row-wise Adagrad, and the bits of every other kind."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from foundation.sharded.config import Sharding
from foundation.sharded.group import Group
from foundation.sharded.replicated import ReplicatedTables
from foundation.sharded.tables import ShardedTables
from streaming.errors import ConfigError

TABLES = {"items/id": 40, "users/id": 6, "context/hour": 3}
WIDTH = 8
RATE = 0.1
KINDS = [
    {"kinds": ["data_parallel"]},
    {"kinds": ["row_wise"], "kinds_of": {"users/id": ["data_parallel"]}},
    {"kinds": ["data_parallel"], "kinds_of": {"items/id": ["table_wise"]}},
]


def ids_of(stream: np.random.Generator, shards: int) -> KeyedJaggedTensor:
    """Some rows of every table for every shard, each once in a shard."""
    rows = [stream.choice(count, size=stream.integers(1, count + 1), replace=False) for count in TABLES.values()]
    rows = [each for part in rows for each in (part, *([part[:1]] * (shards - 1)))]
    return KeyedJaggedTensor(
        keys=list(TABLES),
        values=torch.from_numpy(np.concatenate(rows)),
        lengths=torch.tensor([len(each) for each in rows], dtype=torch.int32),
        stride=shards,
    )


def learned(group: Group, sharding: dict[str, object]) -> tuple[list[Tensor], ShardedTables]:
    """What four steps look up, with an eviction, and the tables after them."""
    tables = ShardedTables(
        TABLES,
        width=WIDTH,
        learning_rate=RATE,
        sharding=Sharding(workers=1, shards=2, **sharding),  # type: ignore[arg-type]
        group=group,
        batch_size=8,
    )
    stream = np.random.default_rng(0)
    draws = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(4):
        ids = ids_of(stream, 2)
        tables.evict({name: stream.choice(rows, size=1) for name, rows in TABLES.items()})
        sent = tables.send(ids)
        found_MD = tables.look_up(sent)
        seen.append(found_MD.detach().clone())
        tables.learn(sent, found_MD, torch.randn(found_MD.shape, generator=draws))
    return seen, tables


@pytest.mark.parametrize("sharding", KINDS)
def test_the_bits_do_not_depend_on_the_kind(alone: Group, sharding: dict[str, object]) -> None:
    expected, reference = learned(alone, {"kinds": ["table_wise"]})
    found, tables = learned(alone, sharding)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True)) and found[-1].any()
    for whole in (ShardedTables.whole, ShardedTables.whole_squares):
        ours, theirs = whole(tables), whole(reference)
        assert all(torch.equal(ours[name], theirs[name]) and ours[name].any() for name in TABLES)


def test_a_batch_without_rows_changes_nothing(alone: Group) -> None:
    sharding = Sharding(workers=1)
    tables = ReplicatedTables(TABLES, width=WIDTH, learning_rate=RATE, sharding=sharding, group=alone)
    none = KeyedJaggedTensor(
        keys=list(TABLES),
        values=torch.zeros(0, dtype=torch.int64),
        lengths=torch.zeros(len(TABLES), dtype=torch.int32),
        stride=1,
    )
    sent = tables.send(none)
    assert [each.shape for each in tables.look_up(sent).values()] == [(0, WIDTH)] * len(TABLES)
    tables.learn(sent)
    assert not any(tensor.any() for pair in tables.memory().values() for tensor in pair)


@pytest.mark.parametrize("vectors", ["float32", "float16"])
def test_updates_are_row_wise_adagrad(alone: Group, vectors: str) -> None:
    sharding = Sharding(workers=1, vectors=vectors)  # type: ignore[arg-type]
    tables = ReplicatedTables(TABLES, width=WIDTH, learning_rate=RATE, sharding=sharding, group=alone)
    ids = ids_of(np.random.default_rng(1), 2)
    sent = tables.send(ids)
    found = torch.cat([*tables.look_up(sent).values()])
    gradient_MD = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    found.backward(gradient_MD)
    tables.learn(sent)
    parts = dict(zip(TABLES, gradient_MD.split([len(ids[name].values()) for name in TABLES]), strict=True))
    for name, (weight_RD, square_R) in tables.memory().items():
        sum_RD = torch.zeros_like(weight_RD).index_add(0, ids[name].values(), parts[name])
        expected_R = sum_RD.square().mean(1)
        tolerance = {"rtol": 1e-5 if vectors == "float32" else 3e-3, "atol": 1e-6 if vectors == "float32" else 1e-3}
        torch.testing.assert_close(square_R, expected_R, **tolerance)
        expected_RD = -RATE * sum_RD / (expected_R.sqrt().unsqueeze(1) + 1e-8)
        torch.testing.assert_close(weight_RD, expected_RD, **tolerance)


def test_a_table_that_there_is_not_is_refused(alone: Group) -> None:
    with pytest.raises(ConfigError, match=r"sharding\.kinds_of: there is no table 'users/age'\. Allowed are items/id"):
        learned(alone, {"kinds_of": {"users/age": ["data_parallel"]}})
