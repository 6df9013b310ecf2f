"""What the online store holds is what the TAE log holds, after kills and outages too."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypercast.errors import StoreError
from hypercast.pins import Pin
from hypercast.registry import Registry
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.jobs import FoundationJob
from hypercast.runtime.platform import Platform
from hypercast.store.channels import Channels
from hypercast.store.engine import UnreachableError
from hypercast.store.ladder import Rung
from hypercast.store.online import OnlineStore
from hypercast.store.status import Status
from hypercast.store.tae_log import TaeLog
from streaming import config as configuration
from streaming.dataset import Dataset
from streaming.workspace import Workspace

FOLLOWING = Pin(expert="home", lineage="FM")


@pytest.fixture
def config(platform_file: Callable[..., Path], tmp_path: Path) -> Callable[..., PlatformConfig]:
    def make(online: str = "{engine: {kind: memory}}", more: str = "") -> PlatformConfig:
        return configuration.load(platform_file(tmp_path / "run", f"online: {online}\n{more}"), PlatformConfig)

    return make


def check_window(store: OnlineStore, run: Path, dataset: Dataset, window: int, pin: Pin = FOLLOWING) -> None:
    """Reading as of the window's end, every key has the vector of its last request, and every user an aggregate."""
    requests = Workspace(dataset).requests(window)
    owner = requests.owner
    keys = {"surface": requests.surface, "user_id": requests.user_id[owner], "item_id": requests.item_id}
    end = dataset.window(window).end
    found = store.get_as_of(end, pin=pin, width=8, **keys)
    assert found.snapshot is not None and found.counts()["FRESH"] == len(owner) > 0
    snapshot = Registry(run / "registry").get(found.snapshot)
    assert snapshot.watermark <= dataset.window(window).start
    logged = TaeLog(run / "tae_log").read(
        window=window,
        pin=Pin(expert="log", lineage="FM", version=snapshot.version),
        request_id=requests.request_id[owner],
        candidate_id=requests.candidate_id,
        time=requests.time[owner],
        width=8,
        tasks=[],
    )
    assert logged.present.all()
    last: dict[tuple[int, ...], int] = {}
    rows = list(zip(*(column.tolist() for column in keys.values()), strict=True))
    for row, key in enumerate(rows):
        last[key] = row
    np.testing.assert_array_equal(found.vector, logged.vector[[last[key] for key in rows]])
    assert (end - found.age).tolist() == [requests.time[owner][last[key]] for key in rows]
    user = keys["user_id"][0]
    unseen = {"surface": np.array([0]), "user_id": np.array([user]), "item_id": np.array([10**9])}
    aggregate = store.get_as_of(end, pin=pin, width=8, **unseen)
    assert aggregate.rungs()["USER"] == 1
    mean = logged.vector[keys["user_id"] == user].mean(axis=0)
    np.testing.assert_allclose(aggregate.vector[0], mean, atol=2e-3)


def test_each_window_can_be_read_as_of_its_end(config: Callable[..., PlatformConfig], small_dataset: Dataset) -> None:
    made = config()
    job = FoundationJob(made, made.run)
    assert job.feed is not None
    store = job.feed.store
    for window in small_dataset.windows:
        job.publish(window.index)
        check_window(store, made.run, small_dataset, window.index)
        assert store.current("FM") == f"FM@{window.index:04d}"
        now = store.get_as_of(window.start, pin=FOLLOWING, width=8, **one_key())
        assert now.snapshot == (f"FM@{window.index - 1:04d}" if window.index > 1 else None)
        job.run_window(window.index)
    assert store.engine.snapshots() == ["FM@0003", "FM@0004"]  # as many as the registry keeps
    adapter = store.adapter("FM@0004", "FM@0003")
    assert adapter is not None and adapter.rows > 0
    rows = store.engine.stats("FM@0004").rows
    for window in small_dataset.windows:
        job.publish(window.index)
    assert store.engine.stats("FM@0004").rows == rows and store.current("FM") == "FM@0004"


