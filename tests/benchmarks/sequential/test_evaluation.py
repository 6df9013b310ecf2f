import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.sequential.encoder import SequenceEncoder
from benchmarks.sequential.evaluation import held_out_ranks, hit_rate, ndcg, rank_of, top_items


@settings(deadline=None)
@given(rows=st.integers(1, 5), items=st.integers(1, 12), seed=st.integers(0, 99))
def test_rank_is_the_place_in_a_sorted_list_behind_all_ties(rows, items, seed):
    random = np.random.default_rng(seed)
    score = random.integers(4, size=(rows, items)).astype(np.float32)
    item = random.integers(items, size=rows)
    for row, rank in enumerate(rank_of(torch.from_numpy(score), torch.from_numpy(item)).tolist()):
        by_score = sorted(range(items), key=lambda other: (-score[row, other], other == item[row]))
        assert rank == by_score.index(item[row])


@pytest.mark.parametrize("held_out", [1, 2])
def test_held_out_ranks_and_top_items_are_those_of_one_user_at_a_time(sequences, held_out):
    model = SequenceEncoder.Config(width=8).build(items=30, length=10, seed=0)
    ranks = held_out_ranks(model, sequences, held_out=held_out)
    tops = top_items(model, sequences, held_out=held_out, count=4)
    for row, (rank, top) in enumerate(zip(ranks, tops, strict=True)):
        own = sequences.item_E[sequences.offsets[row] : sequences.offsets[row + 1]]
        history, target = own[: len(own) - held_out][-10:], own[len(own) - held_out]
        batch = sequences.batch(np.array([row]), length=10, held_out=held_out - 1)
        score = (model(batch)[-1] @ model.catalogue().T).tolist()
        rivals = [item for item in range(30) if item != target and item not in history]
        assert rank == sum(score[item] >= score[target] for item in rivals)
        assert top.tolist() == sorted(range(30), key=lambda item: -score[item])[:4]


@pytest.mark.parametrize("held_out", [1, 2])
def test_ranks_read_nothing_that_comes_after_the_held_out_item(sequences, held_out):
    model = SequenceEncoder.Config(width=8).build(items=30, length=10, seed=0)
    changed = sequences.item_E.copy()
    for later in range(1, held_out):
        ends = sequences.offsets[1:] - later
        changed[ends] = (changed[ends] + 11) % 30
    other = dataclasses.replace(sequences, item_E=changed)
    ranks = held_out_ranks(model, sequences, held_out=held_out)
    assert ranks.tolist() == held_out_ranks(model, other, held_out=held_out).tolist()


def test_metrics_of_known_ranks():
    ranks = np.array([0, 1, 9, 10])
    assert hit_rate(ranks, 10) == 0.75
    assert ndcg(ranks, 10) == pytest.approx((1.0 + 1 / np.log2(3) + 1 / np.log2(11)) / 4)
