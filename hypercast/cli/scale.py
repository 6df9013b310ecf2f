"""``hypercast scale``: how many machines a plan needs, and what saturates first."""

from pathlib import Path
from typing import Annotated

import typer

from hypercast.cli.output import Json, emit_rows
from streaming import config as configuration


def scale(
    plan: Annotated[Path, typer.Argument(help="A plan's file, such as configs/scale/billion_users.yaml.")],
    json: Json = False,
) -> None:
    """Machines of every part of a platform, the largest first, with the resource that saturates there."""
    from hypercast.runtime import capacity

    pools = capacity.pools(configuration.load(plan, capacity.Plan))
    rows = [
        {
            "part": pool.need.part,
            "hosts": pool.hosts,
            "saturates": pool.saturates,
            **{name: round(getattr(pool.need, name), 1) for name in capacity.RESOURCES},
        }
        for pool in pools
    ]
    rows.append(
        {
            "part": "all",
            "hosts": sum(pool.hosts for pool in pools),
            "saturates": f"{pools[0].saturates} of {pools[0].need.part}",
            **{name: round(sum(getattr(pool.need, name) for pool in pools), 1) for name in capacity.RESOURCES},
        }
    )
    emit_rows(rows, json)
