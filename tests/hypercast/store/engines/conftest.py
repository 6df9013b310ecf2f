"""The engines that the contract is held against: one line each in :data:`PLACES`."""

from collections.abc import Callable, Iterator
from typing import Protocol

import pytest

from hypercast.store.engine import Engine
from hypercast.store.local.engine import LocalEngine
from hypercast.store.memory import MemoryEngine
from tests.hypercast.store.valkey_place import ValkeyPlace


class Place(Protocol):
    """Where rows are kept, empty at first.

    Attributes:
        persistent: what was committed is there when an engine is closed and another one opened.
        shared: engines open at the same time see each other's commits.
    """

    persistent: bool
    shared: bool

    def open(self) -> Engine:
        """A fresh engine on the rows kept here."""


class Memory:
    persistent = shared = False

    def __init__(self, request: pytest.FixtureRequest) -> None:
        pass

    def open(self) -> Engine:
        return MemoryEngine.Config().build()


class Local:
    persistent = shared = True
    bulk_bytes = 1 << 20

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.path = request.getfixturevalue("tmp_path_factory").mktemp("local") / "store"

    def open(self) -> Engine:
        return LocalEngine.Config(path=self.path, max_segments=3, bulk_bytes=self.bulk_bytes).build()


class LocalBulk(Local):
    """Every put goes to the disk at once."""

    bulk_bytes = 1


# Each is called for an empty place, several times in one test by the state machine; a server comes from
# request.getfixturevalue("name of a session-scoped fixture").
PLACES: dict[str, Callable[[pytest.FixtureRequest], Place]] = {
    "memory": Memory,
    "local": Local,
    "local-bulk": LocalBulk,
    "valkey": ValkeyPlace,
}


class Opened:
    """A place whose engines are closed at the end of the test."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.persistent, self.shared = place.persistent, place.shared
        self._engines: list[Engine] = []

    def open(self) -> Engine:
        self._engines.append(self.place.open())
        return self._engines[-1]

    def close(self) -> None:
        for engine in self._engines:
            engine.close()


@pytest.fixture(params=PLACES)
def make_place(request: pytest.FixtureRequest) -> Iterator[Callable[[], Opened]]:
    """Call it for an empty place."""
    made: list[Opened] = []

    def make() -> Opened:
        made.append(Opened(PLACES[request.param](request)))
        return made[-1]

    yield make
    for place in made:
        place.close()


@pytest.fixture
def place(make_place: Callable[[], Opened]) -> Opened:
    return make_place()


@pytest.fixture
def engine(place: Opened) -> Engine:
    return place.open()


@pytest.fixture
def shared(place: Opened) -> Opened:
    """A place whose engines see each other's commits."""
    if not place.shared:
        pytest.skip("no two engines share this place")
    return place


@pytest.fixture
def persistent(place: Opened) -> Opened:
    """A place that keeps what was committed."""
    if not place.persistent:
        pytest.skip("this place keeps nothing")
    return place
