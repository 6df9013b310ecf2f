"""Where a candidate was answered, what it was given; elsewhere what was published; and the same again, ever after."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hypercast.errors import RegistryError, StoreError
from hypercast.pins import Pin
from hypercast.registry import Registry
from hypercast.serving.features.asked import Asked
from hypercast.serving.lanes import ladder
from hypercast.serving.lanes.ladder import Given
from hypercast.serving.logs.served import IN_RUN
from hypercast.serving.logs.served_first import Learned, ServedFirst
from hypercast.store.ladder import Rung
from hypercast.store.status import Status
from streaming.errors import LeakageError
from streaming.workspace import Workspace
from tests.hypercast.serving.conftest import Played
from tests.hypercast.serving.logs.conftest import Answered, log_of

FOLLOWING = Pin(expert="test", lineage="FM")


@pytest.fixture(scope="module")
def workspace(played: Played) -> Workspace:
    return played.workspace()


@pytest.fixture
def run(played: Played, tmp_path: Path) -> Path:
    """A run folder with what the platform has published."""
    shutil.copytree(played.run / "tae_log", tmp_path / "tae_log")
    shutil.copytree(played.run / "registry", tmp_path / "registry")
    return tmp_path


@pytest.fixture
def settled(run: Path, played: Played, workspace: Workspace) -> Callable[[], ServedFirst]:
    """The log of the run, opened anew, after settling the next window."""

    def settle() -> ServedFirst:
        log = ServedFirst.of_run(run, config=played.config.log)
        log.settle([played.next_window], workspace=workspace, registry=Registry(run / "registry"), predicted=())
        return log

    return settle


def read(log: Any, played: Played, workspace: Workspace, *, pin: Pin = FOLLOWING, **changes: Any) -> Any:
    requests = workspace.requests(played.next_window.index)
    asked: dict[str, Any] = {
        "window": played.next_window.index,
        "request_id": requests.request_id[requests.owner],
        "candidate_id": requests.candidate_id,
        "time": requests.time[requests.owner],
        "width": 8,
        "tasks": workspace.inputs.tasks,
        "requests_digest": workspace.dataset.requests_digest(played.next_window.index),
    }
    return log.read(pin=pin, **asked | changes)


def places(asked: Asked, played: Played, workspace: Workspace) -> np.ndarray:
    """Where the candidates of ``asked`` are among the window's."""
    requests = workspace.requests(played.next_window.index)
    keys = zip(requests.request_id[requests.owner].tolist(), requests.candidate_id.tolist(), strict=True)
    rows = {key: place for place, key in enumerate(keys)}
    ids = zip(asked.request_id[asked.owner].tolist(), asked.candidate_id.tolist(), strict=True)
    return np.array([rows[key] for key in ids])


def other_vectors(given: Given, *, rung: Rung) -> Given:
    """As the online store might give them: vectors that the snapshot's codec cannot hold, and no other than these."""
    vector = given.vectors["penultimate"] + np.float32(1 / 3)
    return dataclasses.replace(
        given,
        vectors={"penultimate": vector},
        logit_CT=given.logit_CT - np.float32(1 / 7),
        status_C=np.full_like(given.status_C, Status.MISS),
        rung_C=np.full_like(given.rung_C, rung),
    )


