import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.sequential import transformer
from benchmarks.sequential.encoder import SequenceEncoder

KINDS = ("hstu", "softmax_hstu", "sasrec")


def encoder(kind, **changes):
    config = SequenceEncoder.Config(kind=kind, width=8, heads=2, **changes)
    return config.build(items=30, length=10, seed=0)


def whole(sequences):
    return sequences.batch(np.arange(len(sequences)), length=10, held_out=0)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_unit_vectors_and_depend_on_no_later_token_and_no_other_sequence(sequences, kind):
    model = encoder(kind).eval()
    batch = whole(sequences)
    output_TD = model(batch)
    torch.testing.assert_close(output_TD.norm(dim=1), torch.ones(len(output_TD)))
    start, end = int(batch.offsets[1]), int(batch.offsets[2])
    cut = start + 4
    changed = batch.item_T.clone()
    changed[cut:] = (changed[cut:] + 1) % 30
    again_TD = model(whole(sequences).__class__(**{**vars(batch), "item_T": changed}))
    torch.testing.assert_close(again_TD[:cut], output_TD[:cut])
    assert not torch.allclose(again_TD[cut:end], output_TD[cut:end])


@pytest.mark.parametrize("kind", KINDS)
def test_earlier_tokens_matter(sequences, kind):
    model = encoder(kind).eval()
    batch = whole(sequences)
    changed = batch.item_T.clone()
    first, last = int(batch.offsets[1]), int(batch.offsets[2]) - 1
    changed[first] = (changed[first] + 1) % 30
    again_TD = model(batch.__class__(**{**vars(batch), "item_T": changed}))
    assert not torch.equal(again_TD[last], model(batch)[last])


@pytest.mark.parametrize("with_bias", [False, True])
def test_causal_attention_is_softmax_attention_sequence_by_sequence(sequences, with_bias, monkeypatch):
    torch.manual_seed(0)
    offsets = torch.from_numpy(sequences.offsets)
    q, k, v = torch.randn(3, int(offsets[-1]), 2, 4)
    bias = torch.randn(6) if with_bias else None
    expected = []
    for first, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        place = torch.arange(end - first)
        distance = place[:, None] - place
        scores = torch.einsum("ihc,jhc->hij", q[first:end], k[first:end]) * 4**-0.5
        if bias is not None:
            scores = scores + bias[distance.clamp(0, 5)]
        weights = F.softmax(scores.masked_fill(distance < 0, -torch.inf), dim=-1)
        expected.append(torch.einsum("hij,jhc->ihc", weights, v[first:end]))
    for groups in (1, 4, 100):
        monkeypatch.setattr(transformer, "GROUPS", groups)
        torch.testing.assert_close(transformer.causal_attention(q, k, v, offsets, bias_N=bias), torch.cat(expected))


def test_softmax_variant_starts_from_the_weights_of_hstu():
    hstu, softmax = (dict(encoder(kind).named_parameters()) for kind in ("hstu", "softmax_hstu"))
    assert hstu.keys() == softmax.keys()
    assert all(torch.equal(hstu[name], softmax[name]) for name in hstu)
