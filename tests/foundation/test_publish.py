"""Publishing: once is as good as twice, no window is scored from its own future (law L3), training is left alone."""

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from foundation.hstu.layer import HSTUStack
from foundation.model import FoundationModel
from foundation.publish import Publisher, schema_hash
from foundation.steps import FoundationLearner
from hypercast import tensors
from hypercast.codec import rows
from hypercast.errors import ConflictError, RegistryError, StoreError
from hypercast.pins import Pin
from hypercast.registry import Registry
from hypercast.store.tae_log import TaeLog
from hypercast.training import checkpoint
from streaming.dataset import Window
from streaming.errors import LeakageError
from streaming.workspace import Workspace

MakePublisher = Callable[..., Publisher]


@pytest.fixture
def publisher(tmp_path: Path, workspace: Workspace, small: FoundationModel.Config) -> MakePublisher:
    def make(probe: Path | None = None, **config: object) -> Publisher:
        return Publisher(
            config=Publisher.Config(**config),
            probe=probe,
            model=small,
            workspace=workspace,
            registry=Registry(tmp_path / "registry"),
            log=TaeLog.Config().build(tmp_path / "log"),
        )

    return make


def learner_of(publisher: Publisher, workspace: Workspace, small: FoundationModel.Config) -> FoundationLearner:
    config = FoundationLearner.Config(batch_size=40, model=small)
    return FoundationLearner(config=config, workspace=workspace, publisher=publisher, seed=0)


@pytest.fixture
def trained(publisher: MakePublisher, workspace: Workspace, small: FoundationModel.Config) -> FoundationModel:
    """After one window of training, which also filled the id tables."""
    learner = learner_of(publisher(), workspace, small)
    for batch in learner.batches(workspace.dataset.windows[0]):
        learner.step(batch)
    return learner.model


