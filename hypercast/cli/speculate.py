"""``hypercast speculate``: vectors of what will probably be asked for next, put into a platform's online store."""

import contextlib
import dataclasses
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hypercast.cli.output import Json, emit, progress
from streaming import config as configuration
from streaming.errors import ConfigError

if TYPE_CHECKING:
    from hypercast.serving.speculation.rounds import Round


def speculate(
    config: Annotated[Path, typer.Argument(help="Platform file; its key `online` is the store.")],
    run: Annotated[Path | None, typer.Option("--run", help="Run folder instead of the file's.")] = None,
    share: Annotated[float, typer.Option(help="Budget: of what will be asked for, as far as the past tells.")] = 1.0,
    pairs: Annotated[int | None, typer.Option(help="Budget: candidates a round, instead of --share.")] = None,
    encoding: Annotated[float, typer.Option(help="What encoding a user costs of the budget, in candidates.")] = 0.0,
    place: Annotated[str | None, typer.Option(help="Context feature that says where requests come from.")] = None,
    as_of: Annotated[
        datetime | None,
        typer.Option("--as-of", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="UTC; by default the log's end."),
    ] = None,
    every: Annotated[
        float | None, typer.Option(min=1, help="Go on: look so often, in seconds, for a newer snapshot or more log.")
    ] = None,
    json: Json = False,
) -> None:
    """Compute the vectors that will probably be asked for next, by the newest snapshot, within a budget.

    Prints what was put, and how much of what the last window asked for a round at its start would have covered.
    """
    from hypercast.runtime.config import PlatformConfig
    from hypercast.serving.speculation.rounds import Rounds
    from hypercast.serving.speculation.speculator import Speculator

    if as_of is not None and every is not None:
        raise ConfigError("--as-of is for one round, and --every goes on with the log. Give one of them.")
    platform = configuration.load(config, PlatformConfig)
    if run is not None:
        platform = platform.model_copy(update={"run": run})
    values = {
        "predictor": {"source": {"place": place}},
        "budget": {"share": share, "pairs": pairs, "encoding": encoding},
    }
    settings = configuration.parse(values, Speculator.Config, source="hypercast speculate")
    with contextlib.closing(Rounds(config=platform, speculator=settings)) as rounds:
        if every is None:
            with progress(json) as advance:
                advance("predicting and computing", 0.0)
                made = rounds.run(None if as_of is None else round(as_of.replace(tzinfo=UTC).timestamp()) * 1_000_000)
                advance(f"put {made.pairs} vectors", 1.0)
            _tell(made, json)
            return
        with contextlib.suppress(KeyboardInterrupt):
            for made in rounds.keep_on(every=every):
                _tell(made, json)


def _tell(made: "Round", json: bool) -> None:
    """Print a round, at once: others may wait for the line."""
    at = datetime.fromtimestamp(made.as_of / 1_000_000, tz=UTC).isoformat()
    emit({**dataclasses.asdict(made), "as_of": at}, json)
    sys.stdout.flush()
