"""Where torch's distributed checkpoints put their bytes: safetensors files and a JSON index, no pickle.

torch's planners decide who writes what, and what of it each worker reads back under another sharding
(:mod:`torch.distributed.checkpoint`). Its own storage keeps its index as a pickle, which runs code of whoever wrote
it; that for safetensors cannot hold two pieces of one tensor from one worker. So the storage is ours::

    FOLDER/
      worker-00000.safetensors    pieces, by "NAME@row,column"
      index.json                  of every tensor: dtype, shape, and where each piece begins and lies
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    WriteItem,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

import hypercast.tensors
from hypercast.errors import CheckpointError

INDEX = "index.json"
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)
}


def file_of(worker: int) -> str:
    """Name of a worker's file."""
    return f"worker-{worker:05d}.safetensors"


class SafetensorsWriter(StorageWriter):
    """Writes each worker's pieces to one file of its own in ``folder``, and the index from the coordinator."""

    def __init__(self, folder: Path, *, worker: int) -> None:
        self.folder = folder
        self.worker = worker

    def reset(self, checkpoint_id: Any = None) -> None:
        return None

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        return None

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors: dict[str, Tensor] = {}
        results = []
        for item in plan.items:
            tensor = planner.resolve_data(item)
            if not isinstance(tensor, Tensor):
                raise CheckpointError(f"{item.index.fqn}: only tensors go into a distributed checkpoint.")
            name = _key(item)
            tensors[name] = tensor.detach()
            results.append(
                WriteResult(index=item.index, size_in_bytes=tensor.nbytes, storage_data=[file_of(self.worker), name])
            )
        hypercast.tensors.save(self.folder / file_of(self.worker), tensors)
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        place = {
            (result.index.fqn, tuple(result.index.offset or ())): result.storage_data
            for each in results
            for result in each
        }
        index = {
            name: {
                "dtype": str(stored.properties.dtype).removeprefix("torch."),
                "shape": list(stored.size),
                "pieces": [
                    {"offsets": [*chunk.offsets], "shape": [*chunk.sizes], "in": _place(place, name, chunk.offsets)}
                    for chunk in stored.chunks
                ],
            }
            for name, stored in metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
        }
        (self.folder / INDEX).write_text(json.dumps(index), encoding="utf-8")

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False


class SafetensorsReader(StorageReader):
    """Reads what :class:`SafetensorsWriter` wrote: of each piece the part that is wanted.

    Raises:
        CheckpointError: the index does not describe pieces of tensors in files beside it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            index = json.loads((folder / INDEX).read_bytes())
            self._metadata = _metadata(index)
            self._place = {
                (name, tuple(piece["offsets"])): (_file(piece["in"][0]), str(piece["in"][1]))
                for name, stored in index.items()
                for piece in stored["pieces"]
            }
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder / INDEX}: no index of a distributed checkpoint ({error}).") from None

    def reset(self, checkpoint_id: Any = None) -> None:
        return None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        return None

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[Any]] = {}
        for item in plan.items:
            file, name = self._place[_index_key(item.storage_index)]
            by_file.setdefault(file, []).append((name, item))
        for file, wanted in by_file.items():
            with safetensors.safe_open(self.folder / file, framework="pt") as opened:
                for name, item in wanted:
                    stored = opened.get_slice(name)
                    spans = tuple(
                        slice(begin, begin + length)
                        for begin, length in zip(item.storage_offsets, item.lengths, strict=True)
                    )
                    part = stored[spans] if spans else opened.get_tensor(name)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(part)
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False


def _key(item: WriteItem) -> str:
    return f"{item.index.fqn}@{','.join(map(str, item.index.offset or ()))}"


def _index_key(index: MetadataIndex) -> tuple[str, tuple[int, ...]]:
    return index.fqn, tuple(index.offset or ())


def _place(place: dict[tuple[str, tuple[int, ...]], Any], name: str, offsets: Iterable[int]) -> Any:
    return place[name, tuple(offsets)] if (name, tuple(offsets)) in place else place[name, ()]


def _file(name: Any) -> str:
    """A name that stays in the folder."""
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
        raise ValueError(f"{name!r} is not the name of a worker's file")
    return name


def _metadata(index: dict[str, Any]) -> Metadata:
    def size(values: Sequence[Any]) -> torch.Size:
        if not all(type(value) is int and value >= 0 for value in values):
            raise ValueError(f"{values} is not a shape")
        return torch.Size(values)

    return Metadata(
        {
            name: TensorStorageMetadata(
                properties=TensorProperties(dtype=DTYPES[stored["dtype"]]),
                size=size(stored["shape"]),
                chunks=[
                    ChunkStorageMetadata(offsets=size(piece["offsets"]), sizes=size(piece["shape"]))
                    for piece in stored["pieces"]
                ],
            )
            for name, stored in index.items()
        }
    )