def state(model: FoundationModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return tensors.digest(mine) == tensors.digest(theirs)


def test_release_twice(publisher: MakePublisher, trained: FoundationModel, workspace: Workspace) -> None:
    watermark = workspace.dataset.windows[1].start
    first, second = (publisher().release(trained, watermark=watermark, metrics={}) for _ in range(2))
    assert first.name == second.name == "FM@0001"
    assert len(Registry(publisher().registry.root).list("FM")) == 1
    assert same(first.load(), state(trained))
    assert (first.watermark, first.dims, first.dtype) == (watermark, {"penultimate": 6}, "float16")


def test_releases_are_a_chain(publisher: MakePublisher, trained: FoundationModel, workspace: Workspace) -> None:
    made = publisher()
    names = [made.release(trained, watermark=w.start, metrics={}) for w in workspace.dataset.windows[:3]]
    assert [snapshot.manifest["parent"] for snapshot in names] == [None, "FM@0001", "FM@0002"]
    again = made.release(trained, watermark=workspace.dataset.windows[2].start, metrics={})
    assert again.manifest == names[-1].manifest


def test_of_two_trainings_of_one_lineage_one_goes_on(
    publisher: MakePublisher, trained: FoundationModel, workspace: Workspace
) -> None:
    mine, theirs = publisher(), publisher()
    first, second, third = (window.start for window in workspace.dataset.windows[:3])
    assert mine.release(trained, watermark=first, metrics={}) == theirs.release(trained, watermark=first, metrics={})
    mine.release(trained, watermark=second, metrics={})
    with torch.no_grad():
        trained.main_heads.bias += 1.0
    with pytest.raises(ConflictError, match="the newest snapshot is FM@0002, not FM@0001, from which"):
        theirs.release(trained, watermark=third, metrics={})
    assert [snapshot.name for snapshot in mine.registry.list("FM")] == ["FM@0001", "FM@0002"]
    assert mine.release(trained, watermark=third, metrics={}).manifest["parent"] == "FM@0002"


def test_a_learner_goes_on_from_the_snapshot_of_its_checkpoint(
    publisher: MakePublisher, workspace: Workspace, small: FoundationModel.Config
) -> None:
    """Killed before or after its next release: the chain is the same."""
    first, second, *_ = workspace.dataset.windows
    learner = learner_of(publisher(), workspace, small)
    learner.prepare(first)
    for batch in learner.batches(first):
        learner.step(batch)
    learner.finish(first)
    packed, skeleton = checkpoint.pack(learner.state_dict())
    for _ in range(2):
        again = learner_of(publisher(), workspace, small)
        again.load_state_dict(checkpoint.unpack({name: tensor.clone() for name, tensor in packed.items()}, skeleton))
        for batch in again.batches(second):
            again.step(batch)
        again.finish(second)
    listed = again.publisher.registry.list("FM")
    assert [snapshot.manifest["parent"] for snapshot in listed] == [None, "FM@0001", "FM@0002"]


def test_a_window_published_by_other_weights_of_that_name_is_not_taken_over(
    publisher: MakePublisher, trained: FoundationModel, workspace: Workspace
) -> None:
    window = workspace.dataset.windows[1]
    publisher().release(trained, watermark=window.start, metrics={})
    written = publisher().publish(window)
    shutil.rmtree(publisher().registry.root)
    with torch.no_grad():
        trained.main_heads.bias += 1.0
    assert publisher().release(trained, watermark=window.start, metrics={}).name == written.snapshot
    with pytest.raises(StoreError, match=r"published by a FM@0001 of other weights.*Delete .*\.json"):
        publisher().publish(window)
    publisher().log.delete("FM@0001", window.index)
    assert publisher().publish(window).facts.weights_digest != written.facts.weights_digest


def test_only_the_newest_are_kept(publisher: MakePublisher, trained: FoundationModel, workspace: Workspace) -> None:
    made = publisher(keep=2)
    for window in workspace.dataset.windows:
        made.release(trained, watermark=window.start, metrics={})
    assert [snapshot.name for snapshot in made.registry.list("FM")] == ["FM@0005", "FM@0006"]


def test_publish_twice(publisher: MakePublisher, trained: FoundationModel, workspace: Workspace) -> None:
    window = workspace.dataset.windows[1]
    publisher().release(trained, watermark=window.start, metrics={})
    first, second = publisher().publish(window), publisher().publish(window)
    assert first.table.equals(second.table) and first.sha256 == second.sha256
    assert len(publisher().log.segments()) == 1


def test_a_pinned_version_is_published_as_well(
    publisher: MakePublisher, trained: FoundationModel, workspace: Workspace
) -> None:
    made, windows = publisher(), workspace.dataset.windows
    for window in windows[:3]:
        with torch.no_grad():
            trained.main_heads.bias += 1.0
        made.release(trained, watermark=window.start, metrics={})
    made.registry.pin("fixed", lineage="FM", version=2)
    made.registry.pin("follows", lineage="FM")
    assert [snapshot.name for snapshot in made.pinned_for(windows[3])] == ["FM@0002"]
    assert made.pinned_for(windows[0]) == []  # it has seen this window
    newest = made.publish(windows[3])
    pinned = [made.publish(windows[3], snapshot) for snapshot in made.pinned_for(windows[3])]
    assert newest.snapshot == "FM@0003" and [segment.snapshot for segment in pinned] == ["FM@0002"]
    logit = "teacher_logit_purchase"
    difference = newest.table[logit].to_numpy() - pinned[0].table[logit].to_numpy()
    assert difference == pytest.approx(1.0, abs=1e-5)


def test_any_window_is_filled_in_by_snapshots_that_have_seen_nothing_of_it(
    publisher: MakePublisher, trained: FoundationModel, workspace: Workspace
) -> None:
    made, windows = publisher(), workspace.dataset.windows
    released = []
    for window in windows[:3]:
        with torch.no_grad():
            trained.main_heads.bias += 1.0
        released.append(made.release(trained, watermark=window.start, metrics={}))
    for snapshot in reversed(released):
        made.publish(windows[2], snapshot)
    made.publish(windows[1], released[0])
    for window, snapshot in ((windows[1], released[2]), (windows[0], released[1])):
        with pytest.raises(LeakageError, match=f"{snapshot.name} has seen everything .*law L3"):
            made.publish(window, snapshot)
    found = [(segment.snapshot, segment.window) for segment in made.log.segments()]
    third = windows[2].index
    assert found == [("FM@0001", windows[1].index), ("FM@0001", third), ("FM@0002", third), ("FM@0003", third)]
    logits = [
        made.log.segment(name, third).numpy("teacher_logit_purchase") for name, window in found if window == third
    ]
    for earlier, later in itertools.pairwise(logits):
        assert later - earlier == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("codec", rows.NAMES)
def test_vectors_are_published_under_the_codec_that_is_asked_for(
    codec: rows.Name, publisher: MakePublisher, trained: FoundationModel, workspace: Workspace
) -> None:
    window = workspace.dataset.windows[1]
    made = publisher(dtype=codec)
    snapshot = made.release(trained, watermark=window.start, metrics={})
    segment = made.publish(window)
    assert (snapshot.dtype, segment.facts.dtype) == (codec, codec)
    exact = TaeLog.Config().build(made.log.root / "exact")
    made.log, snapshot.manifest["dtype"] = exact, "float32"
    vector_CR = made.publish(window, snapshot).vectors("penultimate", slice(None))
    payload_CB = rows.named(codec).encode(vector_CR)
    expected_CR = rows.named(codec).decode(payload_CB, vector_CR.shape[1])
    np.testing.assert_array_equal(segment.vectors("penultimate", slice(None)), expected_CR)


def test_a_codec_that_does_not_exist_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="'float32', 'float16', 'bfloat16', 'int8' or 'int4'"):
        Publisher.Config(dtype="int3")  # type: ignore[arg-type]


