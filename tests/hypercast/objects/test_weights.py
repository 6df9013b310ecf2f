"""Whatever changes from publish to publish, what is read back is what was published, bit by bit, at a bounded cost."""

import os
from collections import Counter
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies
from torch import Tensor

from hypercast import tensors
from hypercast.errors import RegistryError
from hypercast.objects import weights
from hypercast.objects.contents import Contents
from hypercast.objects.weights import NOTHING, Weights
from hypercast.tensors import row_bytes

LARGE = 1024


@pytest.fixture(autouse=True)
def _small_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LARGE", LARGE)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # what a power cut leaves is not the question here


@pytest.fixture
def contents(tmp_path: Path) -> Contents:
    return Contents(tmp_path / "objects")


def write(contents: Contents, state: dict[str, Tensor], parent: Weights = NOTHING) -> Weights:
    return weights.write(contents, state, digests=tensors.digests(state), parent=parent)


def read(contents: Contents, written: Weights) -> dict[str, Tensor]:
    # Through JSON, as in a manifest.
    return weights.read(contents, Weights.from_json(written.to_json()).components)


def same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return list(mine) == list(theirs) and tensors.digests(mine) == tensors.digests(theirs)


def state(rows: int = 100) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "table": torch.randn(rows, 16, generator=generator),
        "dense": torch.randn(32, 32, generator=generator),
        "bias": torch.randn(8, generator=generator),
        "norm": torch.randn(8, generator=generator),
    }


def test_only_what_changed_is_written(contents: Contents) -> None:
    first_state = state()
    first = write(contents, first_state)
    assert first.bytes_beyond(None) == sum(tensor.nbytes for tensor in first_state.values())
    second_state = {name: tensor.clone() for name, tensor in first_state.items()}
    second_state["table"][[3, 70]] += 1.0
    second_state["bias"] += 1.0
    second = write(contents, second_state, first)
    assert second.bytes_beyond(first) == 2 * (16 * 4 + 8) + 8 * 4
    assert second.components["dense"] == first.components["dense"]
    assert second.components["norm"] == first.components["norm"]
    assert second.components["table"].base == first.components["table"].base
    assert same(read(contents, second), second_state)
    assert same(read(contents, first), first_state)


def test_nothing_changed_writes_nothing(contents: Contents) -> None:
    first = write(contents, state())
    before = list(contents.digests())
    assert write(contents, state(), first) == first
    assert list(contents.digests()) == before


def test_small_tensors_share_an_object(contents: Contents) -> None:
    many = {f"bias{index}": torch.full((4,), float(index)) for index in range(50)}
    assert len(write(contents, many).objects) == 1


def test_an_object_mostly_idle_is_referred_to_no_more(contents: Contents) -> None:
    before = {f"bias{index}": torch.full((4,), float(index)) for index in range(10)}
    first = write(contents, before)
    after = before | {f"bias{index}": torch.zeros(4) - 1 for index in range(6)}
    second = write(contents, after, first)
    assert len(second.objects) == 1
    assert not second.objects.keys() & first.objects.keys()
    assert same(read(contents, second), after)


def test_chains_are_bounded(contents: Contents) -> None:
    now, parent = state(rows=1000), NOTHING
    lengths = []
    for step in range(2 * weights.CHAIN + 4):
        now = now | {"table": now["table"].clone()}
        now["table"][step] += 1.0
        parent = write(contents, now, parent)
        lengths.append(len(parent.components["table"].rows))
        assert same(read(contents, parent), now)
    assert lengths == [*range(weights.CHAIN + 1), *range(weights.CHAIN + 1), 0, 1][: len(lengths)]


def test_rows_that_add_up_to_half_of_the_table_are_written_with_it(contents: Contents) -> None:
    now, parent = {"table": torch.zeros(100, 16)}, NOTHING
    lengths = []
    for step in range(5):  # a fifth of the rows each time
        now = {"table": now["table"].clone()}
        now["table"][20 * step : 20 * step + 20] = step + 1.0
        parent = write(contents, now, parent)
        lengths.append(len(parent.components["table"].rows))
        assert same(read(contents, parent), now)
    assert lengths == [0, 1, 2, 0, 1]


def test_bits_count_not_values(contents: Contents) -> None:
    before = {"table": torch.zeros(64, 8)}
    before["table"][5] = float("nan")
    first = write(contents, before)
    after = {"table": before["table"].clone()}
    after["table"][9, 3] = -0.0
    second = write(contents, after, first)
    assert second.bytes_beyond(first) == 8 * 4 + 8
    assert torch.signbit(read(contents, second)["table"][9, 3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.complex64, torch.int16])