def test_what_was_served_stands_in_place_of_what_was_published(
    run: Path, played: Played, workspace: Workspace, answered: Answered, settled: Callable[[], ServedFirst]
) -> None:
    tasks = len(workspace.inputs.tasks)
    served = [
        *answered[:4],
        *((asked, other_vectors(given, rung=Rung.USER)) for asked, given in answered[4:7]),
        *((asked, ladder.nothing(len(asked.item), tasks=tasks)) for asked, _ in answered[7:9]),
    ]
    repeated = [(asked, other_vectors(given, rung=Rung.FRESH)) for asked, given in answered[:2]]
    log_of(run / IN_RUN, workspace, [*served, *repeated])  # the first answer counts
    log = settled()
    found, published = read(log, played, workspace), read(played.log, played, workspace)
    assert isinstance(found, Learned) and published.aligned and not found.aligned
    left = np.ones(len(found.status), dtype=bool)
    for asked, given in served:
        place = places(asked, played, workspace)
        left[place] = False
        np.testing.assert_array_equal(found.present[place], given.present_C)
        np.testing.assert_array_equal(found.teacher_logit[place], given.logit_CT)
        np.testing.assert_array_equal(found.vector[place], given.vectors.get("penultimate", np.zeros((len(place), 8))))
    assert left.any() and (found.served_C == ~left).all()
    for name in ("vector", "teacher_logit", "status", "age"):
        np.testing.assert_array_equal(getattr(found, name)[left], getattr(published, name)[left], err_msg=name)
    counts = found.counts()
    without = sum(len(asked.item) for asked, _ in served[7:])
    assert (counts["PUBLISHED"], counts["MISS"]) == (left.sum(), without)
    assert counts["SERVED"] + counts["PUBLISHED"] + counts["MISS"] == len(left) == sum(published.counts().values())
    # Representations that an answer did not have are zeros beside the mask bit, as experts were given them.
    other = read(log, played, workspace, representation="sequence", width=16)
    place = np.concatenate([places(asked, played, workspace) for asked, _ in served[4:7]])
    assert other.present[place].all() and not other.vector[place].any()
    asked, given = served[0]
    np.testing.assert_array_equal(other.vector[places(asked, played, workspace)], given.vectors["sequence"])


def test_a_settled_window_reads_the_same_whatever_is_logged_later(
    run: Path, played: Played, workspace: Workspace, answered: Answered, settled: Callable[[], ServedFirst]
) -> None:
    log_of(run / IN_RUN, workspace, answered[:4])
    before = read(settled(), played, workspace)
    again = [(asked, other_vectors(given, rung=Rung.FRESH)) for asked, given in answered[:6]]
    log_of(run / IN_RUN, workspace, again)
    shutil.rmtree(run / IN_RUN / "parts")  # nor do its parts matter any more
    after = read(settled(), played, workspace)
    part = read(settled(), played, workspace, **subset(played, workspace))
    for name in ("vector", "teacher_logit", "status", "age", "served_C"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name), err_msg=name)
        np.testing.assert_array_equal(getattr(before, name)[3::5], getattr(part, name), err_msg=name)


def subset(played: Played, workspace: Workspace) -> dict[str, Any]:
    """Some of the window's candidates, as late labels bring them back."""
    requests = workspace.requests(played.next_window.index)
    return {
        "request_id": requests.request_id[requests.owner][3::5],
        "candidate_id": requests.candidate_id[3::5],
        "time": requests.time[requests.owner][3::5],
    }


def test_a_window_of_which_nothing_was_served_is_what_was_published_and_stays_so(
    run: Path, played: Played, workspace: Workspace, answered: Answered, settled: Callable[[], ServedFirst]
) -> None:
    first = read(settled(), played, workspace)
    log_of(run / IN_RUN, workspace, answered)
    second, published = read(settled(), played, workspace), read(played.log, played, workspace)
    for name in ("vector", "teacher_logit", "status", "age"):
        np.testing.assert_array_equal(getattr(first, name), getattr(published, name))
        np.testing.assert_array_equal(getattr(second, name), getattr(published, name))
    assert first.counts() == published.counts() | {"SERVED": 0, "PUBLISHED": len(published.status)}


def test_a_sealing_that_was_killed_is_done_again(
    run: Path, played: Played, workspace: Workspace, answered: Answered, settled: Callable[[], ServedFirst]
) -> None:
    log_of(run / IN_RUN, workspace, answered[:3])
    settled()
    (record,) = (run / IN_RUN / "sealed").glob("*.json")
    record.unlink()  # it is written last
    log_of(run / IN_RUN, workspace, answered[3:6])
    found = read(settled(), played, workspace)
    assert found.served_C.sum() == sum(len(asked.item) for asked, _ in answered[:6])


