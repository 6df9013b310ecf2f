"""``hypercast serve``: answers requests over HTTP from what a platform's run has published and exported."""

from pathlib import Path
from typing import Annotated, Any

import typer

from streaming import config as configuration


def serve(
    config: Annotated[Path, typer.Argument(help="Platform file; its key `serving` says how (docs/serving.md).")],
    run: Annotated[Path | None, typer.Option("--run", help="Run folder instead of the file's.")] = None,
    host: Annotated[str | None, typer.Option(help="Where to listen, instead of the file's.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Instead of the file's; 0: any.")] = None,
    mode: Annotated[str | None, typer.Option(help="expert, cached or live, instead of the file's.")] = None,
) -> None:
    """Serve POST /v1/rank from a platform's run until interrupted; newer models are taken up as they appear."""
    from hypercast.runtime.config import PlatformConfig
    from hypercast.serving import deploy
    from hypercast.serving.config import ServingConfig

    platform = configuration.load(config, PlatformConfig)
    given = {"host": host, "port": port, "mode": mode}
    changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    serving = (platform.serving or ServingConfig()).model_dump() | changed
    update: dict[str, Any] = {"serving": configuration.parse(serving, ServingConfig, source=f"{config}: serving")}
    if run is not None:
        update["run"] = run
    deploy.run(platform.model_copy(update=update))
