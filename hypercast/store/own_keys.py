"""Keys of the online store's rows. Engines know three integers; this is what they mean.

===========================  ==================================================================================
(surface, user, item)        a candidate's vector; surface and item are not negative
(-1, user, -1)               a user's aggregate
(-2, SHA-256 of NAME)        a mark: since when NAME is true of the snapshot (``computed_at``); 128 bits of it
(-3, version, piece)         the adapter to that version, cut into pieces as long as a row
(-4 - piece, surface, item)  whose vectors of that item were put last (hypercast.store.neighbours)
===========================  ==================================================================================

All are int64 [N, 3].
"""

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np

from hypercast.errors import StoreError
from hypercast.pins import parse_snapshot_name
from hypercast.store.engine import Integers, are_integers

USER, MARK, ADAPTER, HOLDERS = -1, -2, -3, -4


def of_candidates(surface: Any, user_id: Any, item_id: Any) -> Integers:
    """Keys of N candidates.

    Raises:
        StoreError: not integers [N] of 64 bits, or a surface or item that is negative.
    """
    columns = np.asarray(surface), np.asarray(user_id), np.asarray(item_id)
    rows = columns[1].shape
    for name, column in zip(("surface", "user_id", "item_id"), columns, strict=True):
        if column.ndim != 1 or column.shape != rows or not are_integers(column):
            raise StoreError(
                f"online store: {name} has shape {column.shape} and dtype {column.dtype}; needed are integers [N] "
                "below 2**63, as many as user ids. Example: np.array([4, 7])."
            )
    key = np.empty((len(columns[1]), 3), np.int64)
    key[:, 0], key[:, 1], key[:, 2] = columns
    if len(key) and np.minimum(key[:, 0], key[:, 2]).min() < 0:
        row = int(np.minimum(key[:, 0], key[:, 2]).argmin())
        raise StoreError(
            f"online store: key {row} is {key[row].tolist()}; surface and item must not be negative. Number surfaces "
            "as the data set does, from 0."
        )
    return key


def of_users(user_id: Any) -> Integers:
    """Keys of N users' aggregates; raises as :func:`of_candidates`."""
    user_id = np.asarray(user_id)
    nobody = np.zeros(user_id.shape, np.int64)
    key = of_candidates(nobody, user_id, nobody)
    key[:, 0] = key[:, 2] = USER
    return key


@lru_cache(maxsize=1024)
def of_mark(name: str) -> Integers:
    """The key of one mark."""
    digest = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], "<i8")
    key = np.array([[MARK, *digest]], np.int64)
    key.flags.writeable = False  # all who ask get the same one
    return key


def of_adapter(target: str, pieces: int) -> Integers:
    """Keys of the first ``pieces`` pieces of the adapter to snapshot ``target``."""
    key = np.full((pieces, 3), ADAPTER, np.int64)
    key[:, 1], key[:, 2] = parse_snapshot_name(target)[1], np.arange(pieces)
    return key


def of_holders(thing_T2: Integers, pieces: int) -> Integers:
    """Keys of all pieces of T things, int64 (surface, item), [T * pieces, 3]; those of one thing together."""
    key = np.empty((len(thing_T2), pieces, 3), np.int64)
    key[:, :, 0] = HOLDERS - np.arange(pieces)
    key[:, :, 1:] = thing_T2[:, None]
    return key.reshape(-1, 3)
