"""M-FALCON: 1,024 candidates over a history of 4,096 events, encoded once, against encoding it again and again.

The whole foundation model scores one request: 4 HSTU layers of width 256 with 4 heads, biases by position and time, and
the tower and heads above them; in float32, by the fastest attention backend of the machine. Scores of all three ways
are compared too.
"""

import statistics
from dataclasses import fields

import numpy as np
import torch

from benchmarks.options import Options, Values
from benchmarks.timing import in_turn, ratios
from foundation.hstu.attention.dispatch import choose
from foundation.hstu.layer import HSTUStack
from foundation.hstu.vocabulary import BatchVocabulary
from foundation.inference import CandidateScorer
from foundation.model import FoundationModel, FoundationOutput
from hypercast.training.random import generator
from streaming.batch import History, Labels, RequestBatch, keyed
from streaming.inputs import Inputs

HISTORY, CANDIDATES, MICRO_BATCH = 4096, 1024, 64
LAYERS, HEADS, WIDTH = 4, 4, 256
FORWARDS = 8
"""Of the 1,024 forwards for one candidate each, how many are timed in a round; their mean stands for all."""
ROUNDS = 7
INPUTS = Inputs(
    item_features=["item_id"],
    user_features=["user_id"],
    context=["hour"],
    dense=[f"dense{index}" for index in range(16)],
    surfaces=["home", "search"],
    actions=["view", "purchase"],
    tasks=["click", "purchase"],
)


@torch.no_grad()
def measure(_: Options) -> Values:
    """Each round times the three ways in turn, and a ratio is one round's; the median over the rounds is reported."""
    singles = range(0, CANDIDATES, CANDIDATES // FORWARDS)
    whole = request(range(CANDIDATES))
    one_each = [request(range(first, first + 1)) for first in singles]
    parts = [request(range(first, first + MICRO_BATCH)) for first in range(0, CANDIDATES, MICRO_BATCH)]
    model = built(whole)
    scorer = CandidateScorer.Config(micro_batch=MICRO_BATCH).build(model)

    def uncached(batches: list[RequestBatch]) -> list[FoundationOutput]:
        return [model(batch) for batch in batches]

    scores = by_kind([scorer.score(whole)])
    difference = max(
        relative_difference(scores, by_kind(uncached(parts))),
        relative_difference([kind[list(singles)] for kind in scores], by_kind(uncached(one_each))),
    )
    seconds = in_turn(
        ROUNDS,
        cached=lambda: scorer.score(whole),
        each=lambda: uncached(one_each),
        parts=lambda: uncached(parts),
    )
    every = [CANDIDATES / len(one_each) * each for each in seconds["each"]]
    return {
        **ratios("vs_forward_per_candidate", every, seconds["cached"]),
        **ratios("vs_reencode_per_microbatch", seconds["parts"], seconds["cached"]),
        "max_rel_diff": difference,
        "candidates_per_second": round(CANDIDATES / statistics.median(seconds["cached"]), 1),
        "attention_backend": choose(torch.device("cpu"), torch.float32),
    }


def built(batch: RequestBatch) -> FoundationModel:
    """A model that knows every item of ``batch``; weights are random and large enough to tell candidates apart."""
    config = FoundationModel.Config(
        width=WIDTH,
        history=HISTORY,
        stack=HSTUStack.Config(layers=LAYERS, heads=HEADS),
        vocabulary=BatchVocabulary.Config(default=2 * (HISTORY + CANDIDATES)),
    )
    model = config.build(inputs=INPUTS, seed=0).train()
    model.vocabulary(batch)
    for name, parameter in model.named_parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator(0, name)), alpha=0.05)
    return model.eval()


def request(candidates: range) -> RequestBatch:
    """One request for some of the candidates, with the items that it needs and no other."""
    random = np.random.default_rng(0)
    time_L = np.sort(random.integers(0, 10**13, HISTORY))
    surface, dense = random.integers(0, 2, CANDIDATES), random.standard_normal((CANDIDATES, 16), dtype=np.float32)
    count = len(candidates)
    items = np.concatenate([np.arange(HISTORY), HISTORY + np.array(candidates)])
    offsets = torch.tensor([0, HISTORY])
    history = History(
        item_L=torch.arange(HISTORY),
        surface_L=torch.from_numpy(random.integers(0, 2, HISTORY)),
        action_L=torch.from_numpy(random.integers(0, 2, HISTORY)),
        time_L=torch.from_numpy(time_L),
        offsets=offsets,
    )
    return RequestBatch(
        items=keyed(INPUTS.item_features, items[:, None]),
        users=keyed(INPUTS.user_features, np.zeros((1, 1), dtype=np.int64)),
        context=keyed(INPUTS.context, np.zeros((1, 1), dtype=np.int64)),
        time_B=torch.tensor([10**13]),
        history={"all": history},
        item_C=HISTORY + torch.arange(count),
        surface_C=torch.from_numpy(surface[candidates]),
        dense_CF=torch.from_numpy(dense[candidates]),
        owner_C=torch.zeros(count, dtype=torch.int64),
        offsets=torch.tensor([0, count]),
        labels=Labels(label_CT=torch.zeros(count, 2), known_CT=torch.zeros(count, 2, dtype=torch.bool)),
    )


def by_kind(outputs: list[FoundationOutput]) -> list[torch.Tensor]:
    """Vectors and logits of all candidates, each kind float32 ``[C, ...]``."""
    return [torch.cat([getattr(output, field.name) for output in outputs]) for field in fields(FoundationOutput)]


def relative_difference(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest difference against the largest value, of the kind where that is worst."""
    pairs = zip(actual, expected, strict=True)
    return max(float((mine - theirs).abs().max() / theirs.abs().max()) for mine, theirs in pairs)
