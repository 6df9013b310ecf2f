"""``hypercast store``: what snapshots, embedding log and online store of a run hold, and whether it is undamaged."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hypercast.cli.output import DEMO, Json, RunFolder, emit, emit_rows
from hypercast.errors import RegistryError, StoreError
from hypercast.pins import parse_snapshot_name
from streaming import config as configuration

if TYPE_CHECKING:
    from hypercast.registry import Registry
    from hypercast.store.engine import Engine
    from hypercast.store.tae_log import TaeLog

store = typer.Typer(no_args_is_help=True, help="Snapshots, the log of target-aware embeddings, the online store.")


@store.command("ls")
def store_ls(run: RunFolder = DEMO, json: Json = False) -> None:
    """One row for each snapshot, segment of the log, and snapshot in the online store."""
    registry, log = _opened(run)
    rows: list[dict[str, Any]] = []
    for lineage in registry.lineages():
        named = _names(registry.channels(lineage))
        for snapshot in registry.list(lineage):
            detail = f"watermark {snapshot.watermark}, {snapshot.share_written:.1%} written"
            rows.append(_row("snapshot", snapshot.name, detail=detail, channels=named.get(snapshot.name, "")))
    for segment in log.segments():
        facts = segment.facts
        detail = f"{facts.dtype}, sha256 {segment.sha256[:12]}"
        rows.append(_row("segment", facts.snapshot, window=facts.window, rows=facts.rows, detail=detail))
    with _online(run) as online:
        rows += _online_rows(online) if online else []
    emit_rows(rows, json)


@store.command("inspect")
def store_inspect(
    name: Annotated[str, typer.Argument(help="Snapshot, such as FM@0007.")], run: RunFolder = DEMO, json: Json = False
) -> None:
    """All that is known of one snapshot: its manifest, what it published to the log and to the online store."""
    parse_snapshot_name(name)
    registry, log = _opened(run)
    found: dict[str, Any] = {"name": name}
    try:
        snapshot = registry.get(name)
    except RegistryError:
        found["registry"] = None  # pruned, or of another machine; what it published may be here
    else:
        found |= {key: snapshot.manifest[key] for key in ("parent", "watermark", "dims", "dtype", "tasks", "metrics")}
        found["share_written"] = snapshot.share_written
        found["objects"] = len(snapshot.weights.objects)
        named = registry.channels(snapshot.lineage)
        found["channels"] = [channel for channel, target in named.items() if target == name]
    found["log"] = {
        segment.window: {"rows": segment.facts.rows, "sha256": segment.sha256}
        for segment in log.segments()
        if segment.snapshot == name
    }
    with _online(run) as online:
        layout = online.layout(name) if online else None
        if online and layout:
            pointers = [pointer for pointer, target in online.pointers().items() if target == name]
            found["online"] = {**layout.to_json(), **asdict(online.stats(name)), "pointers": pointers}
    if "registry" in found and not found["log"] and "online" not in found:
        registry.get(name)  # says what there is instead
    emit(found, json)


@store.command("verify")
def store_verify(run: RunFolder = DEMO, json: Json = False) -> None:
    """Recompute every digest of snapshots, log, probe, adapters and online store; names all that is damaged, and exits
    with status 1.
    """
    from transfer import probe

    registry, log = _opened(run)
    damages = [*registry.verify(), *log.verify(), *probe.verify(run / "probe")]
    with _online(run) as online:
        damages += online.verify() if online else []
    if json or not damages:
        emit({"damaged": len(damages), "damages": [asdict(damage) for damage in damages]}, json)
    else:
        emit_rows([asdict(damage) for damage in damages], json)
    raise typer.Exit(1 if damages else 0)


@store.command("gc")
def store_gc(
    keep: Annotated[
        int | None, typer.Option(min=1, help="Newest snapshots of each lineage that stay; without, all.")
    ] = None,
    run: RunFolder = DEMO,
    json: Json = False,
) -> None:
    """Free what nothing refers to. Snapshots that are pinned or in a channel, and those that a rollback of either would
    return to, stay, whatever --keep says.
    """
    registry, log = _opened(run)
    newest = sys.maxsize if keep is None else keep
    removed = [name for lineage in registry.lineages() for name in registry.prune(lineage, keep=newest)]
    freed = {"log": log.collect()}
    with _online(run) as online:
        if online:
            freed["online"] = online.collect()
    emit({"snapshots removed": removed, "bytes freed": freed}, json)


def _opened(run: Path) -> "tuple[Registry, TaeLog]":
    from hypercast.registry import Registry
    from hypercast.store.tae_log import TaeLog

    if not run.is_dir():
        raise StoreError(f"{run}: no such folder. Give that of a platform's run: --run {DEMO}.")
    return Registry(run / "registry"), TaeLog(run / "tae_log")


@contextmanager
def _online(run: Path) -> "Iterator[Engine | None]":
    """The online store's engine, if the run's platform has one."""
    from hypercast.runtime.config import PlatformConfig

    file = run / "platform.yaml"
    online = configuration.load(file, PlatformConfig).online if file.exists() else None
    if online is None:
        yield None
        return
    engine = online.build(run / "online").engine
    try:
        yield engine
    finally:
        engine.close()


def _online_rows(engine: "Engine") -> list[dict[str, Any]]:
    rows = []
    named = _names(engine.pointers())
    for name in engine.snapshots():
        layout, stats = engine.layout(name), engine.stats(name)
        detail = f"{layout.width} x {layout.codec}, {stats.bytes} bytes" if layout else "dropped"
        rows.append(_row("online", name, rows=stats.rows, detail=detail, channels=named.get(name, "")))
    return rows


def _row(kind: str, name: str, *, detail: str, window: Any = "", rows: Any = "", channels: str = "") -> dict[str, Any]:
    return {"kind": kind, "name": name, "window": window, "rows": rows, "detail": detail, "channels": channels}


def _names(channels: dict[str, str]) -> dict[str, str]:
    """Channels by the snapshot that they name."""
    return {
        target: ", ".join(sorted(channel for channel, each in channels.items() if each == target))
        for target in channels.values()
    }