def test_a_pin_to_a_version_reads_its_answers_alone(
    run: Path, played: Played, workspace: Workspace, answered: Answered, settled: Callable[[], ServedFirst]
) -> None:
    tasks = len(workspace.inputs.tasks)
    asked = answered[2][0]
    log_of(run / IN_RUN, workspace, [*answered[:2], (asked, ladder.nothing(len(asked.item), tasks=tasks))])
    log = settled()
    own = Pin(expert="test", lineage="FM", version=played.snapshot.version, dtype="float16")
    assert read(log, played, workspace, pin=own).counts() == read(log, played, workspace).counts()
    older = read(log, played, workspace, pin=dataclasses.replace(own, version=played.snapshot.version - 1))
    assert older.counts()["SERVED"] == 0
    np.testing.assert_array_equal(np.flatnonzero(older.served_C), np.sort(places(asked, played, workspace)))


def test_a_snapshot_that_has_been_removed_since_is_known_by_what_it_published(
    run: Path, played: Played, workspace: Workspace, answered: Answered, settled: Callable[[], ServedFirst]
) -> None:
    log_of(run / IN_RUN, workspace, answered[:3])
    shutil.rmtree(run / "registry" / "FM" / f"{played.snapshot.version:04d}")
    assert read(settled(), played, workspace).counts()["SERVED"] == sum(len(asked.item) for asked, _ in answered[:3])
    shutil.rmtree(run / IN_RUN)
    unknown = [(asked, dataclasses.replace(given, snapshot="FM@0077")) for asked, given in answered[:1]]
    log_of(run / IN_RUN, workspace, unknown)
    with pytest.raises(RegistryError, match="FM@0077"):
        settled()


def test_an_answer_by_a_snapshot_that_has_seen_more_is_never_read(
    run: Path, played: Played, answered: Answered, settled: Callable[[], ServedFirst]
) -> None:
    """Law L3."""
    late = dataclasses.replace(played.snapshot, name="FM@0077", version=77, watermark=played.next_window.end)
    log = played.config.log.build(run / "tae_log")
    table = log.rows(
        snapshot=late,
        request_id=np.zeros(1, np.int64),
        candidate_id=np.zeros(1, np.int32),
        item_id=np.zeros(1, np.int64),
        time=np.array([late.watermark]),
        representations={"penultimate": np.zeros((1, 8))},
        teacher_logits={},
    )
    log.write(snapshot=late, window=played.next_window.index + 1, table=table, requests_digest="0" * 64)
    asked, given = answered[0]
    log_of(run / IN_RUN, played.workspace(), [(asked, dataclasses.replace(given, snapshot=late.name))])
    with pytest.raises(LeakageError, match="law L3"):
        settled()
    assert ServedFirst.of_run(run, config=played.config.log).served.sealed(played.next_window.index) is None


def test_what_is_not_settled_or_was_lost_is_refused(
    run: Path, played: Played, workspace: Workspace, answered: Answered, settled: Callable[[], ServedFirst]
) -> None:
    window = played.next_window
    log = ServedFirst.of_run(run, config=played.config.log)
    with pytest.raises(StoreError, match="window 5 is not sealed"):
        read(log, played, workspace)
    with pytest.raises(StoreError, match="window 5 has been predicted"):
        log.settle([window], workspace=workspace, registry=played.registry, predicted=[window.index])
    log_of(run / IN_RUN, workspace, answered[:3])
    log = settled()
    log.settle([window], workspace=workspace, registry=played.registry, predicted=[window.index])  # it is settled
    with pytest.raises(StoreError, match=r"(?s)sealed for requests with SHA-256"):
        read(log.served, played, workspace, requests_digest="0" * 64)
    (rows,) = (run / IN_RUN / "segments").rglob("*.json")
    rows.unlink()
    with pytest.raises(StoreError, match="not what the window was sealed with"):
        read(log, played, workspace)
