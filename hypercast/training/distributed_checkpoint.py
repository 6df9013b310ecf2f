"""Checkpoints that several workers write together, and any number of workers reads: exact, atomic, and never a pickle.

::

    PATH/
      step-00000012/
        worker-00000.safetensors, …, index.json     hypercast.training.distributed_storage
        state.json          JSON values, the leader's
        digests.json        SHA-256 of every file above
      CURRENT               "step-00000012", moved by rename

The layout around the files is that of :mod:`hypercast.training.checkpoint`, whose ``latest`` and ``state`` read it too.
``PATH`` lies on a disk that all workers share.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from hypercast.errors import CheckpointError
from hypercast.training import checkpoint
from hypercast.training.distributed_storage import INDEX, SafetensorsReader, SafetensorsWriter, file_of
from streaming import files

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """This worker's rectangles of a tensor that no worker has the whole of; together the workers' cover it.

    torch's planners ask for the three methods with underscores.

    Attributes: ``shape`` of the whole; ``pieces``, tensors by where they begin in it.
    """

    shape: tuple[int, ...]
    pieces: Mapping[tuple[int, ...], Tensor]

    def __create_write_items__(self, name: str, _: Any) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=chunk,
                    properties=TensorProperties.create_from_tensor(self.pieces[tuple(chunk.offsets)]),
                    size=torch.Size(self.shape),
                ),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=tensor.shape)
            for offsets, tensor in self.pieces.items()
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return self.pieces[tuple(index.offset or ())]


Saved = Mapping[str, Tensor | Pieces]
"""By name: plain tensors are the same on every worker, DTensors and :class:`Pieces` are parts of one."""


class _SavePlanner(DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> Any:
        held = self.state_dict[index.fqn]
        return held.__get_tensor_shard__(index) if isinstance(held, Pieces) else super().lookup_object(index)


class _LoadPlanner(DefaultLoadPlanner):
    def set_up_planner(self, state_dict: dict[str, Any], metadata: Any = None, is_coordinator: bool = False) -> None:
        # The default takes apart what is no tensor; nothing here is to be made or flattened.
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        held = self.state_dict[index.fqn]
        return held.__get_tensor_shard__(index) if isinstance(held, Pieces) else super().lookup_tensor(index)


def save(
    path: Path, *, tensors: Saved, state: Mapping[str, Any], step: int, group: dist.ProcessGroup | None = None
) -> Path:
    """Save a checkpoint under ``path`` and move CURRENT to it; the last two are kept. All workers call it.

    It is whole or not there: each worker writes and flushes its file in a folder beside, the leader adds digests,
    renames the folder and moves the pointer.

    Args:
        path: the run's folder of checkpoints. One run at a time writes to it.
        state: JSON values; the leader's are kept.
        step: number of the checkpoint, after the current one.

    Returns:
        the checkpoint's folder.

    Raises:
        CheckpointError: ``state`` is not JSON, or ``step`` is not after the current checkpoint; on every worker.
    """
    rank = dist.get_rank(group)
    folder = path / f"step-{step:08d}"
    partial = folder.with_name(f".{folder.name}.partial")
    _by_leader(lambda: _begin(path, partial, state=state, step=step), group)
    writer = SafetensorsWriter(partial, worker=rank)
    planner = _SavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    dcp.save(dict(tensors), storage_writer=writer, planner=planner, process_group=group)
    written = partial / file_of(rank)
    files.fsync_file(written)
    digests: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(digests, (written.name, files.sha256_of(written)), group=group)
    _by_leader(lambda: _finish(path, partial, folder, state=state, digests=dict(digests)), group)
    return folder


def load(path: Path, *, into: Saved, group: dist.ProcessGroup | None = None) -> dict[str, Any]:
    """Read the current checkpoint under ``path`` into tensors, in place; returns its ``state``. All workers call it.

    The number of workers and how they hold the tensors need not be those that saved it.

    Raises:
        CheckpointError: there is none, a file is damaged, or it has no such tensor of this shape; on every worker.
    """
    folder = _by_leader(lambda: _verified(path), group)
    reader = SafetensorsReader(folder)
    stored = reader.read_metadata().state_dict_metadata
    for name, wanted in into.items():
        if name not in stored or stored[name].size != torch.Size(wanted.shape):  # type: ignore[union-attr]
            what = "another shape of" if name in stored else "no"
            raise CheckpointError(
                f"{folder}: holds {what} {name!r}, of which {tuple(wanted.shape)} is wanted: another model saved it. "
                "Give the configuration that it was saved under."
            )
    planner = _LoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    dcp.load(dict(into), storage_reader=reader, planner=planner, process_group=group)
    return json.loads((folder / "state.json").read_bytes())


def _by_leader(work: Callable[[], ValueT], group: dist.ProcessGroup | None) -> ValueT:
    """What the leader's ``work`` returns, or the error that it raises, on every worker."""
    said: list[Any] = [None, None]
    if dist.get_rank(group) == 0:
        try:
            said[0] = work()
        except (CheckpointError, OSError) as error:
            said[1] = error
    dist.broadcast_object_list(said, group=group, group_src=0)
    if said[1] is not None:
        raise said[1]
    return said[0]


def _begin(path: Path, partial: Path, *, state: Mapping[str, Any], step: int) -> None:
    checkpoint.require_json(dict(state), "state")
    path.mkdir(parents=True, exist_ok=True)
    current = checkpoint.latest(path)
    checkpoint.clean(path, current)
    if current is not None and partial.name <= f".{current.name}.partial":
        raise CheckpointError(
            f"{path}: the run has saved {current.name} already, and step {step} is not after it. Continue from it, or "
            f"delete {current} to go back to the one before."
        )
    partial.mkdir()


def _finish(path: Path, partial: Path, folder: Path, *, state: Mapping[str, Any], digests: dict[str, str]) -> None:
    (partial / "state.json").write_text(json.dumps(dict(state)), encoding="utf-8")
    digests = digests | {name: files.sha256_of(partial / name) for name in ("state.json", INDEX)}
    (partial / "digests.json").write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
    for name in ("state.json", INDEX, "digests.json"):
        files.fsync_file(partial / name)
    files.fsync_directory(partial)
    os.rename(partial, folder)
    files.fsync_directory(path)
    files.write_text(path / "CURRENT", folder.name)
    for old in checkpoint.steps(path)[: -checkpoint.KEPT]:
        checkpoint.remove(old)


def _verified(path: Path) -> Path:
    """The current checkpoint's folder, after every file has been checked against its digest."""
    folder = checkpoint.verified(path, "state.json")
    digests = json.loads((folder / "digests.json").read_bytes())
    checkpoint.verified(path, *(name for name in digests if Path(name).name == name))
    if INDEX not in digests:
        raise CheckpointError(
            f"{folder}: was saved by one process alone, and not by workers. Go on with it as it was begun, or start "
            "again in another folder."
        )
    return folder