def test_rows_of_any_dtype(contents: Contents, dtype: torch.dtype) -> None:
    before = torch.zeros(600, 3, 5).to(dtype)
    after = before.clone()
    row_bytes(after)[[1, 599], 4] = 1
    first = write(contents, {"table": before})
    second = write(contents, {"table": after}, first)
    assert len(second.components["table"].rows) == 1
    assert same(read(contents, second), {"table": after})


def test_another_shape_or_dtype_is_written_in_full(contents: Contents) -> None:
    first = write(contents, {"table": torch.zeros(100, 16)})
    for table in (torch.zeros(101, 16), torch.zeros(100, 16, dtype=torch.float64), torch.zeros(100, 4, 4)):
        second = write(contents, {"table": table}, first)
        assert second.bytes_beyond(first) == table.nbytes
        assert same(read(contents, second), {"table": table})


def test_equal_tensors_come_back_apart(contents: Contents) -> None:
    table = torch.arange(400.0).reshape(100, 4)
    first = write(contents, {"one": table, "two": table.clone(), "three": table})
    assert first.bytes_beyond(None) == table.nbytes
    changed = table.clone()
    changed[7] = 0.0
    after = {"one": table, "two": changed, "three": table}
    loaded = read(contents, write(contents, after, first))
    assert same(loaded, after)
    loaded["one"] += 1.0
    assert torch.equal(loaded["three"], table)


def test_a_lost_object_is_written_again(contents: Contents) -> None:
    first = write(contents, state())
    for digest in first.objects:
        contents.path(digest).unlink()
    second = write(contents, state(), first)
    assert same(read(contents, second), state())


def test_a_damaged_table_is_not_built_upon(contents: Contents, caplog: pytest.LogCaptureFixture) -> None:
    first = write(contents, state())
    path = contents.path(first.components["table"].base)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    after = state()
    after["table"][0] += 1.0
    second = write(contents, after, first)
    assert second.components["table"].rows == []
    assert "table is written in full" in caplog.text and str(path) in caplog.text
    assert same(read(contents, second), after)
    with pytest.raises(RegistryError, match=str(path)):
        read(contents, first)


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@hypothesis.settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(data=strategies.data())
def test_any_history_is_read_back(tmp_path_factory: pytest.TempPathFactory, data: strategies.DataObject) -> None:
    contents = Contents(tmp_path_factory.mktemp("any") / "objects")
    chance = np.random.default_rng(data.draw(strategies.integers(0, 2**32 - 1)))

    def fresh() -> Tensor:
        dtype = DTYPES[chance.integers(len(DTYPES))]
        shape = [(), (0, 3), (7,), (200, 8), (64, 2, 16), (4, 400)][chance.integers(6)]
        raw = chance.integers(0, 2, (*shape, dtype.itemsize), np.uint8)
        return torch.from_numpy(raw.reshape(-1)).view(dtype).reshape(shape)

    names = ["a", "b", "c", "d"]
    now = {name: fresh() for name in names}
    history: list[tuple[Weights, dict[str, Tensor]]] = []
    for _ in range(data.draw(strategies.integers(1, 14))):
        for name in names:
            action = data.draw(strategies.sampled_from(["keep", "rows", "rows", "full", "new", "drop"]))
            tensor = now.get(name)
            if action == "drop" and len(now) > 1:
                now.pop(name, None)
            elif action == "new" or tensor is None:
                now[name] = fresh()
            elif action == "full":
                now[name] = tensor.clone().logical_not().to(tensor.dtype)
            elif action == "rows" and tensor.ndim and tensor.numel():
                tensor = now[name] = tensor.clone()
                row_bytes(tensor)[chance.integers(len(tensor), size=3)] ^= 1
        parent = history[chance.integers(len(history))][0] if history and chance.random() < 0.2 else None
        parent = parent or (history[-1][0] if history else NOTHING)
        history.append((write(contents, now, parent), dict(now)))
    for written, expected in history:
        assert same(read(contents, written), expected)
        assert written.objects.keys() == {each for one in written.components.values() for each in one.objects}
        small = Counter[str]()
        for name, component in written.components.items():
            assert len(component.rows) <= weights.CHAIN
            patches = sum(written.objects[digest].tensors for digest in component.rows)
            assert 2 * patches <= expected[name].nbytes or not patches
            if expected[name].nbytes < LARGE:
                small[component.base] += expected[name].nbytes
        assert len(small) <= weights.CHAIN + 1
        assert all(2 * used >= written.objects[digest].tensors for digest, used in small.items())
