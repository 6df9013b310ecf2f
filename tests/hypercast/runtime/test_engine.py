"""Both engines give the same bits, and the same errors."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.engine import Engine, Job, LocalEngine
from hypercast.runtime.platform import Platform
from hypercast.runtime.ray_engine import RayEngine
from streaming import config as configuration
from streaming import files
from streaming.dataset import Dataset
from streaming.errors import DataError

ENGINES = ["local", pytest.param("ray", marks=pytest.mark.slow)]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine: Engine = RayEngine(config=RayEngine.Config(), cpus=3) if request.param == "ray" else LocalEngine()
    yield engine
    engine.close()


def counter() -> type:
    """A job, made here so that it travels to another process as it is."""

    class Counter:
        def __init__(self, start: int) -> None:
            if start < 0:
                raise DataError(f"[start] must not be negative; got {start}.")
            self.value = start

        def add(self, more: int) -> int:
            if more == 0:
                raise DataError("nothing to add: give a number other than 0.")
            self.value += more
            return self.value

    return Counter


def job(start: int, name: str = "job") -> Job:
    return Job(kind=counter(), arguments=(start,), name=name)


def test_calls_to_a_job_run_in_order_and_promises_may_be_arguments(engine: Engine) -> None:
    one, other = engine.start(job(0, "one")), engine.start(job(100, "other"))
    promises = [engine.call(one, "add", step) for step in (1, 2, 3)]
    promises += [engine.call(other, "add", promise) for promise in promises]
    assert [engine.result(promise) for promise in promises] == [1, 3, 6, 101, 104, 110]


def test_an_error_in_a_job_is_the_error_that_the_caller_gets(engine: Engine) -> None:
    def failing_constructor() -> None:
        engine.result(engine.call(engine.start(job(-1)), "add", 1))

    def failing_call() -> None:
        engine.result(engine.call(engine.start(job(1)), "add", 0))

    def failing_argument() -> None:
        promise = engine.call(engine.start(job(1)), "add", 0)
        engine.result(engine.call(engine.start(job(1)), "add", promise))

    for failing, message in (
        (failing_constructor, r"^\[start\] must not be negative; got -1\.$"),
        (failing_call, r"^nothing to add: give a number other than 0\.$"),
        (failing_argument, r"^nothing to add: give a number other than 0\.$"),
    ):
        with pytest.raises(DataError, match=message):
            failing()


@pytest.mark.parametrize("engine_name", ENGINES)
@pytest.mark.parametrize("lost", ["items.parquet", "requests/window=00002/part-0.parquet"])
def test_a_broken_data_set_is_one_clear_error(
    lost: str, engine_name: str, small_dataset: Dataset, platform_file: Callable[..., Path], tmp_path: Path
) -> None:
    file = platform_file(tmp_path / "run", f"engine: {engine_name}\n")
    broken = tmp_path / "broken"
    for path in small_dataset.path.rglob("*.*"):
        if path.is_file() and str(path.relative_to(small_dataset.path)) != lost:
            files.write_bytes(broken / path.relative_to(small_dataset.path), path.read_bytes())
    file.write_text(file.read_text().replace(str(small_dataset.path), str(broken)), encoding="utf-8")
    platform = Platform(configuration.load(file, PlatformConfig))
    with pytest.raises(DataError, match=f"^{broken / lost}: the file is missing"):
        platform.run(lambda message, share: None)


@pytest.mark.slow
def test_ray_gives_the_same_bits(
    tiny_run: Path, platform_file: Callable[..., Path], metrics_of, tmp_path: Path
) -> None:
    file = platform_file(tmp_path / "run", "engine: ray\nexpert_jobs: 2\n")
    Platform(configuration.load(file, PlatformConfig)).run(lambda message, share: None)
    written = [path.relative_to(tiny_run) for path in (tiny_run / "predictions").rglob("*.parquet")]
    assert len(written) == 2 * 4
    for path in [*written, Path("report.md")]:
        assert (tmp_path / "run" / path).read_bytes() == (tiny_run / path).read_bytes()
    assert metrics_of(tmp_path / "run") == metrics_of(tiny_run)
