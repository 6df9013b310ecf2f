"""A planted contrast is found and named, chance finds none, and no window labels itself."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from experts.cohort import Cohort, CohortTasks, members, value_names
from experts.cohort_counts import candidate_codes, user_groups
from experts.heads import TaskHeads
from foundation.hstu.loss import masked_log_loss
from hypercast.training import checkpoint
from hypercast.training.random import initialise_
from streaming.batch import Labels, RequestBatch, keyed
from streaming.catalogue import encode
from streaming.errors import LeakageError
from streaming.workspace import Workspace

INCOMES = ["low", "middle", "high"]
KINDS = ["bread", "milk", "soap", "tea"]


@dataclass(frozen=True)
class World:
    """Users of three incomes, few of them high, and items of four kinds; who buys what is ``rate``."""

    rate: dict[str, float]
    tasks: int = 2
    requests: int = 300
    each: int = 6

    def batch(self, seed: int) -> RequestBatch:
        random = np.random.default_rng(seed)
        user = random.integers(0, 500, self.requests)
        income = np.where(user % 10 == 0, 2, user % 2)
        kind = np.arange(40) % len(KINDS)
        item = random.integers(0, 40, self.requests * self.each)
        owner = np.repeat(np.arange(self.requests), self.each)
        incomes, kinds = np.array(INCOMES)[income][owner], np.array(KINDS)[kind][item]
        chance = np.array([self.rate.get(a, self.rate.get(b, 0.2)) for a, b in zip(incomes, kinds, strict=True)])
        label = random.random((len(item), self.tasks)) < np.stack([chance, np.full(len(item), 0.2)], axis=1)
        known = random.random(label.shape) < 0.9
        items = np.stack([encode(pa.array(np.arange(40))), encode(pa.array(np.array(KINDS)[kind].tolist()))], axis=1)
        users = np.stack([encode(pa.array(user)), encode(pa.array(np.array(INCOMES)[income].tolist()))], axis=1)
        nothing = torch.zeros(0, dtype=torch.int64)
        return RequestBatch(
            items=keyed(["item_id", "kind"], items),
            users=keyed(["user_id", "income"], users),
            context=keyed([], np.zeros((self.requests, 0), dtype=np.int64)),
            time_B=torch.arange(self.requests),
            history={},
            item_C=torch.from_numpy(item),
            surface_C=nothing,
            dense_CF=torch.zeros(len(item), 0),
            owner_C=torch.from_numpy(owner),
            offsets=torch.arange(self.requests + 1) * self.each,
            labels=Labels(
                label_CT=torch.from_numpy((label & known).astype(np.float32)), known_CT=torch.from_numpy(known)
            ),
        )


PLANTED = World({"high": 0.45})
CHANCE = World({})
NAMES = value_names(pa.table({"income": INCOMES, "kind": [*KINDS[:3]]}), ["income", "kind"])
CONFIG = CohortTasks.Config(windows=3)


def watched(world: World, config: CohortTasks.Config = CONFIG, *, seed: int = 0) -> CohortTasks:
    tasks = config.build(tasks=2)
    for window in range(config.windows):
        tasks.observe(world.batch(1000 * seed + window), window=window)
        tasks.close(window)
    return tasks


def test_a_planted_contrast_is_found_and_the_minority_named() -> None:
    first = watched(PLANTED).pairs[0]
    assert first.task == 0
    assert first.minority.name(NAMES) == "user.income=high"
    assert first.majority.name(NAMES) in ("user.income=low", "user.income=middle")
    assert first.minority.rate == pytest.approx(0.45, abs=0.05)
    assert first.minority.rows < first.majority.rows
    assert first.effect > first.bound > CONFIG.least_effect


def test_a_contrast_among_items_is_found_too() -> None:
    first = watched(World({"soap": 0.5})).pairs[0]
    sides = {first.minority.name(NAMES), first.majority.name(NAMES)}
    assert "item.kind=soap" in sides
    assert len(sides) == 2


def test_chance_finds_none() -> None:
    """Family-wise: ten worlds without contrast, some two hundred comparisons."""
    assert [watched(CHANCE, seed=seed).pairs for seed in range(10)] == [[]] * 10


def test_shuffled_labels_find_none() -> None:
    tasks = CONFIG.build(tasks=2)
    for window in range(CONFIG.windows):
        batch = PLANTED.batch(window)
        order = torch.randperm(len(batch.item_C), generator=torch.Generator().manual_seed(window))
        given = batch.labels
        shuffled = Labels(label_CT=given.label_CT[order], known_CT=given.known_CT[order])
        tasks.observe(replace(batch, labels=shuffled), window=window)
        tasks.close(window)
    assert tasks.chosen
    assert tasks.pairs == []


def test_too_small_a_cohort_is_left_alone() -> None:
    few = CONFIG.model_copy(update={"least_rows": 10_000})
    assert watched(PLANTED, few).pairs == []
    assert len(watched(PLANTED).pairs) > 0


def test_one_pair_an_attribute_and_the_strongest_first() -> None:
    config = CONFIG.model_copy(update={"pairs": 4})
    pairs = watched(World({"high": 0.5, "bread": 0.05, "milk": 0.4}), config).pairs
    assert [(pair.task, pair.minority.attribute) for pair in pairs] == [(0, "item.kind"), (0, "user.income")]
    assert pairs[0].bound > pairs[1].bound
    assert watched(World({"high": 0.5, "bread": 0.05, "milk": 0.4}), CONFIG).pairs == pairs


@pytest.mark.parametrize("kind", ["user", "item", "context"])
def test_kinds_that_are_left_out(kind: str) -> None:
    tasks = watched(World({"high": 0.5, "bread": 0.05}), CONFIG.model_copy(update={"kinds": [kind]}))
    assert {pair.minority.attribute.split(".")[0] for pair in tasks.pairs} == {kind} - {"context"}


def test_labels_by_hand() -> None:
    """A positive of the task is one of its cohort's, and a negative of every other's."""
    tasks = watched(PLANTED)
    batch = PLANTED.batch(77)
    found = tasks.labels(batch, window=3)
    label, known = found.label_CK, found.known_CK
    pair = tasks.pairs[0]
    income = candidate_codes(batch)["user.income"]
    for column, side in enumerate((pair.minority, pair.majority)):
        inside = income == side.code
        assert label[:, column].equal(torch.where(inside, batch.labels.label_CT[:, 0], 0.0))
        assert label[~inside, column].sum() == 0 < label[inside, column].sum()
        assert known[:, column].equal(batch.labels.known_CT[:, 0])
    assert label.shape == known.shape == (len(batch.item_C), tasks.config.outputs)
    assert not known[:, 2 * len(tasks.pairs) :].any()


def test_a_head_begins_at_the_rate_of_its_task() -> None:
    """A head that says nothing yet predicts what was seen, and a loss of the cohort's rate moves no backbone much."""
    tasks, batch = watched(PLANTED), PLANTED.batch(77)
    found = tasks.labels(batch, window=3)
    for column, side in enumerate((tasks.pairs[0].minority, tasks.pairs[0].majority)):
        rate = found.label_CK[:, column].sum() / found.known_CK[:, column].sum()
        assert (
            float(found.start_K[column].sigmoid()) == pytest.approx(side.share) == pytest.approx(float(rate), abs=0.02)
        )
    silent = torch.zeros(found.label_CK.shape, requires_grad=True)
    found.loss(silent).backward()
    from_zero = (0.5 - found.label_CK).mul(found.known_CK).sum(dim=0)[:2].abs() / len(silent)
    assert (silent.grad.sum(dim=0)[:2].abs() < 0.1 * from_zero).all()


