"""``hypercast speculate`` from the command line, and the service that reads what it has put."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hypercast.cli.main import app
from hypercast.serving.speculation import rounds
from hypercast.serving.speculation.speculator import Speculator
from streaming.config import dump
from streaming.errors import ConfigError
from tests.hypercast.serving.conftest import Played
from tests.hypercast.serving.world import FIRST_ITEM, configured, serving

STRANGER = 2**40


def test_a_cached_service_answers_from_what_was_speculated(played: Played, tmp_path: Path) -> None:
    config = configured(played, tmp_path, mode="cached")
    file = tmp_path / "platform.yaml"
    file.write_text(dump(config))
    result = CliRunner().invoke(app, ["speculate", str(file), "--pairs", "30", "--place", "store", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert (told["pairs"], told["snapshot"]) == (30, "FM@0005") and told["as_of"].endswith("+00:00")
    settings = {"budget": {"pairs": 30}, "predictor": {"source": {"place": "store"}}}
    speculator = Speculator.Config.model_validate(settings).build(
        model=config.foundation.model, workspace=played.workspace(), registry=played.registry
    )
    last = played.workspace().dataset.windows[-1]
    pairs = speculator.choose(last.end, horizon=last.end - last.start).pairs
    user, surface = int(pairs.user_id[0]), int(pairs.surface[0])
    mine = pairs.item_id[(pairs.user_id == user) & (pairs.surface == surface)].tolist()
    other = next(item for item in range(FIRST_ITEM, FIRST_ITEM + 60) if item not in mine)
    asked: dict[str, Any] = {"surface": f"surface_{surface}", "item_ids": [mine[0], other]}
    with serving(config) as world:
        dense = {name: [1, 2] for name in world.given}
        answer = world.rank(user_id=user, dense=dense, **asked)["embeddings"]
        assert answer["rung"] == ["FRESH", "USER"] and answer["snapshot"] == "FM@0005"
        assert world.rank(user_id=STRANGER, dense=dense, **asked)["embeddings"]["rung"] == ["ZEROS", "ZEROS"]
        assert set(world.rank(at=7200, user_id=user, dense=dense, **asked)["embeddings"]["rung"]) == {"STALE", "USER"}


def test_it_keeps_on_until_it_is_interrupted(played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: rounds.Rounds, *, every: float) -> Any:
        assert every == 3600
        yield self.run()
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds.Rounds, "keep_on", interrupt)
    file = tmp_path / "platform.yaml"
    file.write_text(dump(configured(played, tmp_path)))
    result = CliRunner().invoke(app, ["speculate", str(file), "--every", "3600", "--pairs", "5", "--json"])
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["pairs"] for line in result.output.splitlines()] == [5]


def test_it_can_be_of_an_earlier_time(played: Played, tmp_path: Path) -> None:
    file = tmp_path / "platform.yaml"
    file.write_text(dump(configured(played, tmp_path)))
    result = CliRunner().invoke(app, ["speculate", str(file), "--as-of", "2024-01-22", "--pairs", "5", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert (told["as_of"], told["snapshot"], told["window"]) == ("2024-01-22T00:00:00+00:00", "FM@0004", 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--share", "-1"], "budget.share"),
        (["--place", "planet"], "planet"),
        (["--every", "60", "--as-of", "2024-02-01"], "one round"),
    ],
)
def test_what_it_refuses(played: Played, tmp_path: Path, options: list[str], words: str) -> None:
    file = tmp_path / "platform.yaml"
    file.write_text(dump(configured(played, tmp_path)))
    result = CliRunner().invoke(app, ["speculate", str(file), *options])
    assert isinstance(result.exception, ConfigError) and words in str(result.exception)
