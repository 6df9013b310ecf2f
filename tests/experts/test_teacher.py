"""What an expert reads of its teacher is what the log holds, as late as it is told to be."""

import copy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from experts.arms import ArmName
from experts.batch import ExpertBatch
from experts.model import ExpertModel
from experts.past import PastEmbeddings
from experts.steps import SurfaceLearner
from experts.teacher import TeacherLabels, TeacherReader, as_late_as
from foundation.hstu.layer import HSTUStack
from foundation.hstu.vocabulary import BatchVocabulary
from foundation.model import FoundationModel
from foundation.publish import Publisher
from hypercast.errors import StoreError
from hypercast.pins import Pin
from hypercast.registry import Registry
from hypercast.store.tae_log import TaeLog
from streaming.workspace import Workspace

WIDTHS = {"penultimate": 6, "sequence": 8, "user": 8}
MakeReader = Callable[..., TeacherReader]


@pytest.fixture(scope="module")
def publisher(
    workspace: Workspace, sizes: BatchVocabulary.Config, tmp_path_factory: pytest.TempPathFactory
) -> Publisher:
    """Three snapshots, one at the start of each window; the third window was published by all of them."""
    root: Path = tmp_path_factory.mktemp("published")
    stack = HSTUStack.Config(layers=1)
    config = FoundationModel.Config(width=8, representation=6, tower=12, history=10, stack=stack, vocabulary=sizes)
    made = Publisher(
        config=Publisher.Config(representations=list(WIDTHS), dtype="float32"),  # type: ignore[arg-type]
        model=config,
        workspace=workspace,
        registry=Registry(root / "registry"),
        log=TaeLog.Config().build(root / "log"),
    )
    windows = workspace.dataset.windows[:3]
    for seed, window in enumerate(windows):
        made.release(config.build(inputs=workspace.inputs, seed=seed), watermark=window.start, metrics={})
        made.publish(window)
    for snapshot in made.registry.list("FM"):
        made.publish(windows[2], snapshot)
    return made


@pytest.fixture
def reader(publisher: Publisher, workspace: Workspace) -> MakeReader:
    def make(
        *,
        delay: int = 0,
        label_delay: int | None = None,
        version: int | None = None,
        widths: Mapping[str, int] = WIDTHS,
    ) -> TeacherReader:
        return TeacherReader(
            log=publisher.log,
            pin=Pin(expert="surface_1", lineage="FM", version=version),
            workspace=workspace,
            widths=widths,
            past=PastEmbeddings.Config(),
            delay=delay,
            label_delay=label_delay,
        )

    return make


def test_every_representation_is_the_candidates_own_row(
    reader: MakeReader, publisher: Publisher, workspace: Workspace
) -> None:
    window = workspace.dataset.windows[1].index
    everything = workspace.requests(window)
    told = reader().read(window, everything.on_surface(1))
    (segment,) = (one for one in publisher.log.segments() if one.window == window)
    own = everything.surface == 1
    for name, width in WIDTHS.items():
        vector = told.features.vectors[name].vector_CR.numpy()
        assert vector.shape[1] == width
        np.testing.assert_array_equal(vector, segment.vectors(name, slice(None))[own])
    np.testing.assert_array_equal(told.features.logit_CT[:, 0].numpy(), segment.numpy("teacher_logit_purchase")[own])
    assert told.found.counts()["FRESH"] == own.sum() and told.features.present_C.all()


@pytest.mark.parametrize(("delay", "version"), [(0, 3), (1, 2), (2, 1), (9, 1)])
def test_a_delayed_teacher_is_the_snapshot_of_an_earlier_window(
    delay: int, version: int, reader: MakeReader, publisher: Publisher, workspace: Workspace
) -> None:
    window = workspace.dataset.windows[2].index
    requests = workspace.requests(window)
    told = reader(delay=delay).read(window, requests).features
    segment = publisher.log.segment(f"FM@{version:04d}", window)
    np.testing.assert_array_equal(told.logit_CT[:, 1].numpy(), segment.numpy("teacher_logit_multiple"))
    np.testing.assert_array_equal(
        told.vectors["penultimate"].vector_CR.numpy(), segment.vectors("penultimate", slice(None))
    )


@pytest.mark.parametrize(
    ("delay", "label_delay", "vectors", "labels"),
    [(0, 1, 3, 2), (0, 2, 3, 1), (1, 2, 2, 1), (0, 9, 3, 1), (1, 1, 2, 2)],
)
def test_labels_may_be_older_than_vectors(
    delay: int,
    label_delay: int,
    vectors: int,
    labels: int,
    reader: MakeReader,
    publisher: Publisher,
    workspace: Workspace,
) -> None:
    window = workspace.dataset.windows[2].index
    requests = workspace.requests(window)
    made = reader(delay=delay, label_delay=label_delay)
    told = made.read(window, requests).features
    taught = made.labels(window, requests, told)
    of = {version: publisher.log.segment(f"FM@{version:04d}", window) for version in (vectors, labels)}
    np.testing.assert_array_equal(
        told.vectors["penultimate"].vector_CR.numpy(), of[vectors].vectors("penultimate", slice(None))
    )
    np.testing.assert_array_equal(told.logit_CT[:, 0].numpy(), of[vectors].numpy("teacher_logit_purchase"))
    np.testing.assert_array_equal(taught.logit_CT[:, 0].numpy(), of[labels].numpy("teacher_logit_purchase"))
    assert taught.present_C.all()
    # Never newer than allowed: the snapshot had learned nothing of the windows that it may not know (law L3).
    assert of[labels].facts.watermark <= as_late_as(workspace.dataset, window, delay=label_delay)


