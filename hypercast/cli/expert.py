"""``hypercast expert``: spin up an expert of a surface, train it, promote it; experts and their pins."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hypercast.cli.output import DEMO, Json, RunFolder, emit, emit_rows, progress
from streaming import config as configuration

if TYPE_CHECKING:
    from hypercast.pins import Pin
    from hypercast.runtime.config import PlatformConfig

expert = typer.Typer(no_args_is_help=True, help="Experts: create, train, promote, pin.")


@expert.command("create")
def expert_create(
    name: str,
    surface: Annotated[str, typer.Option(help="Surface whose requests it ranks.")],
    task: Annotated[str | None, typer.Option(help="Task that it is judged by; without, the data set's first.")] = None,
    like: Annotated[str | None, typer.Option(help="Expert whose file to start from.")] = None,
    mode: Annotated[str | None, typer.Option(help="What it takes from the foundation model.")] = None,
    run: RunFolder = DEMO,
    json: Json = False,
) -> None:
    """Write the file of a new expert of a surface, to be edited or trained as it is."""
    from hypercast.runtime import spinup

    path, pin, backfill = spinup.create(_platform(run), name, surface=surface, task=task, like=like, mode=mode)
    emit({"expert": name, "file": str(path), "pinned to": pin.target, "backfill": backfill}, json)


@expert.command("train")
def expert_train(
    name: str,
    backfill: Annotated[
        int | None, typer.Option(help="How many of the data set's last windows to replay; 12 by default.", min=1)
    ] = None,
    run: RunFolder = DEMO,
    json: Json = False,
) -> None:
    """Replay the last windows from the TAE log, the control beside the expert, and say what it gains."""
    begun = time.perf_counter()
    from hypercast.runtime import promotion, spinup

    job = spinup.SpinUp(platform=_platform(run), name=name)
    opened = time.perf_counter() - begun
    with progress(json) as advance:
        version = job.train(backfill=backfill, progress=advance)
    training, outcome, measured = version.training, version.outcome or {}, version.gain
    seconds = {"open": opened, **job.seconds}
    seconds["to_gain"] = sum(seconds.values())
    windows = f"windows {training.first} to {training.last}"
    facts = {"expert": version.label, "surface": training.expert.surface, "mode": training.expert.mode}
    if json:
        values = {"first_window": training.first, "last_window": training.last, **outcome, "seconds": seconds}
        emit({**facts, **values}, json)
        return
    told = promotion.explain(measured, f"over control in {windows}") if measured else f"no gain defined in {windows}"
    covered = outcome.get("coverage")
    coverage = "nothing was asked" if covered is None else f"{100 * covered:.1f} %"
    emit({**facts, "coverage": coverage, "gain": told, "seconds": f"{seconds['to_gain']:.1f}"}, json)


@expert.command("promote")
def expert_promote(name: str, run: RunFolder = DEMO, json: Json = False) -> None:
    """Let the last training of an expert serve its surface, if it is better than what does; exits with 1 if not."""
    from hypercast.runtime import promotion

    serving = _platform(run).serving
    decision = promotion.promote(run, name, arm=serving.arm if serving is not None else None)
    values: dict[str, Any] = dataclasses.asdict(decision)
    if not json:
        values.pop("gain")
    emit(values, json)
    if not decision.promoted:
        raise typer.Exit(1)


@expert.command("demote")
def expert_demote(surface: str, run: RunFolder = DEMO, json: Json = False) -> None:
    """Return a surface to the expert that served it before the last promotion."""
    from hypercast.runtime import promotion

    emit({"surface": surface, "served by": promotion.rollback(run, surface)}, json)


@expert.command("list")
def expert_list(run: RunFolder = DEMO, json: Json = False) -> None:
    """Experts and what they are pinned to; of those that were spun up, their last training and what they serve."""
    from hypercast import pins
    from hypercast.registry import Registry
    from hypercast.runtime import expert_file

    registry = Registry(run / "registry")
    rows: dict[str, dict[str, Any]] = {
        name: {"expert": name, "pinned to": registry.pinned(name).target} for name in pins.experts(registry.root)
    }
    spun_up = expert_file.names(run)
    if spun_up:
        rows = {
            name: {"expert": name, "pinned to": rows.get(name, {}).get("pinned to")} | _spun_up(run, name)
            for name in sorted({*rows, *spun_up})
        }
    if not json:  # narrow enough for a terminal
        for row in rows.values():
            value, lo, hi = (row.pop(key, None) for key in ("gain_pct", "lo", "hi"))
            if "serves" in row:
                row["gain, %"] = "—" if value is None else f"{value:+.1f} [{lo:+.1f}, {hi:+.1f}]"
    emit_rows([*rows.values()], json)


@expert.command("pin")
def expert_pin(
    name: str,
    lineage: Annotated[str, typer.Option(help="Name of the foundation model's lineage.")] = "FM",
    version: Annotated[int | None, typer.Option(help="One version of it; without, the expert follows it.")] = None,
    run: RunFolder = DEMO,
    json: Json = False,
) -> None:
    """Tie an expert to a lineage, or to one snapshot of it; surfaces that share an expert share its pin."""
    from hypercast.registry import Registry

    together = _pinned_together(run, name)
    _emit_pins(name, Registry(run / "registry").pin_together(together, lineage=lineage, version=version), json)


@expert.command("rollback")
def expert_rollback(name: str, run: RunFolder = DEMO, json: Json = False) -> None:
    """Return an expert to the pin it had before; surfaces that share an expert share its pin."""
    from hypercast.registry import Registry

    _emit_pins(name, Registry(run / "registry").rollback_together(_pinned_together(run, name)), json)


def _emit_pins(name: str, pins: "list[Pin]", json: bool) -> None:
    """Say what ``name`` is pinned to now, and which surfaces share that pin, if several do."""
    together = {"surfaces": [pin.expert for pin in pins]} if len(pins) > 1 else {}
    emit({"expert": name, "pinned to": pins[0].target, **together}, json)


def _pinned_together(run: Path, name: str) -> list[str]:
    """Names whose pin is that of ``name``: of a group, or a surface in one, all its surfaces; else the name alone."""
    if not (run / "platform.yaml").is_file():
        return [name]
    groups = _platform(run).expert_groups
    return next((group for label, group in groups.items() if name == label or name in group), [name])


def _platform(run: Path) -> "PlatformConfig":
    """The configuration that a run folder keeps, of the folder as it is named now."""
    from hypercast.runtime.config import PlatformConfig

    return configuration.load(run / "platform.yaml", PlatformConfig).model_copy(update={"run": run})


def _spun_up(run: Path, name: str) -> dict[str, Any]:
    """What is known of an expert that has a file; nothing of the platform's own."""
    from hypercast.runtime import expert_file, promotion, trainings

    if name not in expert_file.names(run):
        return dict.fromkeys(("surface", "mode", "trained", "gain_pct", "lo", "hi", "serves"))
    file = expert_file.read(run, name)
    complete = [(version, version.outcome) for version in trainings.versions(run, name) if version.outcome is not None]
    version, outcome = complete[-1] if complete else (None, None)
    measured = (outcome or {}).get("gain") or {}
    named = promotion.serving(run, file.surface)
    return {
        "surface": file.surface,
        "mode": file.mode,
        "trained": version.label if version else None,
        **{key: round(measured[key], 3) if key in measured else None for key in ("gain_pct", "lo", "hi")},
        "serves": named if named and _expert_of(named) == name else None,
    }


def _expert_of(label: str) -> str:
    """``mailer_new`` of ``mailer_new@0001``."""
    from hypercast.pins import parse_snapshot_name

    return parse_snapshot_name(label)[0]
