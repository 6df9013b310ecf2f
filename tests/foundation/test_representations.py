"""What a snapshot publishes beside the shared tower's output: what enters it, the encoding alone, the user alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydantic
import pytest
import torch

from foundation.hstu.tower import Tower
from foundation.model import FoundationModel
from foundation.publish import REPRESENTATIONS, Publisher
from hypercast.registry import Registry
from hypercast.store.segment import LOGIT
from hypercast.store.tae_log import TaeLog
from streaming.workspace import Workspace

MakePublisher = Callable[..., Publisher]


@pytest.fixture
def publisher(tmp_path: Path, workspace: Workspace, small: FoundationModel.Config) -> MakePublisher:
    def make(folder: str, **settings: object) -> Publisher:
        return Publisher(
            config=Publisher.Config(dtype="float32", **settings),
            model=small,
            workspace=workspace,
            registry=Registry(tmp_path / folder / "registry"),
            log=TaeLog.Config().build(tmp_path / folder / "log"),
        )

    return make


def test_all_are_rows_of_what_the_model_computes(
    publisher: MakePublisher, workspace: Workspace, small: FoundationModel.Config
) -> None:
    window = workspace.dataset.windows[1]
    made = publisher("all", representations=list(REPRESENTATIONS), batch_size=7)
    model = small.build(inputs=workspace.inputs, seed=3).eval()
    snapshot = made.release(model, watermark=window.start, metrics={})
    assert snapshot.dims == {
        "penultimate": small.representation,
        "sequence": small.width,
        "user": small.width,
        "tower_input": model.tower[0].in_features,
    }
    segment = made.publish(window)
    requests = workspace.requests(window.index)
    batch = workspace.reader({"all": (workspace.engagements, small.history)}).batch(requests)
    with torch.no_grad():
        output, user_BD = model(batch), model.user(batch)
    expected = {
        "penultimate": output.penultimate_CR,
        "sequence": output.sequence_CD,
        "user": user_BD[batch.owner_C],
        "tower_input": output.tower_input_CI,
    }
    for name, vector in expected.items():
        np.testing.assert_allclose(segment.vectors(name, slice(None)), vector.numpy(), rtol=0, atol=1e-5)


def test_a_tower_made_of_a_snapshot_says_what_the_snapshot_says(
    publisher: MakePublisher, workspace: Workspace, small: FoundationModel.Config
) -> None:
    """Of what the log holds; until it has been given weights, nothing, and nothing is learned from that."""
    window = workspace.dataset.windows[1]
    made = publisher("tower", representations=["penultimate", "tower_input"])
    snapshot = made.release(small.build(inputs=workspace.inputs, seed=3), watermark=window.start, metrics={})
    segment = made.publish(window)
    given = torch.from_numpy(segment.vectors("tower_input", slice(None)).copy())
    tower = Tower(shape=small.tower_shape(workspace.inputs), tasks=len(workspace.inputs.tasks))
    said = tower(given)
    said.sum().backward()
    assert not said.any() and not any(parameter.grad.any() for parameter in tower.parameters())
    tower.give(snapshot.load())
    for index, task in enumerate(workspace.inputs.tasks):
        expected = segment.numpy(LOGIT + task)
        np.testing.assert_allclose(tower(given)[:, index].detach().numpy(), expected, rtol=0, atol=1e-5)
    assert np.ptp(segment.numpy(LOGIT + "purchase")) > 0
    again = Tower(shape=small.tower_shape(workspace.inputs), tasks=len(workspace.inputs.tasks))
    again.load_state_dict(tower.state_dict())
    assert again(given).equal(tower(given))


def test_more_representations_change_nothing_of_the_others(
    publisher: MakePublisher, workspace: Workspace, small: FoundationModel.Config
) -> None:
    window = workspace.dataset.windows[1]
    model = small.build(inputs=workspace.inputs, seed=3)
    plain, more = publisher("plain"), publisher("more", representations=["penultimate", "sequence", "user"])
    for made in (plain, more):
        made.release(model, watermark=window.start, metrics={})
    names = [name for name in plain.publish(window).table.column_names if name != "snapshot"]
    assert "user" not in names
    assert plain.publish(window).table.select(names).equals(more.publish(window).table.select(names))


def test_a_user_is_the_history_before_the_request_and_no_candidate(
    workspace: Workspace, small: FoundationModel.Config
) -> None:
    model = small.build(inputs=workspace.inputs, seed=3).eval()
    requests = workspace.requests(4).slice(0, 12)
    reader = workspace.reader({"all": (workspace.engagements, small.history)})
    batch = reader.batch(requests)
    assert (batch.history["all"].offsets.diff() > 0).any()
    with torch.no_grad():
        user_BD = model.user(batch)
        one_each = requests._of_candidates(requests.offsets[:-1], np.ones(len(requests), dtype=np.int64))
        other = model.user(reader.batch(replace(one_each, dense=one_each.dense + 1)))
        history = batch.history["all"]
        moved = replace(history, action_L=1 - history.action_L)  # items all look alike to an untrained table
        past = model.user(replace(batch, history={"all": moved}))
        # The definition: the last token of the history, encoded as a sequence that ends there.
        encoded = model.stack(*model.prefix(batch, history, model.embed(batch)))
    torch.testing.assert_close(other, user_BD, rtol=0, atol=1e-6)
    assert not torch.allclose(past, user_BD, rtol=0, atol=1e-4)
    last = (2 * torch.arange(1, len(batch) + 1) + history.offsets[1:]) - 1
    assert encoded[last].equal(user_BD)


@pytest.mark.parametrize("wrong", [[], ["user"], ["penultimate", "user", "user"]])
def test_penultimate_is_always_there_and_each_once(wrong: list[str]) -> None:
    with pytest.raises(pydantic.ValidationError, match="penultimate is always published"):
        Publisher.Config(representations=wrong)  # type: ignore[arg-type]


def test_a_representation_that_does_not_exist_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="'penultimate', 'sequence', 'user' or 'tower_input'"):
        Publisher.Config(representations=["penultimate", "item"])  # type: ignore[arg-type, list-item]
