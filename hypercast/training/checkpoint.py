"""Checkpoints of a training run: exact, atomic, and never a pickle.

::

    PATH/
      step-00000012/
        tensors.safetensors
        state.json          numbers round-trip exactly
        digests.json        SHA-256 of the two
      CURRENT               "step-00000012", moved by rename

A killed run finds the last whole checkpoint. The one before it is kept, for going back by hand.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hypercast.tensors
from hypercast.errors import CheckpointError
from streaming import files

_STEP = re.compile(r"step-([0-9]{8,})")
KEPT = 2
"""How many checkpoints stay: the current one, and the one before it, for going back by hand."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What was saved: ``tensors`` by name on the CPU, ``state`` as JSON values, and the ``path`` they came from."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    path: Path


def save(path: Path, *, tensors: Mapping[str, Tensor], state: Mapping[str, Any], step: int | None = None) -> Path:
    """Save a checkpoint under ``path`` and move CURRENT to it; the last two are kept.

    Args:
        path: the run's folder of checkpoints. One run at a time writes to it.
        tensors: by name, see :func:`pack`.
        state: JSON values only: dict with str keys, list, str, int, float, bool, None.
        step: number of the checkpoint; None takes the one after the current. Saving a step again is allowed if it
            says the same.

    Returns:
        the checkpoint's folder.

    Raises:
        CheckpointError: ``state`` is not JSON, or ``step`` is not after the current checkpoint.
    """
    require_json(dict(state), "state")
    path.mkdir(parents=True, exist_ok=True)
    current = latest(path)
    clean(path, current)
    number = (0 if current is None else _number(current)) + 1 if step is None else step
    folder = path / f"step-{number:08d}"
    if current is not None and number <= _number(current):
        return _again(current, folder, tensors=tensors, state=state)
    files.write_directory(folder, lambda partial: _write(partial, tensors, state))
    files.write_text(path / "CURRENT", folder.name)
    for old in steps(path)[:-KEPT]:
        remove(old)
    return folder


def load(path: Path) -> Checkpoint:
    """The current checkpoint under ``path``, after its files have been checked against their digests.

    If the folder that CURRENT names was deleted, the newest that is left is current: that is how to go back.

    Raises:
        CheckpointError: there is none, or a file is damaged; the message names it and says how to go back.
    """
    folder = verified(path, "tensors.safetensors", "state.json")
    return Checkpoint(
        tensors=hypercast.tensors.load(folder / "tensors.safetensors"),
        state=json.loads((folder / "state.json").read_bytes()),
        path=folder,
    )


def state(path: Path) -> dict[str, Any]:
    """The ``state`` alone of the current checkpoint under ``path``; its tensors are not read.

    Raises:
        CheckpointError: see :func:`load`.
    """
    return json.loads((verified(path, "state.json") / "state.json").read_bytes())


def latest(path: Path) -> Path | None:
    """The folder that :func:`load` would read, or None if there is no checkpoint."""
    kept = steps(path)
    if not kept:
        return None
    pointer = path / "CURRENT"
    name = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
    return next((folder for folder in kept if folder.name == name), kept[-1])


