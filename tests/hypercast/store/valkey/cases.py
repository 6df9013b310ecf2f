"""Rows whose vectors say which key and time they are of, so that any reader can tell a wrong one."""

from collections.abc import Callable

import numpy as np

from hypercast.store.engine import Engine, Layout, Rows
from hypercast.store.valkey.engine import ValkeyEngine
from tests.hypercast.store.valkey_server import ValkeyServer

Start = Callable[..., ValkeyServer]

FM, OLD = "FM@0002", "FM@0001"
LAYOUT = Layout(representation="penultimate", width=16, codec="fp16", row_bytes=32, model="ab12")


def keys(users: range) -> np.ndarray:
    """int64 [N, 3], one for each user."""
    return np.array([(0, user, -7 * user) for user in users], np.int64).reshape(-1, 3)


def payload(key: np.ndarray, computed_at: np.ndarray, row_bytes: int = LAYOUT.row_bytes) -> np.ndarray:
    """uint8 [N, row_bytes], a pattern of user and time."""
    mixed = key[:, 1] * 131 + computed_at * 31
    return ((mixed[:, None] * (1 + np.arange(row_bytes))) >> 3).astype(np.uint8)


def put(engine: Engine, users: range, *, at: int = 100, snapshot: str = FM, layout: Layout = LAYOUT) -> None:
    key, computed_at = keys(users), np.full(len(users), at)
    data = payload(key, computed_at, layout.row_bytes)
    engine.put(snapshot, layout, key=key, computed_at=computed_at, history_end=computed_at - 1, payload=data)


def check(rows: Rows, users: range, *, at: int | None = None) -> None:
    """All are found, of ``at`` if given, and none is another's."""
    assert rows.found.all() and len(rows.found) == len(users)
    assert at is None or (rows.computed_at == at).all()
    assert (rows.history_end == rows.computed_at - 1).all()
    np.testing.assert_array_equal(rows.payload, payload(keys(users), rows.computed_at, rows.payload.shape[1]))


def engine_on(server: ValkeyServer, **settings: object) -> ValkeyEngine:
    values = {"urls": [server.url], "patience": 20.0, "batch": 64, **settings}
    return ValkeyEngine.Config.model_validate(values).build()
