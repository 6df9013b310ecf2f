"""Compact serving: what fewer bits make faster and smaller, and what they cost.

Time: a foundation model with random weights scores requests of 256 engagements and 100 candidates over their encoded
histories, on one thread, in float32 and compact, in turn; a platform's model and one of eight times its width. Cost: on
a run (:mod:`benchmarks.precision_cost`).
"""

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks import precision_cost
from benchmarks.mfalcon import INPUTS
from benchmarks.options import Options, Values
from benchmarks.timing import in_turn, ratios, spread
from foundation.hstu.layer import HSTUStack
from foundation.hstu.vocabulary import BatchVocabulary
from foundation.inference import CandidateScorer
from foundation.model import FoundationModel, FoundationOutput
from hypercast.serving.precision.compact import CompactModel, Precision, compact
from hypercast.serving.precision.probe import Probe
from hypercast.serving.precision.snapshots import scored_logits
from hypercast.training.memory import keep_freed_memory
from hypercast.training.random import generator
from streaming.batch import History, Labels, RequestBatch, keyed

HISTORY, CANDIDATES = 256, 100
REQUESTS = {"": 8, "single.": 1}
"""Requests that are scored at once, as a service batches them, or one."""
SHAPES = {"": (512, 4, 4), "platform.": (64, 2, 2)}
"""Width, layers and heads; the tower is four times as wide."""
ROUNDS = 11
PASSES, PROBE_ROUNDS = 8, 31
ITEMS = 2_000
DTYPES: dict[str, list[Literal["bfloat16", "int8"]]] = {"bfloat16_dense": ["bfloat16"], "int8_dense": ["int8"]}


def measure(options: Options) -> Values:
    """Keys are described in docs/benchmarks.md."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        values: Values = {}
        for shape, (width, layers, heads) in SHAPES.items():
            for many, requests in REQUESTS.items():
                values |= scoring(f"{shape}{many}", width=width, layers=layers, heads=heads, requests=requests)
        values |= probing()
        with tempfile.TemporaryDirectory() as folder:
            values |= precision_cost.measure(options, Path(folder))
    finally:
        torch.set_num_threads(threads)
    return values


@torch.no_grad()
def scoring(prefix: str, *, width: int, layers: int, heads: int, requests: int) -> Values:
    """Times of one shape. The dispatcher's choice, each kernel in every linear layer, and the probe beside traffic."""
    batch = request_batch(requests)
    model = built(batch, width=width, layers=layers, heads=heads)
    chosen = compact(model, Precision(), [(batch,)], logits=scored_logits)
    sides = {"chosen": chosen, **{name: everywhere(model, batch, kernels) for name, kernels in DTYPES.items()}}
    runs: dict[str, Callable[[], object]] = {"float32": functools.partial(score, model, batch)}
    for name, side in sides.items():
        if side is not None:
            runs[name] = functools.partial(score, side.model, batch)
    seconds = in_turn(ROUNDS, **runs)
    values: Values = {}
    for name in list(runs)[1:]:
        key = "score_speedup" if name == "chosen" else f"{name}.score_speedup"
        values |= ratios(prefix + key, seconds["float32"], seconds[name])
    for name in ("float32", "chosen"):
        values |= spread(f"{prefix}{name}_ms", [1e3 * each for each in seconds[name]])
    return values


@torch.no_grad()
def probing() -> Values:
    """What a probe at its default rate adds to a platform's model, one request at a time, in % of processor time.

    That is what it adds to a pass that it looks at, spread over those that it does not, where one hook counts: too
    little to be seen in the time of all of them together on a machine that does anything else.
    """
    width, layers, heads = SHAPES["platform."]
    batch = request_batch(1)
    model = built(batch, width=width, layers=layers, heads=heads)

    def processor_seconds() -> float:
        begun = time.thread_time()
        for _ in range(PASSES):
            score(model, batch)
        return time.thread_time() - begun

    processor_seconds()
    overhead = []
    for _ in range(PROBE_ROUNDS):
        plain = processor_seconds()
        with Probe(config=Probe.Config(every=1), model=model):
            looked_at = processor_seconds()
        overhead.append(100 * (looked_at / plain - 1) / Probe.Config().every)
    return {**spread("probe_overhead_pct", overhead)}


def everywhere(
    model: FoundationModel, batch: RequestBatch, kernels: list[Literal["bfloat16", "int8"]]
) -> CompactModel[FoundationModel] | None:
    """One kernel in every linear layer, whatever it costs, and tables as they were; None where the machine has no use
    for it.
    """
    config = Precision(kernels=kernels, tables=[], layer_error=10.0, ne_cost_pct=1e6)
    found = compact(model, config, [(batch,)], logits=scored_logits, timer=precision_cost.smallest_first)
    return None if found.report.unavailable else found


def score(model: FoundationModel, batch: RequestBatch) -> FoundationOutput:
    return CandidateScorer.Config().build(model).score(batch)


def built(batch: RequestBatch, *, width: int, layers: int, heads: int) -> FoundationModel:
    """A model that knows every item of ``batch``; weights are random and large enough to tell candidates apart."""
    config = FoundationModel.Config(
        width=width,
        tower=4 * width,
        history=HISTORY,
        stack=HSTUStack.Config(layers=layers, heads=heads),
        vocabulary=BatchVocabulary.Config(rows={"item_id": 65536}),
    )
    model = config.build(inputs=INPUTS, seed=0).train()
    model.vocabulary(batch)
    for name, parameter in model.named_parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator(0, name)), alpha=0.05)
    return model.eval()


def request_batch(requests: int) -> RequestBatch:
    """Requests of :data:`HISTORY` engagements and :data:`CANDIDATES` candidates, all of the same :data:`ITEMS`."""
    random = np.random.default_rng(0)
    events, rows = HISTORY * requests, CANDIDATES * requests

    def drawn(high: int, size: int) -> torch.Tensor:
        return torch.from_numpy(random.integers(0, high, size))

    times_L = np.sort(random.integers(0, 10**13, (requests, HISTORY)), axis=1).reshape(-1)
    history = History(
        item_L=drawn(ITEMS, events),
        surface_L=drawn(2, events),
        action_L=drawn(2, events),
        time_L=torch.from_numpy(times_L),
        offsets=torch.arange(requests + 1) * HISTORY,
    )
    return RequestBatch(
        items=keyed(INPUTS.item_features, np.arange(ITEMS)[:, None]),
        users=keyed(INPUTS.user_features, np.arange(requests)[:, None]),
        context=keyed(INPUTS.context, np.zeros((requests, 1), dtype=np.int64)),
        time_B=torch.full((requests,), 10**13),
        history={"all": history},
        item_C=drawn(ITEMS, rows),
        surface_C=drawn(2, rows),
        dense_CF=torch.from_numpy(random.standard_normal((rows, len(INPUTS.dense)), dtype=np.float32)),
        owner_C=torch.arange(requests).repeat_interleave(CANDIDATES),
        offsets=torch.arange(requests + 1) * CANDIDATES,
        labels=Labels(label_CT=torch.zeros(rows, 2), known_CT=torch.zeros(rows, 2, dtype=torch.bool)),
    )