def pack(obj: Any) -> tuple[dict[str, Tensor], Any]:
    """Part nested state, such as an optimiser's ``state_dict()``, into tensors by name and a JSON-able skeleton.

    Knows tensors, NumPy arrays, int, float, str, bool, None, and lists, tuples and dicts (str or int keys) of them.
    The tensors share memory with ``obj``: save them before it changes.

    Raises:
        CheckpointError: anything else; the message names the place.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _pack(obj, "", tensors)


def unpack(tensors: Mapping[str, Tensor], skeleton: Any) -> Any:
    """The inverse of :func:`pack`: equal values, types and order; parameters come back as plain tensors.

    Raises:
        CheckpointError: a tensor that the skeleton names is missing.
    """
    if isinstance(skeleton, list):
        return [unpack(tensors, value) for value in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    kind = skeleton.get("$")
    if kind is None:
        return {key: unpack(tensors, value) for key, value in skeleton.items()}
    if kind == "tuple":
        return tuple(unpack(tensors, value) for value in skeleton["items"])
    if kind == "dict":
        return {key: unpack(tensors, value) for key, value in skeleton["items"]}
    name = skeleton["name"]
    if name not in tensors:
        raise CheckpointError(f"the checkpoint's state names a tensor {name!r} that is not among its tensors.")
    return tensors[name].numpy() if kind == "numpy" else tensors[name]


def _pack(obj: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if obj is None or isinstance(obj, bool | str):
        return obj
    if isinstance(obj, int):
        return int(obj)
    if isinstance(obj, float):
        return float(obj)
    if isinstance(obj, Tensor):
        return {"$": "tensor", "name": _store(obj.detach(), place, tensors)}
    if isinstance(obj, np.ndarray):
        return {"$": "numpy", "name": _store(_from_numpy(obj, place), place, tensors)}
    if isinstance(obj, list):
        return [_pack(value, _below(place, index), tensors) for index, value in enumerate(obj)]
    if isinstance(obj, tuple):
        return {"$": "tuple", "items": [_pack(value, _below(place, index), tensors) for index, value in enumerate(obj)]}
    if isinstance(obj, dict):
        for key in obj:
            if type(key) not in (str, int):
                raise CheckpointError(f"cannot pack key {key!r} at {place or 'the top'}: keys are str or int.")
        items = [(key, _pack(value, _below(place, key), tensors)) for key, value in obj.items()]
        if all(isinstance(key, str) for key in obj) and "$" not in obj:
            return dict(items)
        return {"$": "dict", "items": [list(item) for item in items]}
    raise CheckpointError(
        f"cannot pack {type(obj).__name__} at {place or 'the top'}: allowed are tensors, NumPy arrays, int, float, "
        "str, bool, None, and lists, tuples and dicts of them."
    )


def _store(tensor: Tensor, place: str, tensors: dict[str, Tensor]) -> str:
    name = place or "value"
    while name in tensors:  # {1: …, "1": …}, or a key with a slash in it
        name += "'"
    tensors[name] = tensor
    return name


def _from_numpy(array: np.ndarray, place: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(array, order="C", copy=True))
    except TypeError:
        raise CheckpointError(f"cannot pack a NumPy array of dtype {array.dtype} at {place or 'the top'}.") from None


def _below(place: str, key: str | int) -> str:
    return f"{place}/{key}" if place else str(key)


def _write(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    hypercast.tensors.save(folder / "tensors.safetensors", tensors)
    (folder / "state.json").write_text(json.dumps(dict(state)), encoding="utf-8")
    digests = {name: files.sha256_of(folder / name) for name in ("tensors.safetensors", "state.json")}
    (folder / "digests.json").write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")


def _again(current: Path, folder: Path, *, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    if folder == current:
        saved = load(folder.parent)
        same = hypercast.tensors.digest(saved.tensors) == hypercast.tensors.digest(tensors)
        if same and json.dumps(saved.state) == json.dumps(dict(state)):
            return current
    raise CheckpointError(
        f"{folder}: the run has saved {current.name} already, and a checkpoint is never overwritten. Continue from it, "
        f"or delete {current} to go back to the one before."
    )


def require_json(value: Any, place: str) -> None:
    """Refuse what JSON would change on the way: tuples, keys that are no str, NumPy numbers."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if type(key) is not str:
                raise CheckpointError(f"{place}: key {key!r} is not a str. Pass nested state through pack().")
            require_json(inner, f"{place}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            require_json(inner, f"{place}[{index}]")
    elif value is not None and type(value) not in (str, int, float, bool):
        raise CheckpointError(
            f"{place}: {type(value).__name__} cannot be saved exactly as JSON. Pass nested state through pack()."
        )


def verified(path: Path, *names: str) -> Path:
    """The current checkpoint's folder, after these of its files have been checked against their digests."""
    folder = latest(path)
    if folder is None:
        raise CheckpointError(f"{path}: no checkpoint here. Start the run from the beginning, or correct the path.")
    try:
        digests = json.loads((folder / "digests.json").read_bytes())
        named = {name: str(digests[name]) for name in names}
    except (OSError, ValueError, KeyError, TypeError):
        raise _damaged(folder / "digests.json") from None
    for name, expected in named.items():
        file = folder / name
        if not file.is_file() or files.sha256_of(file) != expected:
            raise _damaged(file)
    return folder


def steps(path: Path) -> list[Path]:
    """Folders of whole checkpoints, oldest first."""
    if not path.is_dir():
        return []
    return sorted((folder for folder in path.iterdir() if _STEP.fullmatch(folder.name)), key=_number)


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def clean(path: Path, current: Path | None) -> None:
    """Remove what a killed run left: parts, and a folder that CURRENT was never moved to."""
    for left_over in path.glob(".*"):
        if left_over.is_dir():
            shutil.rmtree(left_over)
        else:
            left_over.unlink()
    for folder in steps(path):
        if current is not None and _number(folder) > _number(current):
            remove(folder)


def remove(folder: Path) -> None:
    """Out of sight in one step, so that a kill leaves no half of a checkpoint."""
    hidden = folder.with_name(f".{folder.name}.removed")
    folder.rename(hidden)
    shutil.rmtree(hidden)


def _damaged(file: Path) -> CheckpointError:
    return CheckpointError(
        f"{file}: missing, or not what was saved (its SHA-256 differs). To go back to the checkpoint before it, delete "
        f"the folder {file.parent} and run again."
    )
