"""The report of a run folder, and everything that shows it: Markdown, page, figures, in the folder and in MLflow."""

from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.ownership import own
from hypercast.runtime.plan import PATIENCE, run_lock
from hypercast.runtime.window_metrics import plain
from streaming import files
from streaming.dataset import Dataset
from streaming.errors import ConfigError
from transfer import curve, figures, page, report
from transfer.monitor import PLATFORM, Monitor
from transfer.report import Report


def build(config: PlatformConfig, *, task: str | None = None, untouched: bool = False) -> Report:
    """Compare the arms on what was predicted so far.

    Args:
        config: of the platform.
        task: whose labels are judged; None takes the data set's first.
        untouched: of the fifth of the users that is kept apart, instead of all others.

    Raises:
        ConfigError: the data set has no such task.
    """
    catalogue = Dataset.open(config.dataset.path).config
    tasks = [each.name for each in catalogue.tasks]
    if task is not None and task not in tasks:
        raise ConfigError(f"no task '{task}'; {config.dataset.path} has {', '.join(tasks)}. Example: --task {tasks[0]}")
    return report.build(
        config.run,
        task=task or tasks[0],
        spans=config.report_spans(),
        surfaces=catalogue.surfaces,
        untouched=untouched,
    )


def publish(config: PlatformConfig, monitor: Monitor) -> Report:
    """Build the report, page and figures of all there is, write them to the run folder, and log them.

    Of every surface ``parity_reached/SURFACE`` is logged, 0 or 1, and where it is 1 the time to parity
    (:mod:`transfer.parity`) as ``parity_windows/SURFACE``.
    """
    dataset = Dataset.open(config.dataset.path)
    surfaces = dataset.config.surfaces
    result = build(config)
    monitor.log_report(result)
    files.write_text(config.run / "report.md", result.to_markdown())
    by_window = curve.curves(config.run, task=result.task, surfaces=surfaces)
    made = page.build(config.run, result, title=config.name, surfaces=surfaces, curves=by_window)
    monitor.log_artifact(page.write(made, config.run / "report.html"), folder="report")
    monitor.log_figure(figures.gain_over_windows(by_window), name="gain_over_windows")
    monitor.log_figure(figures.entropy_over_windows(by_window), name="entropy_over_windows")
    if result.spans:
        monitor.log_figure(figures.ladder(result.spans[-1].rows), name="ladder")
    for each in made.parities:
        name = plain(each.surface)
        told = {f"parity_reached/{name}": float(each.windows is not None)}
        if each.windows is not None:
            told[f"parity_windows/{name}"] = float(each.windows)
        monitor.log_window(window=each.last, end=dataset.window(each.last).end, metrics={PLATFORM: told})
    return result


def republish(config: PlatformConfig) -> Report:
    """:func:`publish` of a run that is not going on: what was added to its predictions shows.

    Raises:
        OwnershipError: another process works in the run folder.
    """
    with (
        own(run_lock(config.run), patience=PATIENCE),
        config.monitor.build(run=config.run, platform=config.name) as monitor,
    ):
        return publish(config, monitor)
