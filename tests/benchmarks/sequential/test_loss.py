import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.sequential import loss
from benchmarks.sequential.loss import sampled_softmax


def obvious(output_TD, item_ID, candidate_TN, temperature):
    logit_TN = torch.einsum("td,tnd->tn", output_TD, item_ID[candidate_TN.long()]) / temperature
    same_TN = candidate_TN == candidate_TN[:, :1]
    same_TN[:, 0] = False
    logit_TN = logit_TN.masked_fill(same_TN, -torch.inf)
    return F.cross_entropy(logit_TN, torch.zeros(len(logit_TN), dtype=torch.int64))


@settings(deadline=None)
@given(tokens=st.integers(1, 40), items=st.integers(2, 50), more=st.integers(0, 48), seed=st.integers(0, 99))
def test_loss_and_gradients_are_those_of_cross_entropy(tokens, items, more, seed):
    torch.manual_seed(seed)
    output_TD = F.normalize(torch.randn(tokens, 6), dim=1).requires_grad_()
    item_ID = F.normalize(torch.randn(items, 6), dim=1).requires_grad_()
    candidate_TN = torch.randint(items, (tokens, min(2 + more, items)), dtype=torch.int32)
    values = []
    for function in (lambda *a: sampled_softmax(*a[:3], temperature=a[3]), obvious):
        value = function(output_TD, item_ID, candidate_TN, 0.3)
        values.append((value, *torch.autograd.grad(2.0 * value, (output_TD, item_ID))))
    for ours, theirs in zip(*values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_more_candidates_than_items_are_refused():
    with pytest.raises(ValueError, match="4 candidates a token from a catalogue of 3"):
        sampled_softmax(torch.ones(1, 2), torch.ones(3, 2), torch.zeros(1, 4, dtype=torch.int32), temperature=1.0)


def test_chunks_change_nothing(monkeypatch):
    torch.manual_seed(0)
    output_TD, item_ID = torch.randn(50, 4), torch.randn(9, 4)
    candidate_TN = torch.randint(9, (50, 6), dtype=torch.int32)
    whole = sampled_softmax(output_TD, item_ID, candidate_TN, temperature=1.0)
    monkeypatch.setattr(loss, "CHUNK", 7)
    torch.testing.assert_close(sampled_softmax(output_TD, item_ID, candidate_TN, temperature=1.0), whole)


def test_only_negatives_equal_to_the_true_item_make_no_loss():
    output_TD, item_ID = torch.ones(1, 2), torch.ones(3, 2)
    same = torch.tensor([[1, 1, 1]], dtype=torch.int32)
    other = torch.tensor([[1, 0, 2]], dtype=torch.int32)
    assert float(sampled_softmax(output_TD, item_ID, same, temperature=1.0)) == 0.0
    assert float(sampled_softmax(output_TD, item_ID, other, temperature=1.0)) == pytest.approx(1.0986, abs=1e-4)
