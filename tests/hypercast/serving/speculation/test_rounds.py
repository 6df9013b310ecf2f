"""Rounds beside a platform's run: what they are as of, what they tell, and when there is another."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hypercast.errors import ConflictError, StoreError
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.jobs import FoundationJob
from hypercast.serving.speculation.rounds import Rounds
from hypercast.serving.speculation.speculated import Speculated
from hypercast.serving.speculation.speculator import Speculator
from hypercast.store.online import OnlineStore
from streaming.errors import ConfigError
from tests.hypercast.serving.conftest import Played
from tests.hypercast.serving.world import configured

SETTINGS = Speculator.Config.model_validate({"budget": {"pairs": 20}})


class Stopped(Exception):
    """By the test, in place of Ctrl-C."""


@pytest.fixture
def config(played: Played, tmp_path: Path) -> PlatformConfig:
    return configured(played, tmp_path)


@pytest.fixture
def rounds(config: PlatformConfig) -> Iterator[Rounds]:
    with contextlib.closing(Rounds(config=config, speculator=SETTINGS)) as made:
        yield made


def waits(*happens: Callable[[], Any]) -> Callable[[float], None]:
    """At each wait the next of them happens; then it is over."""
    left = list(happens)

    def wait(seconds: float) -> None:
        assert seconds == 60
        if not left:
            raise Stopped
        left.pop(0)()

    return wait


def nothing() -> None:
    """Happens."""


def kept_on(rounds: Rounds, *happens: Callable[[], Any]) -> list[str]:
    """Snapshots of the rounds that there are."""
    made: list[str] = []
    with contextlib.suppress(Stopped):
        made.extend(each.snapshot for each in rounds.keep_on(every=60, wait=waits(*happens)))
    return made


def test_it_tells_what_a_round_before_the_last_window_would_have_covered(played: Played, rounds: Rounds) -> None:
    made = rounds.run()
    last = played.workspace().dataset.windows[-1]
    assert (made.as_of, made.window, made.snapshot, made.pairs) == (last.end, last.index, "FM@0005", 20)
    speculator = SETTINGS.build(
        model=played.config.foundation.model, workspace=played.workspace(), registry=played.registry
    )
    would = speculator.run(last.start, horizon=last.end - last.start)
    pairs = set(zip(would.user_id.tolist(), would.item_id.tolist(), would.surface.tolist(), strict=True))
    asked = played.workspace().requests(last.index)
    keys = zip(asked.user_id[asked.owner].tolist(), asked.item_id.tolist(), asked.surface.tolist(), strict=True)
    assert made.asked == len(asked.item_id)
    assert made.covered == sum(key in pairs for key in keys) > 0


def test_as_of_earlier_nothing_later_is_used(played: Played, rounds: Rounds) -> None:
    windows = played.workspace().dataset.windows
    made = rounds.run(windows[3].end - 1)
    assert (made.snapshot, made.window) == ("FM@0004", windows[2].index)
    for wrong in (windows[-1].end + 1, windows[0].end - 1):
        with pytest.raises(ConfigError, match="as of"):
            rounds.run(wrong)


def test_there_is_another_round_when_there_is_a_newer_snapshot(
    played: Played, config: PlatformConfig, rounds: Rounds
) -> None:
    def learn() -> None:
        job = FoundationJob(config, config.run)
        job.run_window(played.next_window.index)
        job.publish(played.next_window.index + 1)

    assert kept_on(rounds, nothing, learn, nothing) == ["FM@0005", "FM@0006"]


def test_a_round_that_lost_is_tried_again(rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> None:
    put = Speculated.put

    def lose(*given: Any) -> None:
        monkeypatch.setattr(Speculated, "put", put)
        raise ConflictError("somebody else has published")

    monkeypatch.setattr(Speculated, "put", lose)
    assert kept_on(rounds) == []
    monkeypatch.setattr(Speculated, "put", lose)
    assert kept_on(rounds, nothing, nothing) == ["FM@0005"]


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"online": None}, ConfigError, "there is none"),
        ({"online": OnlineStore.Config(representation="user")}, ConfigError, "'user'"),
        ({"run": Path("/nowhere")}, StoreError, "hypercast run"),
    ],
)
def test_what_it_refuses(config: PlatformConfig, changed: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Rounds(config=config.model_copy(update=changed), speculator=SETTINGS)