def test_what_was_published_is_not_computed_again(
    publisher: MakePublisher, trained: FoundationModel, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = workspace.dataset.windows[1]
    made = publisher()
    made.release(trained, watermark=window.start, metrics={})
    made.publish(window)

    def refuse(batch: object) -> None:
        raise AssertionError("the model was called")

    monkeypatch.setattr(made.model, "forward", refuse)
    assert made.publish(window).window == window.index


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hours=st.sets(st.integers(-5, 6 * 7 * 24 + 5), min_size=1, max_size=5), index=st.integers(0, 5))
def test_no_window_is_scored_by_a_snapshot_with_a_later_watermark(
    tmp_path_factory: pytest.TempPathFactory,
    workspace: Workspace,
    small: FoundationModel.Config,
    hours: set[int],
    index: int,
) -> None:
    root = tmp_path_factory.mktemp("law")
    made = Publisher(
        config=Publisher.Config(keep=9),
        model=small,
        workspace=workspace,
        registry=Registry(root / "registry"),
        log=TaeLog.Config().build(root / "log"),
    )
    start, window = workspace.dataset.windows[0].start, workspace.dataset.windows[index]
    watermarks = [start + hour * 3_600_000_000 for hour in sorted(hours)]
    for watermark in watermarks:
        made.release(made.model, watermark=watermark, metrics={})
    allowed = [watermark for watermark in watermarks if watermark <= window.start]
    if allowed:
        assert made.publish(window).facts.watermark == max(allowed)
    else:
        with pytest.raises(RegistryError, match="no snapshot of 'FM' with a watermark up to"):
            made.publish(window)
        assert made.log.segments() == []


def test_a_later_snapshot_does_not_change_what_a_window_gets(
    publisher: MakePublisher, trained: FoundationModel, workspace: Workspace
) -> None:
    second, third = workspace.dataset.windows[1:3]
    made = publisher()
    made.release(trained, watermark=second.start, metrics={})
    with torch.no_grad():
        trained.main_heads.bias += 1.0
    made.release(trained, watermark=third.start, metrics={})
    early, late = made.publish(second), made.publish(third)
    assert (early.snapshot, late.snapshot) == ("FM@0001", "FM@0002")
    assert made.publish(second).snapshot == "FM@0001"  # also after another snapshot was loaded
    for segment, window in ((early, second), (late, third)):
        assert segment.facts.watermark <= window.start
        assert min(segment.numpy("age")) >= 0


def test_published_rows_are_what_the_model_says(
    publisher: MakePublisher, trained: FoundationModel, workspace: Workspace, small: FoundationModel.Config
) -> None:
    window = workspace.dataset.windows[1]
    made = publisher(dtype="float32", batch_size=7)
    snapshot = made.release(trained, watermark=window.start, metrics={})
    twin = small.build(inputs=workspace.inputs, seed=9).eval()
    twin.load_state_dict(trained.state_dict())
    requests = workspace.requests(window.index)
    reader = workspace.reader({"all": (workspace.engagements, small.history)})
    with torch.no_grad():
        expected = twin(reader.batch(requests.slice(0, len(requests))))
    made.publish(window)
    found = made.log.read(
        window=window.index,
        pin=Pin(expert="home", lineage="FM"),
        request_id=requests.request_id[requests.owner],
        candidate_id=requests.candidate_id,
        time=requests.time[requests.owner],
        width=small.representation,
        tasks=["purchase", "multiple"],
        requests_digest=workspace.dataset.requests_digest(window.index),
    )
    assert found.snapshot == snapshot.name and found.aligned and found.present.all()
    np.testing.assert_allclose(found.vector, expected.penultimate_CR.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.teacher_logit, expected.logit_CT.numpy(), rtol=0, atol=1e-6)
    assert found.vector.std(axis=0).min() > 0


