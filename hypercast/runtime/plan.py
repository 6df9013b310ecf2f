"""Which jobs a platform is made of, and what each of them owns and asks for."""

from pathlib import Path

from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.engine import Job, Resources
from hypercast.runtime.jobs import ExpertJob, FoundationJob

PATIENCE = 5.0
"""Seconds to wait for another process that hands out the work of a run: one that was killed is gone by then."""


def jobs(config: PlatformConfig, *, run: Path, surfaces: list[str]) -> list[Job]:
    """The foundation model's job, and then the experts'. All arms of an expert share one job, and so its batches.

    Args:
        run: folder of the run.
        surfaces: of the data set; their experts are dealt out to ``expert_jobs`` jobs like cards.

    Raises:
        ConfigError: see :meth:`PlatformConfig.experts_of`.
    """
    experts = list(config.experts_of(surfaces).values())
    count = min(config.expert_jobs, len(experts))
    dealt = [[surface for expert in experts[number::count] for surface in expert] for number in range(count)]
    return [_foundation(config, run), *(_experts(config, run, number, hand) for number, hand in enumerate(dealt))]


def run_lock(run: Path) -> Path:
    """Held by the process that hands out the work of a run."""
    return run / "locks" / "run"


def _foundation(config: PlatformConfig, run: Path) -> Job:
    return Job(
        kind=FoundationJob,
        arguments=(config, run),
        name="foundation",
        title="all surfaces",
        owns=(run / "locks" / "jobs" / "foundation",),
        resources=_promised(config.resources.foundation, config.threads),
    )


def _experts(config: PlatformConfig, run: Path, number: int, surfaces: list[str]) -> Job:
    return Job(
        kind=ExpertJob,
        arguments=(config, run, surfaces),
        name=f"experts-{number}",
        title="+".join(surfaces),
        owns=tuple(run / "locks" / "jobs" / "experts" / surface for surface in sorted(surfaces)),
        resources=_promised(config.resources.experts, config.threads),
    )


def _promised(resources: Resources, threads: int) -> Resources:
    """One core a thread, unless the file says otherwise."""
    return resources if resources.cpus is not None else resources.model_copy(update={"cpus": float(threads)})