def test_what_is_published_has_neighbours(config: Callable[..., PlatformConfig], small_dataset: Dataset) -> None:
    made = config("{engine: {kind: memory}, miss: nearest}")
    job, window = FoundationJob(made, made.run), small_dataset.windows[0]
    job.publish(window.index)
    assert job.feed is not None
    requests = Workspace(small_dataset).requests(window.index)
    users, things = np.unique(requests.user_id), np.unique(np.stack([requests.surface, requests.item_id]), axis=1)
    user_id, (surface, item_id) = np.repeat(users, things.shape[1]), np.tile(things, len(users))
    keys = {"surface": surface, "user_id": user_id, "item_id": item_id}
    found = job.feed.store.get_as_of(window.end, pin=FOLLOWING, width=8, **keys)
    missed = found.status == Status.MISS
    assert 0 < missed.sum() < len(missed) and (found.rung[missed] == Rung.NEAREST).all()
    for one in np.flatnonzero(missed)[:50]:
        owned = ~missed & (surface == surface[one]) & (item_id == item_id[one])
        assert (found.vector[owned] == found.vector[one]).all(axis=1).any()
    middle = window.start + (window.end - window.start) // 2
    then = job.feed.store.get_as_of(middle, pin=FOLLOWING, width=8, **keys)
    assert then.rungs()["ZEROS"] > found.rungs()["ZEROS"] == 0 and (then.age >= 0).all()


def one_key() -> dict[str, Any]:
    return {name: np.array([1]) for name in ("surface", "user_id", "item_id")}


@pytest.mark.slow
def test_a_platform_feeds_the_store_in_its_run_folder(
    config: Callable[..., PlatformConfig], small_dataset: Dataset, tiny_run: Path, metrics_of: Callable[[Path], dict]
) -> None:
    made = config("{}")
    Platform(made).run(lambda message, share: None)
    store = OnlineStore.Config().build(made.run / "online")
    check_window(store, made.run, small_dataset, 4)
    assert store.engine.verify() == []
    assert metrics_of(made.run) == metrics_of(tiny_run)  # nothing else depends on it


def test_drift_is_logged_window_by_window(tiny_run: Path, metrics_of: Callable[[Path], dict]) -> None:
    """From the second snapshot on that had seen the probe's window, the first of all."""
    logged = {name: points for (run, name), points in metrics_of(tiny_run).items() if run == "fm"}
    for name in (
        "drift/centroid",
        "drift/mmd",
        "drift/mmd_null",
        "drift/alarm",
        "adapter/relative_error",
        "adapter/r2",
    ):
        assert [step for step, _, _ in logged[name]] == [2, 3, 4]
    assert all(0 < value < 2 for _, _, value in logged["drift/centroid"])
    kept = sorted(path.name for path in (tiny_run / "probe").iterdir())
    assert kept == ["FM@0004-to-FM@0003.adapter", "FM@0005-to-FM@0004.adapter", "probe.json"]


def test_rows_that_the_log_would_not_give_are_not_put(
    config: Callable[..., PlatformConfig], small_dataset: Dataset
) -> None:
    window = small_dataset.windows[0]
    half = (window.end - window.start) / 2_000_000
    made = config(more=f"log: {{fresh_for: 0, ttl: {half}}}\n")
    job = FoundationJob(made, made.run)
    job.publish(window.index)
    assert job.feed is not None
    requests = Workspace(small_dataset).requests(window.index)
    user_id = requests.user_id[requests.owner]
    keys = list(zip(requests.surface.tolist(), user_id.tolist(), requests.item_id.tolist(), strict=True))
    young = requests.time[requests.owner] <= window.start + half * 1_000_000
    kept = {key for key, is_young in zip(keys, young, strict=True) if is_young}
    found = job.feed.store.get_as_of(
        window.end, pin=FOLLOWING, surface=requests.surface, user_id=user_id, item_id=requests.item_id, width=8
    )
    assert [status == Status.FRESH for status in found.status] == [key in kept for key in keys]
    assert 0 < found.counts()["FRESH"] < len(keys)
    never = made.model_copy(update={"log": made.log.model_copy(update={"ttl": 0.0}), "run": made.run / "other"})
    job = FoundationJob(never, never.run)
    job.publish(window.index)
    assert job.feed is not None and job.feed.store.engine.snapshots() == []


STEPS = [
    "hypercast.store.online.OnlineStore.put",
    "hypercast.store.online.OnlineStore.put_users",
    "hypercast.store.channels.Channels.mark",
    "hypercast.store.channels.Channels.publish",
    "hypercast.store.channels.Channels.drop",
]


