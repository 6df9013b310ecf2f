"""Encoding the histories of a batch: all of them, or what is new of them since they were encoded for other calls.

Shape legend: B requests, D model width, L history tokens, P tokens of context and history.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foundation.histories import EncodedHistories, Entry, Key, events_of, keys_of
from foundation.hstu.cache import KeyValueCache
from foundation.hstu.jagged import offsets_of
from foundation.model import CONTEXT_TOKENS, Embedded, FoundationModel
from streaming.batch import RequestBatch


@dataclass(frozen=True, kw_only=True)
class Reused:
    """Requests with a history, by how much of it was kept: all (``hit``), a beginning (``extended``), or nothing."""

    hit: int = 0
    extended: int = 0
    miss: int = 0


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A batch with its histories encoded.

    Attributes:
        batch: as it was given.
        embedded: its features.
        caches: of every request's context and history, layer by layer.
        reused: how much was kept; nothing where nothing was looked for.
    """

    batch: RequestBatch
    embedded: Embedded
    caches: list[KeyValueCache]
    reused: Reused = Reused()


@dataclass(frozen=True, kw_only=True)
class _Known:
    """How many first events of a request ``entry`` holds; 0 and None where it holds nothing of use."""

    entry: Entry | None = None
    events: int = 0

    @property
    def tokens(self) -> int:
        return CONTEXT_TOKENS + self.events if self.entry is not None else 0


def encoded(model: FoundationModel, batch: RequestBatch) -> Encoded:
    """All anew."""
    embedded = model.embed(batch)
    caches = model.stack.encode(*model.prefix(batch, batch.history["all"], embedded))
    return Encoded(batch=batch, embedded=embedded, caches=caches)


def encoded_from(
    kept: EncodedHistories, model: FoundationModel, batch: RequestBatch, *, owners: Sequence[Hashable]
) -> Encoded:
    """What is kept is taken; the rest is encoded in one batch, and kept from then on.

    Gives what :func:`encoded` does up to rounding. To the bit, if all of it is encoded now, or all of it is kept and
    was encoded in a batch of the same shape.

    Args:
        owners: whose histories they are, one a request.
    """
    lengths = batch.history["all"].offsets.diff().tolist()
    keys, events = keys_of(model, batch, owners), events_of(model, batch).split(lengths, dim=1)
    known = [_known(kept, model, *each) for each in zip(keys, events, strict=True)]
    made = _completed(model, batch, known) if any(each.events for each in known) else encoded(model, batch)
    for row, (key, event_QL, each) in enumerate(zip(keys, events, known, strict=True)):
        if each.events < event_QL.shape[1]:
            own = made.caches if len(batch) == 1 else [layer.sequences(row, row + 1).own() for layer in made.caches]
            kept.put(key, Entry(event_QL=event_QL.clone(), layers=own))
    asked = [(each.events, length) for each, length in zip(known, lengths, strict=True) if length]
    reused = Reused(
        hit=sum(events == length for events, length in asked),
        extended=sum(0 < events < length for events, length in asked),
        miss=sum(events == 0 for events, _ in asked),
    )
    return replace(made, reused=reused)


def _known(kept: EncodedHistories, model: FoundationModel, key: Key, event_QL: Tensor) -> _Known:
    found = kept.find(key, event_QL)
    if found is None:
        return _Known()
    entry, events = found
    stack = model.config.stack
    if stack.max_distance is not None and stack.full_tail and not events == event_QL.shape[1] == entry.length:
        return _Known()  # the tail of another length sees other events: HSTUStack.encode
    return _Known(entry=entry, events=events)


def _completed(model: FoundationModel, batch: RequestBatch, known: Sequence[_Known]) -> Encoded:
    """The histories of ``batch``, of which something is known of at least one."""
    history, embedded, stored = batch.history["all"], model.embed(batch), _stored(batch, known)
    tokens_B = torch.tensor([each.tokens for each in known])
    new_B = CONTEXT_TOKENS + history.offsets.diff() - tokens_B
    rows = new_B.nonzero()[:, 0].tolist()
    if rows:
        token_PD, prefix = model.prefix(batch, history, embedded)
        lengths_B = prefix.offsets.diff()
        place_P = torch.arange(len(token_PD)) - prefix.offsets[:-1].repeat_interleave(lengths_B)
        new_P = place_P >= tokens_B.repeat_interleave(lengths_B)
        sequences = replace(
            prefix,
            offsets=offsets_of(new_B[rows]),
            num_targets=prefix.num_targets[rows],
            timestamps=prefix.timestamps[new_P],
        )
        # Without anything to extend it is the very computation of `encoded`, to the bit.
        before = _together([stored[row] for row in rows]) if tokens_B[rows].any() else None
        after = model.stack.encode(token_PD[new_P], sequences, before)
        for place, row in enumerate(rows):
            stored[row] = [layer.sequences(place, place + 1) for layer in after]
    return Encoded(batch=batch, embedded=embedded, caches=_together(stored))


def _stored(batch: RequestBatch, known: Sequence[_Known]) -> list[list[KeyValueCache]]:
    """Of each request, layer by layer, what is known of it, at the request's own times."""
    some = next(each.entry for each in known if each.entry is not None)
    history = batch.history["all"]
    events = history.time_L.split(history.offsets.diff().tolist())
    stored = []
    for each, time_1, time_l in zip(known, batch.time_B.split(1), events, strict=True):
        times = torch.cat([time_1.expand(CONTEXT_TOKENS), time_l])[: each.tokens]
        stored.append([layer.beginning(times) for layer in (each.entry or some).layers])
    return stored


def _together(parts: Sequence[Sequence[KeyValueCache]]) -> list[KeyValueCache]:
    """By layer, from by request and layer."""
    return [KeyValueCache.together(layer) for layer in zip(*parts, strict=True)]
