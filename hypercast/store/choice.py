"""Which engine keeps the online store's rows: ``{kind: local, path: ...}`` in a file, an engine's Config in memory.

An engine is imported when a configuration names it: nobody loads the client of a server that they do not use.
"""

from importlib import import_module
from typing import Annotated, Any, cast

import pydantic

from hypercast.store.engine import Engine
from streaming.config import Config

ENGINES = {
    "memory": ("hypercast.store.memory", "MemoryEngine"),
    "local": ("hypercast.store.local.engine", "LocalEngine"),
    "valkey": ("hypercast.store.valkey.engine", "ValkeyEngine"),
}
EXAMPLE = "{kind: local, path: /data/online}"


def config_class(kind: str) -> type[Config]:
    """The Config of the engine called ``kind``: ``memory``, ``local`` or ``valkey``."""
    module, name = ENGINES[kind]
    return getattr(import_module(module), name).Config


def build(config: Config) -> Engine:
    """The engine that ``config``, one of an engine's, describes."""
    return cast(Any, config).build()


def _parse(value: Any) -> Any:
    if isinstance(value, Config):
        _kind(value)
        return value
    if not isinstance(value, dict) or value.get("kind") not in ENGINES:
        raise ValueError(f"an engine has a kind, one of {', '.join(ENGINES)}. Example: {EXAMPLE}")
    kind = config_class(value["kind"])
    try:
        return kind.model_validate({name: each for name, each in value.items() if name != "kind"})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "(all of it)"
        raise ValueError(
            f"engine {value['kind']}, key '{where}': {first['msg']}; allowed keys are kind, "
            f"{', '.join(kind.model_fields)}"
        ) from None


def _dump(value: Config) -> dict[str, Any]:
    return {"kind": _kind(value), **value.model_dump(mode="json")}


def _kind(value: Config) -> str:
    """The name of the engine whose Config ``value`` is; asks for no import that has not happened."""
    for kind, named in ENGINES.items():
        if (type(value).__module__, type(value).__qualname__) == (named[0], f"{named[1]}.Config"):
            return kind
    raise ValueError(f"{type(value)} is not the Config of an engine. Example: {EXAMPLE}")


EngineConfig = Annotated[Config, pydantic.PlainValidator(_parse), pydantic.PlainSerializer(_dump)]
"""A field that holds an engine's Config."""