@pytest.mark.parametrize("after", [False, True])
def test_a_feed_that_was_killed_catches_up(
    after: bool, config: Callable[..., PlatformConfig], small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at every step; what was not committed is lost with the process."""
    made = config("{}")
    first, second = (window.index for window in small_dataset.windows[:2])
    job = FoundationJob(made, made.run)
    job.publish(first)
    job.run_window(first)
    for step in STEPS:
        path, _, name = step.rpartition(".")

        def killed(*arguments: Any, real: Any, **named: Any) -> None:
            if after:
                real(*arguments, **named)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            owner = load(path)
            real = getattr(owner, name)
            patch.setattr(owner, name, lambda *a, real=real, **k: killed(*a, real=real, **k))
            with pytest.raises(KeyboardInterrupt):
                job.publish(second)
        job = FoundationJob(made, made.run)
        assert job.feed is not None
        check_window(job.feed.store, made.run, small_dataset, first)
    job.publish(second)
    check_window(job.feed.store, made.run, small_dataset, second)


def test_a_feed_that_was_killed_after_its_readers_had_moved(
    config: Callable[..., PlatformConfig], small_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config("{}")
    first, second = (window.index for window in small_dataset.windows[:2])
    job = FoundationJob(made, made.run)
    job.publish(first)
    job.run_window(first)
    real = Channels.mark

    def killed(channels: Channels, snapshot: str, name: str, *, at: int) -> None:
        if name == "latest":
            raise KeyboardInterrupt
        real(channels, snapshot, name, at=at)

    with monkeypatch.context() as patch:
        patch.setattr(Channels, "mark", killed)
        with pytest.raises(KeyboardInterrupt):
            job.publish(second)
    job = FoundationJob(made, made.run)
    assert job.feed is not None and job.feed.store.current("FM") == "FM@0002"
    job.publish(second)
    check_window(job.feed.store, made.run, small_dataset, second)


def test_a_rollback_holds_until_there_is_something_newer(
    config: Callable[..., PlatformConfig], small_dataset: Dataset
) -> None:
    made = config()
    job = FoundationJob(made, made.run)
    assert job.feed is not None
    for window in small_dataset.windows[:2]:
        job.publish(window.index)
        job.run_window(window.index)
    assert job.feed.store.rollback("FM") == "FM@0001"
    job.publish(2)
    assert job.feed.store.current("FM") == "FM@0001"
    job.publish(3)
    assert job.feed.store.current("FM") == "FM@0003"


@pytest.mark.parametrize("ahead", [1, 2])
def test_another_run_of_the_lineage_is_not_fed_to_the_same_readers(
    ahead: int, config: Callable[..., PlatformConfig], small_dataset: Dataset, tmp_path: Path
) -> None:
    made = config(f"{{engine: {{kind: local, path: {tmp_path / 'shared'}}}}}")
    job = FoundationJob(made, made.run)
    for window in range(1, ahead + 1):
        job.publish(window)
        job.run_window(window)
    other = made.model_copy(update={"run": tmp_path / "other", "seeds": [made.seeds[0] + 1]})
    with pytest.raises(StoreError, match=f"readers follow FM@000{ahead}, which this run has not published"):
        FoundationJob(other, other.run).publish(1)
    assert job.feed is not None
    check_window(job.feed.store, made.run, small_dataset, ahead)
    # Before anything was published in the channel, it is the rows of one name that differ.
    store = job.feed.store
    for pointer, name in store.engine.pointers().items():
        store.engine.move(pointer, expected=name, to=None)
    with pytest.raises(StoreError, match="FM@0001 were computed by other weights"):
        FoundationJob(other, other.run).publish(1)


def load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)


@pytest.mark.parametrize("unreachable", ["wait", "ladder"])
def test_a_server_that_is_gone(
    unreachable: str,
    config: Callable[..., PlatformConfig],
    small_dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = config(f"{{engine: {{kind: memory}}, unreachable: {unreachable}}}")
    job = FoundationJob(made, made.run)
    assert job.feed is not None
    store, windows = job.feed.store, [window.index for window in small_dataset.windows[:3]]
    job.publish(windows[0])
    job.run_window(windows[0])

    def gone(*arguments: Any, **named: Any) -> Any:
        raise UnreachableError("127.0.0.1:6379 does not answer")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(store.engine, "put", gone)
        if unreachable == "wait":
            with pytest.raises(UnreachableError):
                job.publish(windows[1])
        else:
            job.publish(windows[1])
            assert f"window {windows[1]} is not in the online store yet" in caplog.text
    if unreachable == "wait":
        job.publish(windows[1])
    job.run_window(windows[1])
    job.publish(windows[2])
    for window in windows[1:]:
        check_window(store, made.run, small_dataset, window, Pin(expert="home", lineage="FM", version=window))
    assert store.current("FM") == "FM@0003"