def test_nothing_is_known_before_pairs_are_chosen() -> None:
    tasks = CONFIG.build(tasks=2)
    for window in range(CONFIG.windows):
        found = tasks.labels(PLANTED.batch(window), window=window)
        assert not found.label_CK.any() and not found.known_CK.any()
        tasks.observe(PLANTED.batch(window), window=window)
        tasks.close(window)
    assert tasks.labels(PLANTED.batch(9), window=CONFIG.windows).known_CK.any()


def test_the_future_changes_nothing() -> None:
    """Law L5: what windows after the choice hold, and unknown labels, choose no cohort."""
    tasks = watched(PLANTED)
    before = tasks.pairs
    for window in range(CONFIG.windows, CONFIG.windows + 3):
        tasks.observe(World({"bread": 0.9}).batch(window), window=window)
        assert tasks.close(window) == before
    hidden = CONFIG.build(tasks=2)
    for window in range(CONFIG.windows):
        batch = PLANTED.batch(window)
        given = batch.labels
        noise = torch.where(given.known_CT, given.label_CT, 1.0)
        hidden.observe(replace(batch, labels=replace(given, label_CT=noise)), window=window)
        hidden.close(window)
    assert hidden.pairs == before


def test_windows_come_in_order() -> None:
    tasks = watched(PLANTED)
    with pytest.raises(LeakageError, match="window 2"):
        tasks.observe(PLANTED.batch(0), window=2)
    with pytest.raises(LeakageError, match="window 2"):
        tasks.labels(PLANTED.batch(0), window=2)
    tasks.observe(PLANTED.batch(0), window=3)
    with pytest.raises(LeakageError, match="window 3 is open"):
        tasks.observe(PLANTED.batch(0), window=4)


