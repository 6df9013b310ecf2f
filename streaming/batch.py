"""Jagged request batches: user work once per request, item attributes once per distinct item, nothing padded.

Shape legend: B requests, L history tokens, C candidates, U distinct items, F dense features, K context features,
T tasks.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from streaming.catalogue import Catalogue
from streaming.history import EngagementLog, Events
from streaming.prefetch import Prefetch
from streaming.requests import Requests


@dataclass(frozen=True, kw_only=True)
class History:
    """Engagements strictly before each request, oldest first (law L1).

    Attributes:
        item_L: int64, index into the batch's distinct items.
        surface_L: int64, index of the surface, -1 for none.
        action_L: int64.
        time_L: int64 microseconds.
        offsets: int64 ``[B + 1]``.
    """

    item_L: Tensor
    surface_L: Tensor
    action_L: Tensor
    time_L: Tensor
    offsets: Tensor


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Supervision for losses and metrics, never for models (law L6).

    Attributes:
        label_CT: float32, 0 where unknown.
        known_CT: bool, which labels became known in the interval that this batch trains on (law L2).
    """

    label_CT: Tensor
    known_CT: Tensor


@dataclass(frozen=True, kw_only=True)
class RequestBatch:
    """One batch. Sparse features travel as one KeyedJaggedTensor with a code per key and row.

    Attributes:
        items: item attributes, keys as ``Catalogue.features``, U rows.
        users: user attributes, B rows.
        context: context features, B rows.
        time_B: int64 microseconds.
        history: one jagged history a request, by name: see :class:`BatchReader`.
        item_C: int64, index into the batch's distinct items.
        surface_C: int64.
        dense_CF: float32.
        owner_C: int64, each candidate's request.
        offsets: int64 ``[B + 1]``.
        labels: apart from the inputs.
    """

    items: KeyedJaggedTensor
    users: KeyedJaggedTensor
    context: KeyedJaggedTensor
    time_B: Tensor
    history: dict[str, History]
    item_C: Tensor
    surface_C: Tensor
    dense_CF: Tensor
    owner_C: Tensor
    offsets: Tensor
    labels: Labels

    def __len__(self) -> int:
        return len(self.time_B)

    def reading(self, histories: Collection[str]) -> tuple["RequestBatch", Tensor]:
        """The same batch with only these of its histories, for models that read no other.

        Returns:
            the batch, and int64 ``[U]``, in ascending order: which of this one's distinct items are left, those that
            ``histories`` and candidates name.
        """
        kept = {name: self.history[name] for name in histories}
        named = torch.cat([self.item_C, *(history.item_L for history in kept.values())])
        item_U, index = named.unique(return_inverse=True)
        item_C, *item_L = index.split([len(self.item_C), *(len(history.item_L) for history in kept.values())])
        code_FU = self.items.values().view(len(self.items.keys()), self.items.stride())[:, item_U]
        batch = replace(
            self,
            items=keyed(self.items.keys(), code_FU.T.numpy()),
            history={name: replace(kept[name], item_L=item) for name, item in zip(kept, item_L, strict=True)},
            item_C=item_C,
        )
        return batch, item_U


class BatchReader:
    """Turns requests into batches.

    Args:
        items, users: the catalogues.
        context: names of the context features.
        histories: by name, the engagement log to read and the largest number of engagements taken from it.
        prefetch: how :meth:`batches` works ahead; batches are the same however it does.
    """

    def __init__(
        self,
        *,
        items: Catalogue,
        users: Catalogue,
        context: list[str],
        histories: dict[str, tuple[EngagementLog, int]],
        prefetch: Prefetch.Config,
    ) -> None:
        self.items = items
        self.users = users
        self.context = context
        self.histories = histories
        self._prefetch = Prefetch(config=prefetch, work=self._work)

    def batches(self, requests: Requests, *, size: int, since: int = 0, before: int = 0) -> Iterator[RequestBatch]:
        """Batches of ``size`` requests in time order; only labels known in ``[since, before)`` are marked as known."""
        slices = (requests.slice(start, start + size) for start in range(0, len(requests), size))
        return self.each(slices, since=since, before=before)

    def each(self, parts: Iterable[Requests], *, since: int = 0, before: int = 0) -> Iterator[RequestBatch]:
        """One batch of each of ``parts``, see :meth:`batches`."""
        return self._prefetch((part, since, before) for part in parts)

    def _work(self, task: tuple[Requests, int, int]) -> RequestBatch:
        requests, since, before = task
        return self.batch(requests, since=since, before=before)

    def __reduce__(self) -> tuple[Callable[..., "BatchReader"], tuple[object, ...]]:
        # For a worker process, which works for others and never ahead of itself.
        return _reader, (self.items, self.users, self.context, self.histories)

    def batch(self, requests: Requests, *, since: int = 0, before: int = 0) -> RequestBatch:
        """One batch of all ``requests``."""
        found = {name: _found(log, requests, most) for name, (log, most) in self.histories.items()}
        seen = [requests.item, *(events.item for events, _ in found.values())]
        rows, position = np.unique(np.concatenate(seen), return_inverse=True)
        item_C, *item_L = np.split(position, np.cumsum([len(part) for part in seen])[:-1])
        supervision = requests.supervision
        return RequestBatch(
            items=keyed(self.items.features, self.items.code[rows]),
            users=keyed(self.users.features, self.users.code[requests.user]),
            context=keyed(self.context, requests.context),
            time_B=torch.from_numpy(requests.time),
            history={
                name: History(
                    item_L=torch.from_numpy(item),
                    surface_L=torch.from_numpy(events.surface.astype(np.int64)),
                    action_L=torch.from_numpy(events.action.astype(np.int64)),
                    time_L=torch.from_numpy(events.time),
                    offsets=torch.from_numpy(offsets),
                )
                for item, (name, (events, offsets)) in zip(item_L, found.items(), strict=True)
            },
            item_C=torch.from_numpy(item_C),
            surface_C=torch.from_numpy(requests.surface),
            dense_CF=torch.from_numpy(requests.dense),
            owner_C=torch.from_numpy(requests.owner),
            offsets=torch.from_numpy(requests.offsets),
            labels=Labels(
                label_CT=torch.from_numpy(supervision.label),
                known_CT=torch.from_numpy(supervision.known(since=since, before=before)),
            ),
        )


def _reader(
    items: Catalogue, users: Catalogue, context: list[str], histories: dict[str, tuple[EngagementLog, int]]
) -> BatchReader:
    config = Prefetch.Config(workers=0)
    return BatchReader(items=items, users=users, context=context, histories=histories, prefetch=config)


def _found(log: EngagementLog, requests: Requests, max_length: int) -> tuple[Events, np.ndarray]:
    """The histories of all requests, and offsets ``[B + 1]`` into them."""
    start, end = log.spans(requests.user_id, requests.time, max_length=max_length)
    return log.take(start, end), np.concatenate([[0], np.cumsum(end - start)])


def keyed(features: list[str], code: np.ndarray) -> KeyedJaggedTensor:
    """``code`` int64 ``[rows, len(features)]`` as a KeyedJaggedTensor with one value a key and row."""
    values = torch.from_numpy(np.ascontiguousarray(code.T)).reshape(-1)
    lengths = torch.ones(len(values), dtype=torch.int32)
    # The number of rows does not follow from the lengths where there is no feature.
    return KeyedJaggedTensor(keys=features, values=values, lengths=lengths, stride=len(code))
