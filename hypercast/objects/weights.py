"""Weights from components: a publish writes what has changed since its parent, and refers to the rest.

A tensor is a base and, if it is a large table of which few rows have changed, rows that replace the base's, in order::

    token.table   base 1f… ── rows 9a… ── rows c3…      one object each
    tower.weight  base 77…                               large: an object of its own
    tower.bias    base d0…["tower.bias"]   small: in one object with the others that changed in that publish

What a snapshot costs to read stays bounded: at most :data:`CHAIN` sets of rows a tensor, which together take at most
half of its base; an object of small tensors is referred to only while at least half of it is in use.

Shape legend: N rows of a tensor, B bytes of a row, R rows that changed.
"""

import dataclasses
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypercast.errors import RegistryError
from hypercast.objects.contents import Contents
from hypercast.tensors import row_bytes

LARGE = 1 << 20
"""Bytes from which a tensor gets an object of its own, and may be kept by rows."""

CHAIN = 8
"""Sets of rows on one base, and objects of small tensors that a snapshot refers to, at most."""

_VALUES = "values"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Component:
    """Where one tensor lies.

    Attributes:
        dtype: such as ``torch.float32``.
        shape: sizes.
        sha256: digest of dtype, shape and bytes (:func:`hypercast.tensors.digests`).
        base: object with the values.
        key: their name in it.
        rows: objects with rows that replace those of the base, oldest first.
    """

    dtype: str
    shape: list[int]
    sha256: str
    base: str
    key: str
    rows: list[str]

    @property
    def objects(self) -> list[str]:
        """All that the tensor is made of."""
        return [self.base, *self.rows]


@dataclass(frozen=True, kw_only=True)
class Object:
    """Sizes of an object, in bytes: of its ``file``, and of the ``tensors`` in it without names and shapes."""

    file: int
    tensors: int


