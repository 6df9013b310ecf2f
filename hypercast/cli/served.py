"""``hypercast served``: makes a TAE log of what was served, and says whether it is what training would see."""

from pathlib import Path
from typing import Annotated

import typer

from hypercast.cli.output import Json, emit_rows
from streaming import config as configuration
from streaming.errors import ConfigError


def served(
    config: Annotated[Path, typer.Argument(help="Platform file of the run that was served.")],
    run: Annotated[Path | None, typer.Option("--run", help="Run folder instead of the file's.")] = None,
    window: Annotated[int | None, typer.Option(help="Index of the window; all not sealed yet by default.")] = None,
    drop: Annotated[
        bool, typer.Option("--drop", help="Remove what was served on days before the last one sealed.")
    ] = False,
    json: Json = False,
) -> None:
    """Seal windows of what was served, for experts to train on. Each must be over and its requests in the data set.

    Of each window: how many of its candidates were served, and with a vector; how many were served with other dense
    features, or another history, than the data set has.
    """
    from dataclasses import asdict

    from hypercast.registry import Registry
    from hypercast.runtime.config import PlatformConfig
    from hypercast.runtime.stream import workspace_of
    from hypercast.serving.logs import served as parts
    from hypercast.serving.logs.served_windows import ServedWindows

    if drop and window is not None:
        raise ConfigError(
            "--drop goes with sealing all that waits: of windows before --window nothing might be sealed yet"
        )
    platform = configuration.load(config, PlatformConfig)
    if run is not None:
        platform = platform.model_copy(update={"run": run})
    workspace = workspace_of(platform, platform.run)
    log = ServedWindows(platform.run / parts.IN_RUN, config=platform.log)
    registry = Registry(platform.run / "registry")
    if window is not None:
        chosen = [workspace.dataset.window(window)]
    else:
        waiting = [one for one in workspace.dataset.windows if log.sealed(one.index) is None]
        chosen = [one for one in waiting if any(part.num_rows for part in parts.parts(log.root, one))]
    published = platform.log.build(platform.run / "tae_log")
    reports = {
        one.index: log.seal(window=one, workspace=workspace, registry=registry, published=published) for one in chosen
    }
    emit_rows([{"window": index, **asdict(report)} for index, report in reports.items()], json)
    if drop and chosen:
        parts.drop(log.root, before=chosen[-1].start)