def test_releases_are_compared_on_a_probe(
    publisher: MakePublisher, trained: FoundationModel, workspace: Workspace, tmp_path: Path
) -> None:
    made, windows = publisher(probe=tmp_path / "probe"), workspace.dataset.windows
    told = []
    for window in windows[:3]:
        snapshot = made.release(trained, watermark=window.end, metrics={})
        told.append(made.compare(snapshot))
        with torch.no_grad():  # as if it had learned something that moves all embeddings
            list(trained.tower.parameters())[-1].add_(1.0)
    assert told[0] == {} and publisher().compare(snapshot) == {}
    for metrics in told[1:]:
        assert metrics["drift/centroid"] > 0.1 and metrics["drift/mmd"] > metrics["drift/mmd_null"]
        assert metrics["adapter/relative_error"] < 0.2
    (fitted,) = made.adapters("FM@0003")
    before, after = (vectors_of(made, windows[3], number) for number in (2, 3))
    assert np.linalg.norm(fitted.apply(after) - before) < 0.3 * np.linalg.norm(after - before)
    assert publisher(probe=tmp_path / "probe").compare(snapshot) == told[2]  # by another process, later


def vectors_of(made: Publisher, window: Window, version: int) -> np.ndarray:
    segment = made.publish(window, made.registry.get(f"FM@{version:04d}"))
    return np.stack(segment.table["penultimate"].to_pylist()).astype(np.float32)


def test_publishing_leaves_the_training_model_untouched(
    publisher: MakePublisher, workspace: Workspace, small: FoundationModel.Config
) -> None:
    first, second, *_ = workspace.dataset.windows
    made = publisher()
    disturbed, quiet = learner_of(made, workspace, small), learner_of(made, workspace, small)
    disturbed.prepare(first)
    for number, batch in enumerate(disturbed.batches(first)):
        disturbed.step(batch)
        before, _ = checkpoint.pack(disturbed.state_dict())
        before = {name: tensor.clone() for name, tensor in before.items()}
        made.release(disturbed.model, watermark=first.start + 1 + number, metrics={})
        made.publish(second)
        after, _ = checkpoint.pack(disturbed.state_dict())
        assert same(before, after)
        assert disturbed.model.training
    for batch in quiet.batches(first):
        quiet.step(batch)
    assert same(disturbed.model.state_dict(), quiet.model.state_dict())


def test_training_on_leaves_the_snapshot_untouched(
    publisher: MakePublisher, workspace: Workspace, small: FoundationModel.Config
) -> None:
    made = publisher()
    learner = learner_of(made, workspace, small)
    first, second, *_ = workspace.dataset.windows
    snapshot = made.release(learner.model, watermark=second.start, metrics={})
    before = state(learner.model)
    for batch in learner.batches(first):
        learner.step(batch)
    assert same(snapshot.load(), before) and not same(state(learner.model), before)


def test_the_first_window_gets_the_untrained_model(
    publisher: MakePublisher, workspace: Workspace, small: FoundationModel.Config
) -> None:
    made = publisher()
    learner, first = learner_of(made, workspace, small), workspace.dataset.windows[0]
    metrics = learner.evaluate(first)
    (snapshot,) = made.registry.list("FM")
    assert snapshot.watermark == first.start
    assert metrics["published_rows"] == len(workspace.requests(first.index).item)
    collisions = {value for name, value in metrics.items() if name.endswith("collision_rate")}
    assert collisions == {1.0}  # no id has a row yet


def test_a_learner_continues_with_the_same_bits(
    publisher: MakePublisher, workspace: Workspace, small: FoundationModel.Config
) -> None:
    first, second, *_ = workspace.dataset.windows
    made = publisher()
    learner, twin = learner_of(made, workspace, small), learner_of(made, workspace, small)
    for batch in learner.batches(first):
        learner.step(batch)
    packed, skeleton = checkpoint.pack(learner.state_dict())
    twin.load_state_dict(checkpoint.unpack({name: tensor.clone() for name, tensor in packed.items()}, skeleton))
    for one in (learner, twin):
        for batch in one.batches(second):
            one.step(batch)
    mine, theirs = checkpoint.pack(learner.state_dict()), checkpoint.pack(twin.state_dict())
    assert same(mine[0], theirs[0]) and mine[1] == theirs[1]


def test_schema_hash_tells_incompatible_models_apart(workspace: Workspace, small: FoundationModel.Config) -> None:
    inputs = workspace.inputs
    hashes = {
        schema_hash(small, inputs),
        schema_hash(small.model_copy(update={"representation": 7}), inputs),
        schema_hash(small.model_copy(update={"stack": HSTUStack.Config(layers=3)}), inputs),
        schema_hash(small, replace(inputs, dense=inputs.dense[::-1])),
    }
    assert len(hashes) == 4
    assert schema_hash(small.model_copy(), replace(inputs)) in hashes