@dataclass(frozen=True, kw_only=True)
class Weights:
    """All tensors of a snapshot: ``components`` by name, and the ``objects`` that they are made of, by digest."""

    components: dict[str, Component]
    objects: dict[str, Object]

    def to_json(self) -> dict[str, Any]:
        return {
            "tensors": {name: dataclasses.asdict(component) for name, component in self.components.items()},
            "objects": {digest: dataclasses.asdict(each) for digest, each in sorted(self.objects.items())},
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "Weights":
        return Weights(
            components={name: Component(**component) for name, component in value["tensors"].items()},
            objects={digest: Object(**each) for digest, each in value["objects"].items()},
        )

    def bytes_beyond(self, parent: "Weights | None") -> int:
        """Bytes of tensors, rows and row numbers in the objects that ``parent`` does not have."""
        known = parent.objects if parent else {}
        return sum(each.tensors for digest, each in self.objects.items() if digest not in known)


NOTHING = Weights(components={}, objects={})


def write(contents: Contents, tensors: Mapping[str, Tensor], *, digests: Mapping[str, str], parent: Weights) -> Weights:
    """Keep ``tensors`` in ``contents``, as far as ``parent`` does not hold them already.

    Args:
        contents: where objects are.
        tensors: by name, on any device.
        digests: of ``tensors``, from :func:`hypercast.tensors.digests`.
        parent: what to refer to; :data:`NOTHING` to write all.
    """
    writer = _Writer(contents, parent)
    components = writer.unchanged(digests)
    changed = {name: tensor for name, tensor in tensors.items() if name not in components}
    small = {name: tensor for name, tensor in changed.items() if tensor.nbytes < LARGE}
    pack = writer.put(small) if small else ""
    for name, tensor in changed.items():
        component = Component(
            dtype=str(tensor.dtype), shape=list(tensor.shape), sha256=digests[name], base=pack, key=name, rows=[]
        )
        if name not in small:
            component = writer.by_rows(name, tensor, component) or writer.in_full(tensor, component)
        components[name] = component
    used = {digest for component in components.values() for digest in component.objects}
    return Weights(
        components={name: components[name] for name in tensors},
        objects={digest: each for digest, each in writer.objects.items() if digest in used},
    )


def read(contents: Contents, components: Mapping[str, Component]) -> dict[str, Tensor]:
    """The tensors by name on the CPU, none sharing memory with another; every object is checked before it is used.

    Raises:
        RegistryError: an object is missing or damaged; the message names its file.
    """
    by_base = defaultdict(list)
    for name, component in components.items():
        by_base[component.base].append(name)
    uses = Counter((component.base, component.key) for component in components.values())
    result: dict[str, Tensor] = {}
    for base, names in by_base.items():
        values = contents.get(base)
        for name in names:
            component = components[name]
            tensor = values[component.key]
            if uses[base, component.key] > 1:
                tensor = tensor.clone()
            for digest in component.rows:
                patch = contents.get(digest)
                row_bytes(tensor)[patch["index"].numpy()] = row_bytes(patch["rows"])
            result[name] = tensor
    return {name: result[name] for name in components}


class _Writer:
    """One publish: the objects that it found and made so far."""

    def __init__(self, contents: Contents, parent: Weights) -> None:
        self.contents = contents
        self.parent = parent
        # Only what is there can be referred to; whoever lost a file gets it back by publishing again.
        self.objects = {digest: each for digest, each in parent.objects.items() if contents.has(digest, each.file)}

    def put(self, content: Mapping[str, Tensor]) -> str:
        digest, size = self.contents.put(content)
        self.objects[digest] = Object(file=size, tensors=sum(tensor.nbytes for tensor in content.values()))
        return digest

    def unchanged(self, digests: Mapping[str, str]) -> dict[str, Component]:
        """The parent's components that hold what they should, without those in objects that are mostly idle."""
        same = {
            name: component
            for name, component in self.parent.components.items()
            if digests.get(name) == component.sha256 and all(digest in self.objects for digest in component.objects)
        }
        in_use: Counter[str] = Counter()
        for component in same.values():
            if _is_small(component):
                in_use[component.base] += _nbytes(component)
        busy = [digest for digest, used in in_use.most_common(CHAIN) if 2 * used >= self.objects[digest].tensors]
        return {name: each for name, each in same.items() if not _is_small(each) or each.base in busy}

    def by_rows(self, name: str, tensor: Tensor, new: Component) -> Component | None:
        """The rows that differ from the parent's, as one more object; None where writing all is better."""
        old = self.parent.components.get(name)
        if old is None or (old.dtype, old.shape) != (new.dtype, new.shape) or tensor.ndim < 2:
            return None
        if len(old.rows) >= CHAIN or not all(digest in self.objects for digest in old.objects):
            return None
        try:
            before = read(self.contents, {name: old})[name]
        except RegistryError as error:
            _logger.warning("%s is written in full, for what it could refer to is damaged: %s", name, error)
            return None
        rows_NB = row_bytes(tensor)
        index_R = np.flatnonzero(_differ(rows_NB, row_bytes(before)))
        size = len(index_R) * (index_R.itemsize + rows_NB.shape[1])
        if 2 * (size + sum(self.objects[digest].tensors for digest in old.rows)) > tensor.nbytes:
            return None
        rows = torch.from_numpy(rows_NB[index_R]).view(tensor.dtype).reshape(-1, *tensor.shape[1:])
        patch = self.put({"index": torch.from_numpy(index_R.astype(np.int64)), "rows": rows})
        return dataclasses.replace(new, base=old.base, key=old.key, rows=[*old.rows, patch])

    def in_full(self, tensor: Tensor, new: Component) -> Component:
        return dataclasses.replace(new, base=self.put({_VALUES: tensor}), key=_VALUES)


def _differ(left_NB: np.ndarray, right_NB: np.ndarray) -> np.ndarray:
    """Bool [N]: rows of which not every bit is the same."""
    word = np.int64 if left_NB.shape[1] % 8 == 0 else np.uint8
    return (left_NB.view(word) != right_NB.view(word)).any(axis=1)


def _nbytes(component: Component) -> int:
    itemsize = getattr(torch, component.dtype.removeprefix("torch.")).itemsize
    return int(np.prod(component.shape, dtype=np.int64)) * itemsize


def _is_small(component: Component) -> bool:
    return _nbytes(component) < LARGE
