"""What an expert says about a candidate depends on it, its request, the past and the log: law L6."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from experts.arms import CONTROL_MATCHED, MODES, ArmsConfig
from experts.fusion import Fusion, TeacherFeatures, Vectors
from experts.model import ExpertModel
from foundation.hstu.loss import masked_log_loss
from foundation.hstu.optimiser import ModelOptimiser
from foundation.hstu.tower import TowerShape
from foundation.hstu.vocabulary import BatchVocabulary
from streaming.batch import BatchReader, RequestBatch
from streaming.requests import Requests, Supervision
from streaming.workspace import Workspace

CROSS = 9
REPRESENTATIONS = {"penultimate": 1.0, "sequence": -2.0, "user": 0.5, "past": -1.0, "tower_input": 3.0}
LABELLED = {"since": 0, "before": 2**62}


@dataclass(frozen=True)
class Arm:
    """A model with the vocabulary that it was built for."""

    model: ExpertModel
    vocabulary: BatchVocabulary

    def __call__(self, batch: RequestBatch, given: TeacherFeatures) -> Tensor:
        return self.model(batch, self.vocabulary(batch), given).logit_CT


@pytest.fixture(scope="module")
def reader(workspace: Workspace, small: ExpertModel.Config) -> BatchReader:
    log = workspace.engagements
    return workspace.reader({"surface": (log.only(1), small.history), "all": (log, CROSS)})


@pytest.fixture(scope="module")
def requests(workspace: Workspace) -> Requests:
    return workspace.requests(3).on_surface(1).slice(0, 30)


def arm_of(
    config: ExpertModel.Config, workspace: Workspace, sizes: BatchVocabulary.Config, *, embedding: int, seed: int
) -> Arm:
    vocabulary = sizes.build(workspace.inputs)
    model = config.build(inputs=workspace.inputs, vocabulary=vocabulary, embedding=embedding, seed=seed)
    return Arm(model.train(), vocabulary.train())


def teacher(batch: RequestBatch, embedding: int) -> TeacherFeatures:
    """A function of the candidate's features, so that it moves with the candidate; every fourth is absent."""
    stream = torch.Generator().manual_seed(0)
    seen = torch.cat([batch.dense_CF, batch.time_B[batch.owner_C, None].float() / 1e16], dim=1)
    vector = torch.sin(7 * seen @ torch.randn(seen.shape[1], embedding, generator=stream))
    logit = torch.sin(5 * seen @ torch.randn(seen.shape[1], 2, generator=stream))
    present = (vector[:, 0] > -0.5).float()
    vectors = {
        name: Vectors(vector_CR=factor * vector.roll(place, 1) * present[:, None], present_C=present)
        for place, (name, factor) in enumerate(REPRESENTATIONS.items())
    }
    return TeacherFeatures(vectors=vectors, logit_CT=logit * present[:, None], present_C=present)


@pytest.fixture(scope="module", params=[CONTROL_MATCHED, *MODES])
def arm(
    request: pytest.FixtureRequest,
    workspace: Workspace,
    small: ExpertModel.Config,
    sizes: BatchVocabulary.Config,
    embedding: int,
    reader: BatchReader,
) -> Arm:
    """Each arm, after some steps that make every embedding and bias count."""
    arms = ArmsConfig(arms=[request.param], model=small, fusion=Fusion.Config(width=4), cross_history=CROSS)
    tower = TowerShape(inputs=embedding, hidden=7, representation=5)
    widths = dict.fromkeys(REPRESENTATIONS, embedding)
    (config,) = arms.models(inputs=workspace.inputs, widths=widths, tower=tower).values()
    made = arm_of(config, workspace, sizes, embedding=embedding, seed=0)
    if made.model.tower is not None:
        made.model.tower.given.fill_(True)
    optimiser = ModelOptimiser.Config(learning_rate=0.05, table_learning_rate=0.5).build(made.model)
    for batch in reader.batches(workspace.requests(2).on_surface(1), size=20, **LABELLED):
        logit = made(batch, teacher(batch, embedding))
        optimiser.step(masked_log_loss(logit, batch.labels.label_CT, batch.labels.known_CT))
    made.model.eval()
    made.vocabulary.eval()
    return made