def test_labels_that_were_not_published_so_late_are_refused(reader: MakeReader, workspace: Workspace) -> None:
    window = workspace.dataset.windows[1].index
    requests = workspace.requests(window)
    made = reader(label_delay=1)
    told = made.read(window, requests).features
    with pytest.raises(StoreError, match=r"newer than teacher_delay_windows: 0 and label_delay_windows: 1.*delayed\(w"):
        made.labels(window, requests, told)


def test_a_pin_to_a_version_is_a_delay_of_its_own(
    reader: MakeReader, publisher: Publisher, workspace: Workspace
) -> None:
    window = workspace.dataset.windows[2].index
    made = reader(delay=2, label_delay=3, version=2)
    told = made.read(window, workspace.requests(window)).features
    assert made.labels(window, workspace.requests(window), told).logit_CT is told.logit_CT
    expected = publisher.log.segment("FM@0002", window).numpy("teacher_logit_purchase")
    np.testing.assert_array_equal(told.logit_CT[:, 0].numpy(), expected)


def test_no_fresher_snapshot_stands_in_for_one_that_has_not_published(reader: MakeReader, workspace: Workspace) -> None:
    window = workspace.dataset.windows[1].index
    with pytest.raises(StoreError, match=r"published by \['FM@0002'\] only.*teacher_delay_windows: 1.*older snapshot"):
        reader(delay=1).read(window, workspace.requests(window))


def test_without_any_segment_every_key_is_a_miss(reader: MakeReader, workspace: Workspace) -> None:
    window = workspace.dataset.windows[4].index
    requests = workspace.requests(window)
    assert not reader(delay=1).read(window, requests).features.present_C.any()
    told = reader(widths=WIDTHS | {"past": 6}).read(window, requests)
    assert told.found.counts()["MISS"] == len(requests.item) and not told.features.present_C.any()
    assert told.features.vectors["past"].present_C.any()  # of the windows that were published


def test_only_what_is_distilled_is_older(publisher: Publisher, workspace: Workspace, tmp_path: Path) -> None:
    made = copy.copy(publisher)
    made.log = TaeLog(shutil.copytree(publisher.log.root, tmp_path / "log"))
    windows = workspace.dataset.windows[:3]
    for window in windows:
        made.publish_delayed(window, 1)

    def batches(arm: ArmName, later: int) -> list[ExpertBatch]:
        learner = SurfaceLearner(
            config=SurfaceLearner.Config(
                arms=["control", arm],
                label_delay_windows=later,
                model=ExpertModel.Config(width=4, history=5),
                vocabulary=BatchVocabulary.Config(default=128),
            ),
            surfaces=["surface_1"],
            workspace=workspace,
            log=made.log,
            pin=Pin(expert="surface_1", lineage="FM"),
            embedding=6,
            seeds=[0],
            run=tmp_path / "run",
        )
        return list(learner.batches(windows[2]))

    compared = list(zip(batches("kd", 0), batches("kd", 1), batches("tae", 1), strict=True))
    assert compared
    for now, late, reads in compared:
        assert torch.equal(now.teacher.logit_CT, late.teacher.logit_CT)
        assert torch.equal(now.lesson.teacher_CT, now.teacher.logit_CT)
        assert not torch.equal(late.lesson.teacher_CT, now.lesson.teacher_CT)
        assert torch.equal(late.lesson.label_CT, now.lesson.label_CT)
        assert torch.equal(reads.lesson.teacher_CT, reads.teacher.logit_CT)  # nothing distils


def test_labels_of_parts_are_joined_as_they_were_cut() -> None:
    given = TeacherLabels(logit_CT=torch.arange(8.0).view(4, 2), present_C=torch.tensor([1.0, 0.0, 1.0, 1.0]))
    part = given[1:3]
    assert part.logit_CT.tolist() == [[2, 3], [4, 5]] and part.present_C.tolist() == [0, 1]
    whole = TeacherLabels.joined([given[0:1], given[1:1], part, given[3:4]])
    assert whole.logit_CT.equal(given.logit_CT) and whole.present_C.equal(given.present_C)


def test_where_nothing_was_asked_nothing_is_noted(reader: MakeReader, workspace: Workspace) -> None:
    requests = workspace.requests(2)
    told = reader().read(2, requests)
    assert told.noted(np.zeros(len(requests.item), dtype=bool)) == {}
    assert told.noted(np.ones(len(requests.item), dtype=bool))["coverage/fresh"] == 1.0
