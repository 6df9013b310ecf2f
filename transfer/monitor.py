"""MLflow as the window on a run: metrics per window, parameters, tables, figures and registered snapshots.

One parent run per run folder, with a child for the foundation model and one per surface, arm and seed::

    RUN/mlflow.db         the tracking store, unless ``tracking`` names another
    RUN/mlartifacts/      tables, figures, configuration
    RUN/mlflow.json       ids of the runs and the last window logged of every metric

A run that was killed and resumed goes on in the same MLflow runs. A window that is logged again is ignored: MLflow
itself drops exact duplicates only, and would keep a second point for a value that differs in its last digit.
"""

import dataclasses
import json
import logging
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from streaming import config, files
from streaming.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

    from transfer.report import Report

PLATFORM = "platform"
"""Key of the parent run."""
FOUNDATION = "fm"
"""Key of the foundation model's run."""

DRIFT_ALARM = "drift/alarm"
"""Metric that is 1 where embeddings have moved too far from one snapshot to the next (:mod:`transfer.drift`)."""

_METRICS_PER_CALL = 1000
_PARAMS_PER_CALL = 100
_LONGEST_PARAM = 6000
_logger = logging.getLogger(__name__)


def expert_key(surface: str, arm: str, seed: int) -> str:
    """Key of the run of one expert: a surface, an arm and a seed."""
    return f"{surface}/{arm}/seed{seed}"