def score(arm: Arm, batch: RequestBatch, embedding: int) -> Tensor:
    with torch.no_grad():
        return arm(batch, teacher(batch, embedding))


def test_scoring_each_candidate_alone(arm: Arm, reader: BatchReader, requests: Requests, embedding: int) -> None:
    together = score(arm, reader.batch(requests), embedding)
    alone = requests.impressions()
    torch.testing.assert_close(score(arm, reader.batch(alone), embedding), together, rtol=0, atol=5e-6)
    for row in (0, 11, len(alone) - 1):
        single = score(arm, reader.batch(alone.slice(row, row + 1)), embedding)
        torch.testing.assert_close(single[0], together[row], rtol=0, atol=5e-6)


def test_in_any_order_with_supervision_scrambled(
    arm: Arm, reader: BatchReader, requests: Requests, embedding: int
) -> None:
    random = np.random.default_rng(0)
    order = np.lexsort((random.random(len(requests.item)), requests.owner))
    moved = {name: getattr(requests, name)[order] for name in ("candidate_id", "item_id", "item", "surface", "dense")}
    noise = Supervision(
        label=random.random(requests.supervision.label.shape, dtype=np.float32),
        known_time=random.integers(0, 2**62, requests.supervision.label.shape),
        weight=random.random(len(order), dtype=np.float32),
        stratum=random.integers(0, 9, len(order)).astype(np.int8),
    )
    other = reader.batch(replace(requests, **moved, supervision=noise), **LABELLED)
    assert (order != np.arange(len(order))).any()
    expected = score(arm, reader.batch(requests, **LABELLED), embedding)[order]
    torch.testing.assert_close(score(arm, other, embedding), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("changed", ["dense", "surface", "all", *REPRESENTATIONS, "logit"])
def test_each_arm_reads_what_it_is_meant_to(
    arm: Arm, reader: BatchReader, requests: Requests, embedding: int, changed: str
) -> None:
    batch = reader.batch(requests)
    given = teacher(batch, embedding)
    after, said = batch, given
    if changed == "dense":
        after = replace(batch, dense_CF=batch.dense_CF.roll(1, 0))
    elif changed in batch.history:
        one = batch.history[changed]
        after = replace(batch, history={**batch.history, changed: replace(one, item_L=one.item_L.roll(1))})
    elif changed in given.vectors:
        one = given.vectors[changed]
        said = replace(given, vectors={**given.vectors, changed: replace(one, vector_CR=one.vector_CR.roll(1, 0))})
    else:
        said = replace(given, logit_CT=given.logit_CT.roll(1, 0))
    reads = {
        "dense": True,
        "surface": True,
        "all": arm.model.config.cross_history > 0,
        "logit": arm.model.config.logit_residual,
        "tower_input": arm.model.config.tower is not None,
    }
    if arm.model.config.fusion is not None:
        reads[arm.model.config.representation] = True
    with torch.no_grad():
        assert arm(after, said).equal(arm(batch, given)) != reads.get(changed, False)


def test_the_teacher_residual_starts_as_the_teacher(
    workspace: Workspace,
    small: ExpertModel.Config,
    sizes: BatchVocabulary.Config,
    reader: BatchReader,
    requests: Requests,
    embedding: int,
) -> None:
    """Never worse than the teacher on the first day: the expert's own part starts near zero."""
    config = small.model_copy(update={"logit_residual": True})
    fresh = arm_of(config, workspace, sizes, embedding=embedding, seed=0)
    batch = reader.batch(requests)
    own = score(fresh, batch, embedding) - teacher(batch, embedding).logit_CT
    assert own.abs().max() < 0.1


def test_the_same_seed_gives_the_same_bits(
    workspace: Workspace,
    small: ExpertModel.Config,
    sizes: BatchVocabulary.Config,
    reader: BatchReader,
    requests: Requests,
    embedding: int,
) -> None:
    config = small.model_copy(update={"fusion": Fusion.Config(dropout=0.3), "logit_residual": True})
    batch = reader.batch(requests)

    def run(seed: int) -> Tensor:
        torch.manual_seed(np.random.default_rng().integers(1000))  # the global stream is not used
        return arm_of(config, workspace, sizes, embedding=embedding, seed=seed)(batch, teacher(batch, embedding))

    assert run(1).equal(run(1))
    assert not run(1).equal(run(2))
