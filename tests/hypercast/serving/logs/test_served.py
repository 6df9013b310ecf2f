"""What was served is what is trained on."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from experts.steps import SurfaceLearner
from foundation.publish import Publisher
from hypercast.cli.served import served as command
from hypercast.errors import StoreError
from hypercast.pins import Pin
from hypercast.serving.lanes import ladder
from hypercast.serving.logs import served
from hypercast.serving.logs.sealed import SealReport
from hypercast.serving.logs.served import ServedLog
from hypercast.serving.logs.served_windows import ServedWindows
from hypercast.serving.models.foundation import FoundationScorer
from hypercast.store.status import Status
from hypercast.store.tae_log import TaeLog
from streaming import config as configuration
from streaming.errors import ConfigError
from streaming.workspace import Workspace
from tests.hypercast.serving.conftest import Played
from tests.hypercast.serving.logs.conftest import Answered, log_of


@pytest.fixture(scope="module")
def workspace(played: Played) -> Workspace:
    return played.workspace()


def seal(folder: Path, played: Played, workspace: Workspace) -> tuple[ServedWindows, SealReport]:
    windows = ServedWindows(folder, config=played.config.log)
    report = windows.seal(
        window=played.next_window, workspace=workspace, registry=played.registry, published=played.log
    )
    return windows, report


def read(log: TaeLog, played: Played, workspace: Workspace, *, pin: Pin | None = None) -> Any:
    requests = workspace.requests(played.next_window.index)
    return log.read(
        window=played.next_window.index,
        pin=pin or Pin(expert="test", lineage="FM"),
        request_id=requests.request_id[requests.owner],
        candidate_id=requests.candidate_id,
        time=requests.time[requests.owner],
        width=8,
        tasks=workspace.inputs.tasks,
    )


def learned(log: TaeLog, played: Played, workspace: Workspace, run: Path) -> dict[str, torch.Tensor]:
    """An expert that goes on with the next window, by what ``log`` holds of it."""
    config = played.config
    learner = SurfaceLearner(
        config=config.expert.model_copy(update={"arms": ["tae", "treated"]}),
        surfaces=[workspace.inputs.surfaces[0]],
        workspace=workspace,
        log=log,
        pin=Pin(expert="test", lineage="FM"),
        embedding=config.foundation.model.representation,
        seeds=[0],
        run=run,
    )
    learner.vocabulary.train()
    for batch in learner.batches(played.next_window):
        learner.step(batch)
    return {
        f"{arm}.{name}": value
        for (arm, _), member in learner.members.items()
        for name, value in member.model.state_dict().items()
    }


def test_an_expert_learns_the_same_from_what_was_served_as_from_what_was_published(
    tmp_path: Path, played: Played, workspace: Workspace, answered: Answered
) -> None:
    log_of(tmp_path / "served", workspace, answered)
    log, report = seal(tmp_path / "served", played, workspace)
    rows = len(workspace.requests(played.next_window.index).item)
    assert report == SealReport(
        rows=rows, served=rows, vectors=rows, repeated=0, unknown=0, other_dense=0, other_history=0
    )
    # One request at a time, as it was served: a batch of another size adds up in another order.
    config = played.config.publisher().model_copy(update={"batch_size": 1})
    publisher = Publisher(
        config=config,
        model=played.config.foundation.model,
        workspace=workspace,
        registry=played.registry,
        log=played.config.log.build(tmp_path / "published"),
    )
    publisher.publish(played.next_window, played.snapshot)
    one, other = read(log, played, workspace), read(publisher.log, played, workspace)
    for name in ("vector", "teacher_logit", "status", "age"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert one.aligned
    assert one.vector.any()
    mine = learned(log, played, workspace, tmp_path / "a")
    theirs = learned(publisher.log, played, workspace, tmp_path / "b")
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    without = learned(TaeLog(tmp_path / "nothing"), played, workspace, tmp_path / "c")
    assert not all(torch.equal(value, without[name]) for name, value in mine.items())


def test_sealing_again_writes_nothing_and_more_is_refused(
    tmp_path: Path, played: Played, workspace: Workspace, answered: Answered
) -> None:
    log_of(tmp_path, workspace, answered[:5])
    log, report = seal(tmp_path, played, workspace)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "segments").rglob("*.arrow")}
    log_of(tmp_path, workspace, answered[:2])  # asked again: the first answer stays
    assert seal(tmp_path, played, workspace)[1] == dataclasses.replace(
        report, repeated=sum(len(asked.item) for asked, _ in answered[:2])
    )
    assert {path: path.stat().st_mtime_ns for path in before} == before
    log_of(tmp_path, workspace, answered[5:6])
    with pytest.raises(StoreError, match="window 5 is sealed with other answers"):
        seal(tmp_path, played, workspace)
    assert (read(log, played, workspace).status == Status.MISS).sum() == report.rows - report.vectors


def test_answers_without_a_vector_read_as_such_and_two_snapshots_are_one_log(
    tmp_path: Path, played: Played, workspace: Workspace, answered: Answered
) -> None:
    older = played.registry.list("FM")[-2]
    scorer = FoundationScorer(snapshot=older, workspace=workspace, ages=played.config.log)
    tasks = len(workspace.inputs.tasks)
    mixed = [
        *((asked, ladder.computed(scorer.score(asked), slice(None))) for asked, _ in answered[:4]),
        *((asked, ladder.nothing(len(asked.item), tasks=tasks)) for asked, _ in answered[4:6]),
        *answered[6:],
    ]
    log_of(tmp_path, workspace, mixed)
    log, report = seal(tmp_path, played, workspace)
    none = sum(len(asked.item) for asked, _ in mixed[4:6])
    assert report.vectors == report.served - none == report.rows - none
    rows = {key: place for place, key in enumerate(_keys(workspace, played))}
    found = read(log, played, workspace)
    for asked, given in mixed:
        ids = zip(asked.request_id[asked.owner].tolist(), asked.candidate_id.tolist(), strict=True)
        place = np.array([rows[key] for key in ids])
        if given.snapshot is None:
            assert (found.status[place] == Status.MISS).all() and not found.vector[place].any()
        else:
            np.testing.assert_array_equal(found.vector[place], given.vectors["penultimate"])
            np.testing.assert_array_equal(found.teacher_logit[place], given.logit_CT)
    pinned = read(log, played, workspace, pin=Pin(expert="test", lineage="FM", version=older.version))
    assert pinned.counts()["MISS"] == report.rows - sum(len(asked.item) for asked, _ in mixed[:4])


def test_what_was_served_otherwise_than_it_would_be_trained_on_is_found_out(
    tmp_path: Path, played: Played, workspace: Workspace, answered: Answered
) -> None:
    asked, given = next(pair for pair in answered if len(pair[0].past[0].time) > 2)
    dense = asked.dense.copy()
    dense[0, 0] += 0.01
    shorter = tuple(type(past)(*(column[1:] for column in past)) for past in asked.past)
    log_of(tmp_path, workspace, [(dataclasses.replace(asked, dense=dense, past=shorter), given)])
    report = seal(tmp_path, played, workspace)[1]
    assert (report.other_dense, report.other_history) == (1, len(asked.item))


@pytest.mark.parametrize("other", ["time", "user_id", "surface", "item_id"])
def test_an_answer_to_another_request_with_the_same_ids_is_not_trained_on(
    tmp_path: Path, played: Played, workspace: Workspace, answered: Answered, other: str
) -> None:
    asked, given = answered[3]
    changed = dataclasses.replace(asked, **{other: getattr(asked, other) + 1})
    log_of(tmp_path, workspace, [(changed, given), *answered[:2]])
    log, report = seal(tmp_path, played, workspace)
    assert report.unknown == len(asked.item)
    assert report.served == sum(len(each.item) for each, _ in answered[:2])
    assert read(log, played, workspace).counts()["MISS"] == report.rows - report.served
    # The one that is meant is not taken for a repetition.
    log_of(tmp_path / "both", workspace, [(changed, given), (asked, given)])
    both = seal(tmp_path / "both", played, workspace)[1]
    assert (both.served, both.repeated, both.unknown) == (len(asked.item), 0, len(asked.item))


def test_a_part_is_whole_or_absent(
    tmp_path: Path, played: Played, workspace: Workspace, answered: Answered, monkeypatch: Any
) -> None:
    log = ServedLog(tmp_path, tasks=workspace.inputs.tasks)
    log.append(*answered[0])

    def torn(path: Path, write: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path.with_name(f".{path.name}.partial"))
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(served.files, "write_file", torn)
        with pytest.raises(StoreError, match="cannot be written"):
            log.commit()
    assert not list(served.parts(tmp_path, played.next_window))
    log.commit()
    (table,) = served.parts(tmp_path, played.next_window)
    assert table.num_rows == len(answered[0][0].item)
    assert served.drop(tmp_path, before=played.next_window.start) == 0
    assert served.drop(tmp_path, before=played.next_window.end + served.DAY) == 1
    assert not list(served.parts(tmp_path, played.next_window))


def test_the_command_seals_what_was_served(
    tmp_path: Path, played: Played, workspace: Workspace, answered: Answered
) -> None:
    shutil.copytree(played.run / "registry", tmp_path / "registry")
    config = tmp_path / "platform.yaml"
    config.write_text(configuration.dump(played.config))
    app = typer.Typer()
    app.command()(command)

    def sealed(*options: str) -> list[dict[str, int]]:
        result = CliRunner().invoke(app, [str(config), "--run", str(tmp_path), "--json", *options])
        assert result.exit_code == 0, result.output
        return json.loads(result.output)

    assert sealed() == []
    log_of(tmp_path / served.IN_RUN, workspace, answered[:3])
    earlier = tmp_path / served.IN_RUN / "parts" / "day=2024-01-02" / "old"
    earlier.parent.mkdir()
    earlier.write_bytes(b"")
    assert sealed("--window", "4")[0]["served"] == 0
    (row,) = sealed("--drop")
    assert not earlier.parent.exists() and list((tmp_path / served.IN_RUN / "parts").rglob("*.arrow"))
    assert sealed() == []
    assert sealed("--window", "5") == [row]
    refused = CliRunner().invoke(app, [str(config), "--window", "5", "--drop"])
    assert isinstance(refused.exception, ConfigError)
    count = sum(len(asked.item) for asked, _ in answered[:3])
    assert (row["window"], row["served"], row["vectors"], row["other_dense"]) == (5, count, count, 0)


def test_a_damaged_part_is_named(tmp_path: Path, played: Played, workspace: Workspace, answered: Answered) -> None:
    log_of(tmp_path, workspace, answered[:1])
    (part,) = (tmp_path / "parts").rglob("*.arrow")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(StoreError, match=part.name):
        seal(tmp_path, played, workspace)


def _keys(workspace: Workspace, played: Played) -> list[tuple[int, int]]:
    requests = workspace.requests(played.next_window.index)
    return list(zip(requests.request_id[requests.owner].tolist(), requests.candidate_id.tolist(), strict=True))
