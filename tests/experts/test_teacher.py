"""What an expert reads of its teacher is what the log holds, as late as it is told to be."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from experts.past import PastEmbeddings
from experts.teacher import TeacherReader
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
    def make(*, delay: int = 0, version: int | None = None, widths: Mapping[str, int] = WIDTHS) -> TeacherReader:
        pin = Pin(expert="surface_1", lineage="FM", version=version)
        past = PastEmbeddings.Config()
        return TeacherReader(log=publisher.log, pin=pin, workspace=workspace, widths=widths, past=past, delay=delay)

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
    assert told.counts["FRESH"] == own.sum() and told.features.present_C.all()


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


def test_a_pin_to_a_version_is_a_delay_of_its_own(
    reader: MakeReader, publisher: Publisher, workspace: Workspace
) -> None:
    window = workspace.dataset.windows[2].index
    told = reader(delay=2, version=2).read(window, workspace.requests(window)).features
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
    assert told.counts["MISS"] == len(requests.item) and not told.features.present_C.any()
    assert told.features.vectors["past"].present_C.any()  # of the windows that were published