class Monitor:
    """Logs a platform's run to MLflow. Use it as a context manager, or call :meth:`close`.

    Nothing global is set in MLflow: every call goes through one client with an explicit tracking URI.
    """

    class Config(config.Config):
        """``tracking``: URI of an MLflow tracking store or server; null keeps a SQLite store in the run folder."""

        tracking: str | None = None

        def build(self, *, run: Path, platform: str) -> "Monitor":
            """Open the run folder's MLflow runs, or start them.

            Args:
                run: the run folder; made if absent.
                platform: name of the MLflow experiment.

            Raises:
                ConfigError: the store cannot be opened, or the run folder logs to another one.
            """
            return Monitor(config=self, run=run, platform=platform)

        def log_page(self, path: Path, *, run: Path) -> bool:
            """Keep a page as the artifact ``report/`` of the platform's run, whether or not it goes on meanwhile.

            Returns:
                False where nothing of the run folder was ever logged.

            Raises:
                ConfigError: the store cannot be opened.
            """
            known = _State.read(run / "mlflow.json").runs.get(PLATFORM)
            if known is None:
                return False
            _connect(_tracking_uri(self, run)).log_artifact(known.run_id, str(path), "report")
            return True

    def __init__(self, *, config: "Monitor.Config", run: Path, platform: str) -> None:
        run = run.resolve()
        run.mkdir(parents=True, exist_ok=True)
        self.tracking_uri = _tracking_uri(config, run)
        self._state_path = run / "mlflow.json"
        self._state = _State.read(self._state_path)
        if self._state.tracking not in (None, config.tracking or "run folder"):
            raise ConfigError(
                f"{self._state_path}: this run logs to '{self._state.tracking}', not to '{config.tracking}'. "
                "Keep `tracking` as it was, or start a run in a new folder."
            )
        if config.tracking is None and not (run / "mlflow.db").exists():
            files.write_file(run / "mlflow.db", _create_store)
        self._client = _connect(self.tracking_uri)
        self._state.tracking = config.tracking or "run folder"
        self._save()  # the id must be on disk before anything in MLflow carries it
        self._experiment = self._find_experiment(platform, run)
        if self._state.pending is not None:
            self._recover()
        for key in list(dict.fromkeys([PLATFORM, *self._state.runs])):
            self._client.update_run(self._run_id(key), status="RUNNING")

    @property
    def skipped(self) -> int:
        """Metric values that were not finite, and therefore not logged, since the run began."""
        return sum(run.skipped for run in self._state.runs.values())

    @property
    def complete(self) -> int:
        """The newest window that :meth:`log_window` was given as ``complete``; -1 before the first."""
        return self._state.complete

    def log_window(
        self, *, window: int, end: int, metrics: Mapping[str, Mapping[str, float]], complete: bool = False
    ) -> None:
        """Log the metrics of a window, of any number of runs; what was logged before is left out.

        Args:
            window: index of the window, which becomes the step.
            end: end of the window in microseconds UTC, which becomes the timestamp.
            metrics: values by run key (:data:`PLATFORM`, :data:`FOUNDATION`, :func:`expert_key`) and metric name.
                Values that are not finite are skipped and counted.
            complete: whether this is all there is to say of the window.
        """
        from mlflow.entities import Metric

        self._state.pending = window
        for key in metrics:
            self._run_id(key)
        self._save()  # a kill from here on is seen by the next start, which asks MLflow how far it got
        for key, values in metrics.items():
            run = self._state.runs[key]
            fresh = {name: float(value) for name, value in values.items() if window > run.last.get(name, -1)}
            points = [Metric(name, value, end // 1000, window) for name, value in fresh.items() if math.isfinite(value)]
            if fresh.get(DRIFT_ALARM):
                told = ", ".join(f"{name} {value:.3g}" for name, value in fresh.items() if name.startswith("drift/"))
                _logger.warning("window %d: embeddings have drifted further than they should: %s", window, told)
            for begin in range(0, len(points), _METRICS_PER_CALL):
                self._client.log_batch(run.run_id, metrics=points[begin : begin + _METRICS_PER_CALL])
            if len(points) < len(fresh):
                self._note_skipped(run, window, [name for name, value in fresh.items() if not math.isfinite(value)])
            run.last.update(dict.fromkeys(fresh, window))
        self._state.pending = None
        if complete:
            self._state.complete = max(self._state.complete, window)
        self._save()

    def log_params(self, params: Mapping[str, Any], *, key: str = PLATFORM) -> None:
        """Log parameters; nested mappings become dotted names.

        MLflow's parameters never change. One that has another value after a resume becomes the tag
        ``resumed_with.NAME``.
        """
        from mlflow.entities import Param, RunTag

        run_id = self._run_id(key)
        known = self._client.get_run(run_id).data.params
        wanted = dict(_flatten(params))
        fresh = [Param(name, value) for name, value in wanted.items() if name not in known]
        changed = [
            RunTag(f"resumed_with.{name}", value) for name, value in wanted.items() if known.get(name, value) != value
        ]
        for begin in range(0, len(fresh), _PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=fresh[begin : begin + _PARAMS_PER_CALL])
        for begin in range(0, len(changed), _PARAMS_PER_CALL):
            self._client.log_batch(run_id, tags=changed[begin : begin + _PARAMS_PER_CALL])

    def log_config(self, value: config.Config, *, name: str = "platform.yaml", key: str = PLATFORM) -> None:
        """Keep a configuration as the artifact ``config/NAME``."""
        self._client.log_text(self._run_id(key), config.dump(value), f"config/{name}")

    def log_report(self, report: "Report", *, name: str = "report", key: str = PLATFORM) -> None:
        """Keep a report as the artifacts ``tables/NAME.md`` and ``tables/NAME.json``, replacing the last one."""
        self._client.log_text(self._run_id(key), report.to_markdown(), f"tables/{name}.md")
        self._client.log_text(self._run_id(key), json.dumps(report.to_dict(), indent=1), f"tables/{name}.json")

    def log_artifact(self, path: Path, *, folder: str, key: str = PLATFORM) -> None:
        """Keep a file as the artifact ``FOLDER/`` and its name, replacing the last one."""
        self._client.log_artifact(self._run_id(key), str(path), folder)

    def log_figure(self, figure: "Figure", *, name: str, key: str = PLATFORM) -> None:
        """Keep a figure as the artifact ``figures/NAME.png``, replacing the last one."""
        self._client.log_figure(self._run_id(key), figure, f"figures/{name}.png")

    def register_snapshot(
        self,
        path: Path,
        *,
        name: str,
        snapshot: str,
        info: Mapping[str, Any],
        alias: str | None = None,
        key: str = FOUNDATION,
    ) -> str:
        """Register a snapshot as a version of a model; a snapshot that is registered already only gets the alias.

        Args:
            path: folder with the safetensors files, which becomes the version's source. Nothing is copied.
            name: of the registered model; made if absent.
            snapshot: the snapshot's own name, such as ``FM@0007``; unique within the run folder.
            info: facts kept as tags of the version (watermark, schema hash, metrics, ...).
            alias: moved to this version, such as ``champion``; MLflow reserves ``latest``.
            key: run that the version belongs to.

        Returns:
            MLflow's number of the version.

        Raises:
            ConfigError: ``path`` is not a folder.
        """
        if not path.is_dir():
            raise ConfigError(f"{path}: not a folder. Register the folder of a published snapshot.")
        identity = {"hypercast.run": self._state.id, "hypercast.snapshot": snapshot}
        if not self._client.search_registered_models(filter_string=f"name = '{name}'"):
            self._client.create_registered_model(name)
        found = self._client.search_model_versions(f"name = '{name}' and {_tag_filter(identity)}")
        version = (
            found[0]
            if found
            else self._client.create_model_version(
                name,
                source=path.resolve().as_uri(),
                run_id=self._run_id(key),
                tags={**{each: str(value) for each, value in info.items()}, **identity},
                description=f"Snapshot {snapshot}",
            )
        )
        if alias is not None:
            self._client.set_registered_model_alias(name, alias, str(version.version))
        return str(version.version)

    def close(self, *, status: str = "FINISHED") -> None:
        """Mark every run as ended: ``FINISHED``, ``FAILED`` or ``KILLED``. Opening the folder again resumes them."""
        for run in self._state.runs.values():
            self._client.set_terminated(run.run_id, status=status)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.close(status="KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    def _find_experiment(self, platform: str, run: Path) -> str:
        found = self._client.get_experiment_by_name(platform)
        if found is not None and found.lifecycle_stage == "deleted":
            raise ConfigError(
                f"MLflow experiment '{platform}' was deleted in {self.tracking_uri}. Restore it "
                f"(mlflow experiments restore -x {found.experiment_id}) or give the platform another name."
            )
        if found is not None:
            return found.experiment_id
        served = self.tracking_uri.startswith(("http:", "https:"))
        location = None if served else (run / "mlartifacts").as_uri()
        return self._client.create_experiment(platform, artifact_location=location)

    def _run_id(self, key: str) -> str:
        """Id of the run of that key. It is found by its tags if it exists, so that a crash leaves no orphan behind."""
        if key in self._state.runs:
            return self._state.runs[key].run_id
        tags = {"hypercast.run": self._state.id, "hypercast.key": key}
        found = self._client.search_runs([self._experiment], filter_string=_tag_filter(tags))
        if found:
            run_id = found[0].info.run_id
        else:
            if key != PLATFORM:
                tags["mlflow.parentRunId"] = self._run_id(PLATFORM)
            run_id = self._client.create_run(self._experiment, tags=tags, run_name=key).info.run_id
        self._state.runs[key] = _Run(run_id=run_id)
        self._save()
        return run_id

    def _recover(self) -> None:
        """After a kill in the middle of a window, ask MLflow what it has of it."""
        for run in self._state.runs.values():
            for name in self._client.get_run(run.run_id).data.metrics:
                history = self._client.get_metric_history(run.run_id, name)
                run.last[name] = max([run.last.get(name, -1), *(point.step for point in history)])
        self._state.pending = None
        self._save()

    def _note_skipped(self, run: "_Run", window: int, names: list[str]) -> None:
        run.skipped += len(names)
        self._client.set_tag(run.run_id, "hypercast.skipped_not_finite", str(run.skipped))
        _logger.warning("window %d: not finite, not logged: %s", window, ", ".join(names))

    def _save(self) -> None:
        files.write_text(self._state_path, json.dumps(dataclasses.asdict(self._state), indent=1) + "\n")


@dataclass
class _Run:
    run_id: str
    last: dict[str, int] = field(default_factory=dict)  # last window logged, by metric
    skipped: int = 0


@dataclass
class _State:
    """What ``mlflow.json`` remembers. ``pending``: the window being logged when it was written; ``complete``: the
    newest that was logged whole.
    """

    id: str
    tracking: str | None = None
    runs: dict[str, _Run] = field(default_factory=dict)
    pending: int | None = None
    complete: int = -1

    @staticmethod
    def read(path: Path) -> "_State":
        if not path.exists():
            return _State(id=uuid.uuid4().hex)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            runs = {key: _Run(**run) for key, run in values.pop("runs").items()}
            return _State(runs=runs, **values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path}: not readable as the monitor's state ({error}). Move the file away to log to new MLflow runs."
            ) from None


def _tracking_uri(config: Monitor.Config, run: Path) -> str:
    return config.tracking or f"sqlite:///{run.resolve() / 'mlflow.db'}"


def _connect(uri: str) -> "MlflowClient":
    # Read when MLflow is imported, or by set_telemetry_client() where something else imported it before.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.telemetry import set_telemetry_client

    set_telemetry_client()
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        raise ConfigError(
            f"monitor.tracking: MLflow cannot open '{uri}': {error}\n"
            "Give the URI of a running server (http://127.0.0.1:5000), of a database (sqlite:////data/mlflow.db), "
            "or null for a store in the run folder."
        ) from None
    return client


def _create_store(path: Path) -> None:
    """Make an empty SQLite store. MLflow takes seconds for it, and does not recover from a kill half-way."""
    for left_over in (path, path.with_name(f"{path.name}-journal")):
        left_over.unlink(missing_ok=True)
    _connect(f"sqlite:///{path}")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield f"{prefix}{name}", text if len(text) <= _LONGEST_PARAM else text[: _LONGEST_PARAM - 1] + "…"


def _tag_filter(tags: Mapping[str, str]) -> str:
    return " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
