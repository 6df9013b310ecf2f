"""Training: an HSTU layer against a transformer layer, and the foundation model against itself on plain attention."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.options import Options, Values
from benchmarks.timing import in_turn, ratios, spread
from foundation.hstu.layer import HSTULayer, Sequences
from foundation.hstu.stochastic_length import probability_whole, subsampled_length
from foundation.model import CONTEXT_TOKENS, FoundationModel
from foundation.steps import FoundationLearner
from hypercast.runtime.config import PlatformConfig
from hypercast.training.memory import keep_freed_memory
from hypercast.training.random import generator, initialise_
from streaming import config as configuration
from streaming.batch import RequestBatch
from streaming.dataset import Dataset
from streaming.importers.complete_journey import CompleteJourney
from streaming.workspace import Workspace

LENGTH, WIDTH, HEADS, ALPHA = 8192, 256, 4, 1.7
ROUNDS = 7
PLATFORM = Path("configs/platform/complete_journey.yaml")
HOUSEHOLDS = 0.12
WINDOW, BATCHES = 30, 10
LONG_HISTORY = 512


def measure(options: Options) -> Values:
    """Keys are described in docs/benchmarks.md. The process keeps freed memory, as training does, for both sides."""
    keep_freed_memory()
    return {**layers(), **foundation(options)}


class TransformerLayer(nn.Module):
    """Pre-norm softmax attention by PyTorch's fused kernel, and a feed-forward network of four times the width."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention, self.norm_network = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.project, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.network = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x_TD: Tensor) -> Tensor:
        qkv = self.project(self.norm_attention(x_TD)).view(1, -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*qkv, is_causal=True)
        x_TD = x_TD + self.output(attended.transpose(1, 2).flatten(2)[0])
        return x_TD + self.network(self.norm_network(x_TD))


def layers() -> Values:
    """Forward and backward of one layer over one sequence of 8,192 tokens, without dropout; position bias in HSTU.

    With stochastic length a sequence is kept whole with the probability of the formula and else cut to N^(alpha / 2)
    tokens; a step's expected time is the mean of both, weighted by probability. Always per original token.
    """
    ours = HSTULayer(width=WIDTH, heads=HEADS, positions=LENGTH, time_buckets=0, dropout=nn.Identity())
    theirs = TransformerLayer()
    for layer in (ours, theirs):
        initialise_(layer, 0)
    part = subsampled_length(base_length=LENGTH, alpha=ALPHA)

    def run(layer: nn.Module, tokens: int) -> None:
        x_TD = torch.randn(tokens, WIDTH, generator=generator(0, "tokens")).requires_grad_()
        output_TD = layer(x_TD, causal(tokens)) if layer is ours else layer(x_TD)
        output_TD.backward(torch.ones_like(output_TD))

    seconds = in_turn(
        ROUNDS,
        whole=lambda: run(ours, LENGTH),
        part=lambda: run(ours, part),
        transformer=lambda: run(theirs, LENGTH),
    )
    whole = probability_whole(LENGTH, base_length=LENGTH, alpha=ALPHA)
    expected = [whole * a + (1 - whole) * b for a, b in zip(seconds["whole"], seconds["part"], strict=True)]
    return {
        **ratios("layer_vs_transformer", seconds["transformer"], seconds["whole"]),
        **ratios("layer_vs_transformer_sl17", seconds["transformer"], expected),
        "sl17_probability_whole": round(whole, 4),
        "sl17_tokens": part,
        **spread("layer_ms", [1e3 * each for each in seconds["whole"]]),
        **spread("transformer_ms", [1e3 * each for each in seconds["transformer"]]),
    }


def causal(tokens: int) -> Sequences:
    return Sequences(
        offsets=torch.tensor([0, tokens]),
        num_targets=torch.tensor([0]),
        contextual_len=0,
        timestamps=torch.arange(tokens),
        max_seq_len=LENGTH,
    )


def foundation(options: Options) -> Values:
    """Steps of the foundation model as configured for Complete Journey, on a sample of its households.

    The other engine is the same model with the reference attention, one sequence after the other. ``--data`` takes an
    imported data set instead of the sample. Measured as configured, and with histories of 512.
    """
    config = configuration.load(PLATFORM, PlatformConfig).foundation
    with ExitStack() as stack:
        path = options.data
        if path is None:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "journey"
            CompleteJourney.Config(user_share=HOUSEHOLDS).build(path)
        workspace = Workspace(Dataset.open(path))
        values = compared(workspace, config, config.model.history)
        longer = compared(workspace, config, LONG_HISTORY)
    return {**values, **{f"{key}_history{LONG_HISTORY}": value for key, value in longer.items()}}


def compared(workspace: Workspace, config: FoundationLearner.Config, history: int) -> Values:
    """Tokens per second of training, and against the reference attention."""
    model = config.model.model_copy(update={"history": history})
    reader = workspace.reader({"all": (workspace.engagements, history)})
    window = workspace.dataset.windows[WINDOW]
    requests = workspace.requests(window.index)
    batches = list(reader.batches(requests, size=config.batch_size, since=window.start, before=window.end))[:BATCHES]
    tokens = sum(
        CONTEXT_TOKENS * len(batch) + len(batch.history["all"].item_L) + len(batch.item_C) for batch in batches
    )
    stack = model.stack.model_copy(update={"backend": "reference"})
    engines = {
        "ours": trainer(config, model, workspace),
        "reference": trainer(config, model.model_copy(update={"stack": stack}), workspace),
    }

    def epoch(engine: SimpleNamespace) -> None:
        for batch in batches:
            step(engine, batch, config.surface_weight)

    seconds = in_turn(ROUNDS, ours=lambda: epoch(engines["ours"]), reference=lambda: epoch(engines["reference"]))
    return {
        **spread("fm_tokens_per_s", [tokens / each for each in seconds["ours"]], digits=0),
        **ratios("fm_speedup_vs_reference", seconds["reference"], seconds["ours"]),
    }


def trainer(config: FoundationLearner.Config, model: FoundationModel.Config, workspace: Workspace) -> SimpleNamespace:
    built = model.build(inputs=workspace.inputs, seed=0).train()
    return SimpleNamespace(model=built, optimiser=config.optimiser.build(built))


def step(engine: SimpleNamespace, batch: RequestBatch, surface_weight: float) -> None:
    engine.optimiser.step(engine.model.loss(engine.model(batch), batch, surface_weight=surface_weight))