def test_batches_of_a_window_may_be_cut_anywhere() -> None:
    whole, cut = CONFIG.build(tasks=2), CONFIG.build(tasks=2)
    for window in range(CONFIG.windows):
        batches = [PLANTED.batch(10 * window + part) for part in range(2)]
        for each in batches:
            whole.observe(each, window=window)
        for each in reversed(batches):
            cut.observe(each, window=window)
        whole.close(window)
        cut.close(window)
    assert whole.pairs == cut.pairs != []


def test_the_state_is_all_there_is() -> None:
    one, other = CONFIG.build(tasks=2), CONFIG.build(tasks=2)
    one.observe(PLANTED.batch(0), window=0)
    one.close(0)
    one.observe(PLANTED.batch(1), window=1)
    other.load_state_dict(checkpoint.unpack(*checkpoint.pack(one.state_dict())))
    for each in (one, other):
        each.close(1)
        each.observe(PLANTED.batch(2), window=2)
        each.close(2)
    assert one.pairs == other.pairs != []
    again = CONFIG.build(tasks=2)
    again.load_state_dict(checkpoint.unpack(*checkpoint.pack(one.state_dict())))
    assert again.pairs == one.pairs
    with pytest.raises(LeakageError):
        again.observe(PLANTED.batch(2), window=2)


def test_an_attribute_with_too_many_values_is_given_up() -> None:
    tasks = watched(World({"soap": 0.5}), CONFIG.model_copy(update={"max_values": 3}))
    assert tasks.counts.given_up == {"item.kind"}
    assert set(tasks.counts.sums) == {"user.income"}
    assert tasks.pairs == []


def test_unknown_values_are_in_no_cohort() -> None:
    tasks = CONFIG.build(tasks=2)
    batch = PLANTED.batch(0)
    values = batch.users.values().clone()
    values[batch.users.stride() :] = 0  # every income
    users = keyed(["user_id", "income"], values.view(2, -1).T.numpy())
    tasks.observe(replace(batch, users=users), window=0)
    assert len(tasks.counts.values["user.income"]) == 0


def test_codes_of_a_real_batch(workspace: Workspace) -> None:
    requests = workspace.requests(3).slice(0, 500)
    batch = workspace.reader({}).batch(requests)
    codes = candidate_codes(batch)
    for kind, catalogue, row in (("item", workspace.items, requests.item), ("user", workspace.users, requests.user)):
        rows = row if kind == "item" else row[requests.owner]
        for column, name in enumerate(catalogue.features[1:], start=1):
            np.testing.assert_array_equal(codes.pop(f"{kind}.{name}").numpy(), catalogue.code[rows, column])
    for column, name in enumerate(workspace.inputs.context):
        np.testing.assert_array_equal(codes.pop(f"context.{name}").numpy(), requests.context[requests.owner, column])
    assert codes == {}
    group = user_groups(batch).numpy()
    np.testing.assert_array_equal(group, workspace.users.code[requests.user, 0][requests.owner] % 64)


def test_members() -> None:
    cohort = Cohort(attribute="user.income", code=7, rows=1, rate=0.5, share=0.5)
    assert members(cohort, {"user.income": torch.tensor([7, 8, 7])}).tolist() == [True, False, True]
    assert cohort.name({}) == "user.income=7"


def test_auxiliary_heads_teach_the_backbone_and_leave_the_serving_heads_alone() -> None:
    tasks, batch = watched(PLANTED), PLANTED.batch(50)
    hidden = torch.randn(len(batch.item_C), 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    serving, extra = (TaskHeads.Config().build(width=5, tasks=outputs) for outputs in (2, tasks.config.outputs))
    initialise_(serving, 0)
    initialise_(extra, 0)

    def gradient(weight: float) -> tuple[Tensor, Tensor]:
        loss = masked_log_loss(serving(hidden), batch.labels.label_CT, batch.labels.known_CT)
        loss = loss + weight * tasks.labels(batch, window=3).loss(extra(hidden))
        return torch.autograd.grad(loss, [hidden, serving.weight])

    with_them, without = gradient(tasks.config.weight), gradient(0.0)
    assert not with_them[0].equal(without[0])
    assert with_them[1].equal(without[1])
