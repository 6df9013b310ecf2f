"""Encoded histories that are kept from one call to the next: what a user's second request does not encode again.

What a layer keeps of a token (:class:`foundation.hstu.cache.KeyValueCache`) depends on the tokens up to it and on two
things of the request: its context tokens, which the history attends to, and its time, which the bias by time reads as
the bucket of each event's age. So an entry is found by model, owner and context, and what is used of it is its longest
beginning in which every event and every bucket is that of the request. A request of an earlier time finds later events
to be none of its own, and sees nothing of them.

Shape legend: L history tokens, Q integers that say what one is.
"""

from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from foundation.hstu.attention.semantics import time_buckets
from foundation.hstu.cache import KeyValueCache
from foundation.model import FoundationModel
from streaming.batch import RequestBatch

ENTRY_BYTES = 4096
"""What an entry is taken to weigh beside its numbers: some ten tensors and the key."""
Key = tuple[FoundationModel, Hashable, bytes, bytes]
"""Model, owner, and what the context tokens are made of: codes of user and request."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One encoded history.

    Attributes:
        event_QL: int64, what its events were, as :func:`events_of` says.
        layers: of context and history, layer by layer.
    """

    event_QL: Tensor
    layers: list[KeyValueCache]

    @property
    def length(self) -> int:
        """L."""
        return self.event_QL.shape[1]

    @property
    def nbytes(self) -> int:
        return ENTRY_BYTES + self.event_QL.nbytes + sum(layer.nbytes for layer in self.layers)


class EncodedHistories:
    """The entries that were used last, up to a number of bytes. For one thread at a time.

    Args:
        most: bytes.

    Attributes: ``nbytes`` of all entries; any thread may read it, and ask :meth:`holds`.
    """

    def __init__(self, *, most: int) -> None:
        self.most = most
        self.nbytes = 0
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self._owners: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def holds(self, owner: Hashable) -> bool:
        """Whether there is an entry of the owner's."""
        return self._owners[owner] > 0

    def find(self, key: Key, event_QL: Tensor) -> tuple[Entry, int] | None:
        """An entry that begins as these events do, and how many they share; None if there is none, or nothing is."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        length = min(entry.length, event_QL.shape[1])
        other_L = (entry.event_QL[:, :length] != event_QL[:, :length]).any(0)
        shared = int(other_L.int().argmax()) if other_L.any() else length
        if shared == 0:
            return None
        self._entries.move_to_end(key)
        return entry, shared

    def put(self, key: Key, entry: Entry) -> None:
        """Keep an entry in the place of the key's last; forget those that were not used for longest."""
        if key in self._entries:
            self._forget(key)
        if entry.nbytes > self.most:
            return
        self._entries[key] = entry
        self._owners[key[1]] += 1
        self.nbytes += entry.nbytes
        while self.nbytes > self.most:
            self._forget(next(iter(self._entries)))

    def _forget(self, key: Key) -> None:
        self.nbytes -= self._entries.pop(key).nbytes
        self._owners[key[1]] -= 1
        if not self._owners[key[1]]:
            del self._owners[key[1]]


def events_of(model: FoundationModel, batch: RequestBatch) -> Tensor:
    """All that the encoding of an event depends on, beside what comes before it: int64 ``[Q, L]``.

    Codes of its item, surface, action and time, and the bucket of the time from it to the request.
    """
    history = batch.history["all"]
    rows = [*_codes(batch.items)[:, history.item_L], history.surface_L, history.action_L, history.time_L]
    count = model.config.stack.time_buckets
    if count:
        requests = zip(batch.time_B.split(1), history.time_L.split(history.offsets.diff().tolist()), strict=True)
        rows.append(torch.cat([time_buckets(time_1, time_l, count=count)[0] for time_1, time_l in requests]))
    return torch.stack(rows)


def keys_of(model: FoundationModel, batch: RequestBatch, owners: Sequence[Hashable]) -> list[Key]:
    """Of each request: what its entry is found by."""
    users, contexts = (
        [code_F.numpy().tobytes() for code_F in _codes(part).T.contiguous()] for part in (batch.users, batch.context)
    )
    return [(model, *each) for each in zip(owners, users, contexts, strict=True)]


def _codes(features: KeyedJaggedTensor) -> Tensor:
    """int64 ``[features, rows]``."""
    return features.values().view(len(features.keys()), features.stride())
