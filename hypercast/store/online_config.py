"""What an online store is built from."""

from typing import Literal

import pydantic

from hypercast.codec import rows as codecs
from hypercast.store.choice import EngineConfig
from hypercast.store.status import Freshness


class OnlineConfig(Freshness):
    """Ages (seconds) up to which a vector is FRESH, and after which it is EXPIRED; and:

    Attributes:
        representation: name of the vectors.
        codec: how they are kept; None keeps them as the snapshot publishes them. Experts refuse another one than
            their pin has.
        engine: where they are kept, ``{kind: local, path: ...}``, ``{kind: valkey, urls: ...}`` or
            ``{kind: memory}``; None takes a local engine in the folder that the store is built with.
        unreachable: when a server does not answer within the engine's patience: ``wait`` raises, ``ladder``
            answers reads with zeros, counts them, and says so once.
        ask_again: seconds for which ``ladder`` then answers at once, without asking the server.
        believed_for: seconds for which a pointer is not asked for again. More than 0 saves a server a round trip a
            read; a moved pointer is then followed that much later.
        adapter_error: greatest relative error of an adapter that is applied.
        miss: what stands in for a vector that is not there: ``user``, the user's aggregate; ``nearest``, the item's
            vector of the user most like this one (:mod:`hypercast.store.neighbours`), and the aggregate where there
            is none. Whoever puts rows says ``nearest`` too, or they have no neighbours.
    """

    representation: str = "penultimate"
    codec: codecs.Name | None = None
    engine: EngineConfig | None = None
    unreachable: Literal["wait", "ladder"] = "wait"
    ask_again: float = pydantic.Field(default=1.0, ge=0)
    believed_for: float = pydantic.Field(default=0.0, ge=0)
    adapter_error: float = pydantic.Field(default=0.3, gt=0)
    miss: Literal["user", "nearest"] = "user"
