"""What workers save together is whole or absent, is never a pickle, and is read back in any other pieces."""

import itertools
import json
import os
import pickletools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hypercast.errors import CheckpointError
from hypercast.training import checkpoint, distributed_checkpoint
from hypercast.training.distributed_checkpoint import Pieces
from hypercast.training.distributed_storage import SafetensorsReader

ROWS, COLUMNS = 12, 8


@pytest.fixture(scope="module", autouse=True)
def _one_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def whole() -> Tensor:
    return torch.arange(ROWS * COLUMNS, dtype=torch.float32).view(ROWS, COLUMNS)


def cut(tensor: Tensor, rows: list[int], columns: list[int]) -> Pieces:
    """Into rectangles between these places."""
    row_spans = list(itertools.pairwise(sorted({0, *rows, ROWS})))
    column_spans = list(itertools.pairwise(sorted({0, *columns, COLUMNS})))
    return Pieces(
        shape=(ROWS, COLUMNS),
        pieces={
            (top, left): tensor[top:bottom, left:right].clone()
            for (top, bottom), (left, right) in itertools.product(row_spans, column_spans)
        },
    )


def tensors() -> dict[str, Tensor | Pieces]:
    return {
        "table": cut(whole(), [5], [4]),
        "weight": torch.tensor([0.1, float("nan"), -0.0]),
        "seen": torch.tensor(7.5, dtype=torch.float64),
        "codes": torch.tensor([2**62, -1]),
        "empty": torch.zeros(0, 3),
        "flag": torch.tensor(True),
    }


def blank(saved: dict[str, Tensor | Pieces]) -> dict[str, Tensor | Pieces]:
    return {
        name: cut(torch.zeros(ROWS, COLUMNS), [7, 8], []) if isinstance(each, Pieces) else torch.zeros_like(each)
        for name, each in saved.items()
    }


def saved_at(path: Path, steps: int = 1) -> Path:
    for step in range(1, 1 + steps):
        folder = distributed_checkpoint.save(path, tensors=tensors(), state={"step": step, "x": [0.1]}, step=step)
    return folder


places = st.lists(st.integers(1, ROWS - 1), max_size=4)
columns = st.lists(st.integers(1, COLUMNS - 1), max_size=3)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places, columns, places, columns)
def test_pieces_are_read_back_in_any_other_pieces(
    tmp_path: Path, rows: list[int], cols: list[int], other_rows: list[int], other_cols: list[int]
) -> None:
    path = tmp_path / "checkpoints"
    shutil.rmtree(path, ignore_errors=True)
    distributed_checkpoint.save(path, tensors={"table": cut(whole(), rows, cols)}, state={}, step=1)
    into = cut(torch.zeros(ROWS, COLUMNS), other_rows, other_cols)
    distributed_checkpoint.load(path, into={"table": into})
    expected = cut(whole(), other_rows, other_cols)
    assert all(torch.equal(into.pieces[place], tensor) for place, tensor in expected.pieces.items())


def test_every_bit_comes_back(tmp_path: Path) -> None:
    saved_at(tmp_path)
    into = blank(tensors())
    assert distributed_checkpoint.load(tmp_path, into=into) == {"step": 1, "x": [0.1]}
    for name, tensor in tensors().items():
        if isinstance(tensor, Tensor):
            read = into[name]
            assert isinstance(read, Tensor)
            assert read.dtype == tensor.dtype and read.numpy().tobytes() == tensor.numpy().tobytes(), name


def test_the_layout_is_that_of_any_checkpoint_and_no_file_is_a_pickle(tmp_path: Path) -> None:
    folder = saved_at(tmp_path, steps=3)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["CURRENT", "step-00000002", "step-00000003"]
    assert checkpoint.latest(tmp_path) == folder and checkpoint.state(tmp_path) == {"step": 3, "x": [0.1]}
    names = sorted(each.name for each in folder.iterdir())
    assert names == ["digests.json", "index.json", "state.json", "worker-00000.safetensors"]
    for name in names:
        with pytest.raises((ValueError, IndexError)):
            pickletools.dis((folder / name).read_bytes(), out=open(os.devnull, "w"))  # noqa: SIM115


@pytest.mark.parametrize("name", ["index.json", "state.json", "worker-00000.safetensors"])
def test_damage_is_told_before_anything_is_read(tmp_path: Path, name: str) -> None:
    folder = saved_at(tmp_path, steps=2)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    into = blank(tensors())
    with pytest.raises(CheckpointError, match=name):
        distributed_checkpoint.load(tmp_path, into=into)
    assert not any(tensor.any() for tensor in into.values() if isinstance(tensor, Tensor))
    shutil.rmtree(folder)
    assert distributed_checkpoint.load(tmp_path, into=into)["step"] == 1


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    saved_at(tmp_path)
    (tmp_path / ".step-00000002.partial").mkdir()
    (tmp_path / ".step-00000002.partial" / "worker-00000.safetensors").write_bytes(b"half")
    (tmp_path / "step-00000003").mkdir()  # renamed, and killed before CURRENT moved
    assert checkpoint.state(tmp_path)["step"] == 1
    distributed_checkpoint.save(tmp_path, tensors=tensors(), state={"step": 2}, step=2)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["CURRENT", "step-00000001", "step-00000002"]


def test_what_cannot_be_saved_or_read_is_refused(tmp_path: Path) -> None:
    saved_at(tmp_path)
    with pytest.raises(CheckpointError, match="JSON"):
        distributed_checkpoint.save(tmp_path, tensors=tensors(), state={"a": (1, 2)}, step=2)
    with pytest.raises(CheckpointError, match="step 1 is not after"):
        distributed_checkpoint.save(tmp_path, tensors=tensors(), state={}, step=1)
    with pytest.raises(CheckpointError, match="holds no 'other'"):
        distributed_checkpoint.load(tmp_path, into={"other": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="another shape of 'weight'"):
        distributed_checkpoint.load(tmp_path, into={"weight": torch.zeros(4)})
    with pytest.raises(CheckpointError, match="no checkpoint"):
        distributed_checkpoint.load(tmp_path / "nowhere", into={})
    checkpoint.save(tmp_path / "alone", tensors={"weight": torch.zeros(1)}, state={})
    with pytest.raises(CheckpointError, match="one process alone"):
        distributed_checkpoint.load(tmp_path / "alone", into={"weight": torch.zeros(1)})


@pytest.mark.parametrize(
    "change",
    [
        {"in": ["../other.safetensors", "weight@"]},
        {"in": ["/etc/passwd", "weight@"]},
        {"offsets": [-1]},
        {"shape": ["3"]},
        {"in": []},
    ],
)
def test_an_index_that_names_anything_else_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    index = {"weight": {"dtype": "float32", "shape": [3], "pieces": [{"offsets": [0], "shape": [3], "in": ["a", "b"]}]}}
    index["weight"]["pieces"][0] |= {"in": ["worker-00000.safetensors", "weight@"]} | change  # type: ignore[index, operator]
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="no index"):
        SafetensorsReader(tmp_path)
