"""A run that is killed goes on from exactly where it stood."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hypercast.errors import CheckpointError
from hypercast.training import checkpoint


def same(left: Any, right: Any) -> bool:
    """Equal in type, order and every bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and same(left.numpy(), right.numpy())
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right or (left != left and right != right)


_ARRAYS = st.sampled_from(["float32", "float16", "float64", "int64", "int32", "uint8", "bool"]).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, min_side=0, max_side=3))
)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
_LEAVES = _SCALARS | _ARRAYS | _ARRAYS.map(lambda array: torch.tensor(array))
_KEYS = st.one_of(st.sampled_from(["$", "a", "a/b", "1", "items", "name"]), st.integers(-2, 12), st.text())
_NESTED = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(_KEYS, inner, max_size=4)
        | st.fixed_dictionaries({"a/b": inner, "a": st.fixed_dictionaries({"b": inner}), 1: inner, "1": inner})
    ),
    max_leaves=12,
)


@given(_NESTED)
def test_pack_and_unpack_are_inverse(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    tensors, skeleton = checkpoint.pack(value)
    assert same(checkpoint.unpack(tensors, skeleton), value)
    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoint.save(folder, tensors=tensors, state={"skeleton": skeleton})
    loaded = checkpoint.load(folder)
    assert same(checkpoint.unpack(loaded.tensors, loaded.state["skeleton"]), value)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.SGD])
def test_a_resumed_optimiser_takes_the_same_steps(tmp_path: Path, kind: Callable[..., torch.optim.Optimizer]) -> None:
    def build() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
        module = torch.nn.Linear(3, 2)
        torch.nn.init.constant_(module.weight, 0.5)
        torch.nn.init.zeros_(module.bias)
        return module, kind(module.parameters(), lr=0.1)

    def step(module: torch.nn.Linear, optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad()
        module(torch.tensor([[1.0, -2.0, 3.0]])).square().sum().backward()
        optimiser.step()

    module, optimiser = build()
    step(module, optimiser)
    tensors, skeleton = checkpoint.pack({"model": module.state_dict(), "optimiser": optimiser.state_dict()})
    checkpoint.save(tmp_path, tensors=tensors, state={"skeleton": skeleton})
    for _ in range(3):
        step(module, optimiser)

    loaded = checkpoint.load(tmp_path)
    state = checkpoint.unpack(loaded.tensors, loaded.state["skeleton"])
    resumed, resumed_optimiser = build()
    resumed.load_state_dict(state["model"])
    resumed_optimiser.load_state_dict(state["optimiser"])
    for _ in range(3):
        step(resumed, resumed_optimiser)
    assert torch.equal(resumed.weight, module.weight)
    assert torch.equal(resumed.bias, module.bias)


@pytest.mark.parametrize("value", [{1, 2}, {"a": [object()]}, {(1, 2): 3}, {True: 1}, np.array(["text"]), np.int64(3)])
def test_what_cannot_be_packed_is_refused(value: Any) -> None:
    with pytest.raises(CheckpointError, match="cannot pack"):
        checkpoint.pack(value)


def test_numbers_round_trip_exactly(tmp_path: Path) -> None:
    state = {"loss": 0.1 + 0.2, "best": math.inf, "big": 1 << 70, "tiny": 5e-324, "nested": [{"a": -0.0}, None, True]}
    folder = checkpoint.save(tmp_path, tensors={}, state=state)
    assert same(checkpoint.load(tmp_path).state, state)
    assert checkpoint.load(tmp_path).path == folder


@pytest.mark.parametrize(
    ("state", "place"),
    [({"a": {"b": (1, 2)}}, r"state\.a\.b"), ({"a": [{3: 1}]}, r"state\.a\[0\]"), ({"a": np.float32(1)}, r"state\.a")],
)
def test_state_that_json_would_change_is_refused(tmp_path: Path, state: dict[str, Any], place: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{place}.*pack"):
        checkpoint.save(tmp_path, tensors={}, state=state)
    assert checkpoint.latest(tmp_path) is None


def save(path: Path, value: float, step: int | None = None) -> Path:
    return checkpoint.save(path, tensors={"x": torch.tensor([value])}, state={"value": value}, step=step)


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for value in (1.0, 2.0, 3.0):
        save(tmp_path, value)
    assert save(tmp_path, 4.0, step=12).name == "step-00000012"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CURRENT", "step-00000003", "step-00000012"]
    assert checkpoint.load(tmp_path).state == {"value": 4.0}
    assert checkpoint.load(tmp_path).tensors["x"].tolist() == [4.0]


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    folder = save(tmp_path, 1.0, step=5)
    assert save(tmp_path, 1.0, step=5) == folder
    for value, step in ((2.0, 5), (1.0, 4)):
        with pytest.raises(CheckpointError, match=r"has saved step-00000005 already"):
            save(tmp_path, value, step=step)


def test_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "absent") is None
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        checkpoint.load(tmp_path / "absent")


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "digests.json"])
@pytest.mark.parametrize("delete", [True, False])
def test_damage_is_an_error_that_says_how_to_go_back(tmp_path: Path, name: str, delete: bool) -> None:
    save(tmp_path, 1.0)
    file = save(tmp_path, 2.0) / name
    if delete:
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"delete the folder .*step-00000002"):
        checkpoint.load(tmp_path)
    for part in file.parent.iterdir():
        part.unlink()
    file.parent.rmdir()
    assert checkpoint.load(tmp_path).state == {"value": 1.0}
    assert save(tmp_path, 3.0).name == "step-00000002"
    assert checkpoint.load(tmp_path).state == {"value": 3.0}


def test_what_a_killed_run_left_is_never_read_and_cleaned(tmp_path: Path) -> None:
    save(tmp_path, 1.0)
    save(tmp_path, 2.0)
    (tmp_path / "CURRENT").write_text("step-00000001")  # killed between the folder and the pointer
    (tmp_path / ".step-00000003.partial").mkdir()
    (tmp_path / ".step-00000003.partial" / "state.json").write_text("{")
    assert checkpoint.load(tmp_path).state == {"value": 1.0}
    save(tmp_path, 2.5)
    assert checkpoint.load(tmp_path).state == {"value": 2.5}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CURRENT", "step-00000001", "step-00000002"]
