"""A platform that is served between two runs goes on with what was served, and killed or not with the same bits."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from hypercast.cli import main as cli
from hypercast.codec import arrow
from hypercast.errors import StoreError
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.jobs import ExpertJob
from hypercast.runtime.platform import Platform
from hypercast.serving.config import ServingConfig
from hypercast.serving.deploy import store_of
from hypercast.serving.features.state import FeatureState
from hypercast.serving.logs import served
from hypercast.serving.logs.served import ServedLog
from hypercast.serving.models.bundle import BundleLoader
from hypercast.serving.service import Service
from hypercast.store.ladder import Rung
from hypercast.store.segment import LOGIT, as_numpy
from hypercast.training import checkpoint
from streaming import config as configuration
from streaming.dataset import Dataset, Window
from streaming.errors import ConfigError
from streaming.workspace import Workspace
from tests.hypercast.runtime.test_resume import outcome
from tests.hypercast.serving.replay import engagements_of, questions_of
from transfer import predictions

SURFACES = ("surface_0", "surface_1")
EXTRA = "windows: 3\nlearn_from: served\nserving: {clock: given, live: {deadline_ms: 20000}}\n"


def command(file: Path, *, windows: int) -> None:
    """``hypercast run`` over the first windows."""
    text = file.read_text(encoding="utf-8").replace("windows: 3", f"windows: {windows}")
    file.write_text(text, encoding="utf-8")
    result = CliRunner().invoke(cli.app, ["run", str(file), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def answer(config: PlatformConfig, window: Window, rows: slice, *, mode: str) -> None:
    """Let a service that knows nothing of ``window`` beforehand answer some of its requests, in order of time."""
    serving = ServingConfig.model_validate({**dict(config.serving or {}), "mode": mode})
    workspace = config.workspace(Dataset.open(config.dataset.path))
    requests, events = workspace.requests(window.index), engagements_of(workspace, window.index)
    state = FeatureState.open(workspace, as_of=window.start, config=serving.state)
    service = Service(
        config=serving,
        workspace=workspace,
        state=state,
        loader=BundleLoader(config=config, workspace=workspace),
        store=store_of(config, serving),
        log=ServedLog(config.run / served.IN_RUN, tasks=workspace.inputs.tasks),
        journal=config.run / "serving" / "events.jsonl",
    )

    async def ask() -> None:
        before = window.start
        for place in range(*rows.indices(len(requests))):
            one = requests.slice(place, place + 1)
            new = (events["time"] >= before) & (events["time"] < one.time[0])
            state.observe({name: column[new] for name, column in events.items()})
            before = int(one.time[0])
            for surface in range(len(SURFACES)):
                if len(part := one.on_surface(surface)):
                    (question,) = questions_of(workspace, part, given=state.given)
                    await service.ranker.rank(question, arrived=time.monotonic())

    with contextlib.closing(service):
        asyncio.run(ask())


@pytest.fixture(scope="module")
def going(tmp_path_factory: pytest.TempPathFactory, platform_file: Callable[..., Path]) -> Path:
    """The file of a platform that has run over three windows, and whose service has answered half of the fourth's."""
    file = platform_file(tmp_path_factory.mktemp("going") / "run", EXTRA)
    command(file, windows=3)
    config = configuration.load(file, PlatformConfig)
    window = Dataset.open(config.dataset.path).windows[3]
    count = len(config.workspace(Dataset.open(config.dataset.path)).requests(window.index))
    answer(config, window, slice(0, count // 4), mode="live")
    answer(config, window, slice(count // 4, count // 2), mode="cached")
    answer(config, window, slice(0, 2), mode="cached")  # asked again: the first answer counts
    return file


def copied(going: Path, folder: Path) -> Path:
    """The platform with its run in another folder."""
    run = shutil.copytree(going.with_suffix(""), folder / "run")
    file = folder / "run.yaml"
    file.write_text(going.read_text(encoding="utf-8").replace(str(going.with_suffix("")), str(run)), encoding="utf-8")
    return file


def said(workspace: Workspace, log: Path, window: Window) -> dict[tuple[int, int], dict[str, Any]]:
    """What the service logged first of each candidate."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for part in served.parts(log, window):
        named = [name for name in part.column_names if name == "vector_penultimate"]
        width = len(part["vector_penultimate"][0]) if named else 0
        vector = arrow.decode(part["vector_penultimate"], codec="float32", width=width) if named else None
        logit = np.stack([as_numpy(part, LOGIT + task) for task in workspace.inputs.tasks], axis=1)
        for row in range(part.num_rows):
            key = (part["request_id"][row].as_py(), part["candidate_id"][row].as_py())
            rung = Rung(part["rung"][row].as_py())
            given = vector[row] if vector is not None and rung != Rung.ZEROS else None
            found.setdefault(key, {"rung": rung, "vector": given, "logit": logit[row]})
    return found


def test_experts_go_on_with_what_was_served(
    going: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = copied(going, tmp_path / "whole"), copied(going, tmp_path / "broken")
    command(whole, windows=4)
    config = configuration.load(whole, PlatformConfig)
    experts = ExpertJob(config, config.run, list(SURFACES))
    workspace = experts.workspace
    window = workspace.dataset.windows[3]
    logged = said(workspace, config.run / served.IN_RUN, window)
    assert {answered["rung"] for answered in logged.values()} >= {Rung.LIVE, Rung.ZEROS}
    published, learned = config.log.build(config.run / "tae_log"), 0
    for index, surface in enumerate(SURFACES):
        requests = workspace.requests(window.index).on_surface(index)
        learner = experts.learners[surface]
        told = learner.teacher.read(window.index, requests).features
        plain = published.read(
            window=window.index,
            pin=learner.pin,
            request_id=requests.request_id[requests.owner],
            candidate_id=requests.candidate_id,
            time=requests.time[requests.owner],
            width=config.foundation.model.representation,
            tasks=workspace.inputs.tasks,
        )
        keys = zip(requests.request_id[requests.owner].tolist(), requests.candidate_id.tolist(), strict=True)
        for row, key in enumerate(keys):
            expected = {"vector": plain.vector[row], "logit": plain.teacher_logit[row]}
            expected = logged.get(key, expected)
            learned += key in logged
            vectors = told.vectors["penultimate"]
            present = expected["vector"] is not None
            assert vectors.present_C[row] == told.present_C[row] == present
            vector = expected["vector"] if present else np.zeros_like(plain.vector[row])
            np.testing.assert_array_equal(vectors.vector_CR[row].numpy(), vector)
            np.testing.assert_array_equal(told.logit_CT[row].numpy(), expected["logit"])
        metrics = checkpoint.load(config.run / "checkpoints" / "experts" / surface).state["metrics"]
        for each in ("1", "2", "3"):
            assert metrics[each]["coverage/served"] == 0
        shares = [metrics["4"][f"coverage/{name}"] for name in ("served", "published", "miss")]
        assert sum(shares) == pytest.approx(1) and min(shares) > 0
    assert learned == len(logged)

    # Killed after a surface has learned the window; more is logged before it goes on.
    class Killed(BaseException):
        pass

    with monkeypatch.context() as patch:
        real, calls = checkpoint.save, []

        def save(*args: Any, **kwargs: Any) -> None:
            calls.append(kwargs)
            if len(calls) == 2:
                raise Killed
            real(*args, **kwargs)

        patch.setattr(checkpoint, "save", save)
        with pytest.raises(Killed):
            command(broken, windows=4)
    other = configuration.load(broken, PlatformConfig)
    answer(other, window, slice(-3, None), mode="live")
    command(broken, windows=4)
    ours, theirs = outcome(other.run), outcome(config.run)
    for name in theirs:
        assert ours[name] == theirs[name], name

    # What the service says has no way into a control.
    plainly = outcome(tiny_run)["predictions"]
    assert {name for name in plainly if "window=00004" not in name} == {
        name for name, digest in theirs["predictions"].items() if plainly[name] == digest
    }
    for surface in SURFACES:
        one, two = (predictions.read(run, surface=surface, window=4) for run in (config.run, tiny_run))
        differ = {name for name in one.column_names if not one[name].equals(two[name])}
        assert differ and not any("control" in name for name in differ)

    # And a window that was predicted from what is gone is not predicted from something else.
    shutil.rmtree(config.run / served.IN_RUN)
    with pytest.raises(StoreError, match="window 1 has been predicted"):
        Platform(config).run(lambda message, share: None)


@pytest.mark.slow
def test_the_same_bits_on_ray(going: Path, tmp_path: Path) -> None:
    local, ray = copied(going, tmp_path / "local"), copied(going, tmp_path / "ray")
    ray.write_text(ray.read_text(encoding="utf-8") + "engine: ray\nexpert_jobs: 2\n", encoding="utf-8")
    for file in (local, ray):
        command(file, windows=4)
    ours, theirs = (outcome(file.with_suffix("")) for file in (ray, local))
    for name in theirs:
        assert ours[name] == theirs[name], name


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("serving: {mode: expert}", "no answer has a vector"),
        ("serving: {keep: false}", "no answer is logged"),
        ("foundation: {publisher: {keep: 9}}\nexpert: {teacher_delay_windows: 1}", "asks for an older one"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(extra: str, message: str, tmp_path: Path) -> None:
    text = f"name: shop\ndataset: {{path: data}}\nrun: run\n{extra}\n"
    file = tmp_path / "platform.yaml"
    file.write_text(text, encoding="utf-8")
    configuration.load(file, PlatformConfig)
    file.write_text(f"{text}learn_from: served\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"learn_from: served: .*{message}.*or give learn_from: published"):
        configuration.load(file, PlatformConfig)
