"""What compact serving costs: NE on windows that neither the model nor the probe has seen, against float32.

Every snapshot of the foundation model that a run has kept scores the window that it published; kernels are chosen on
requests of the window before. Experts go on from the checkpoint before their last, and score the last window.

Shape legend: C candidates, T tasks, U users, P replicates of the bootstrap.
"""

import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.options import Options, Values
from experts.model import ExpertModel
from experts.steps import SurfaceLearner
from hypercast.registry import Registry
from hypercast.runtime.config import PlatformConfig
from hypercast.runtime.jobs import ExpertJob
from hypercast.runtime.platform import Platform
from hypercast.runtime.stream import dataset_of
from hypercast.serving.precision.compact import Logits, Precision, compact, logits_of
from hypercast.serving.precision.report import Report
from hypercast.serving.precision.snapshots import scored_logits
from hypercast.serving.precision.twin import ModelT
from streaming import config as configuration
from streaming.dataset import Dataset
from streaming.importers.synthetic import Synthetic
from streaming.requests import Requests
from streaming.workspace import Workspace
from transfer.gain import draw_users
from transfer.metric.normalised_entropy import log_loss

Call = tuple[Any, ...]
"""Arguments of a model."""
FLOAT32 = "float32"
SAMPLE = 128
"""Requests that kernels are chosen on."""
REPLICATES = 1_000
FREE = Precision(layer_error=10.0, table_error=10.0, ne_cost_pct=1e6)
"""No bounds: what is asked for is taken everywhere."""
VARIANTS = {
    "": Precision(),
    "int8_tables.": FREE.model_copy(update={"kernels": [], "tables": ["int8"]}),
    "int4_tables.": FREE.model_copy(update={"kernels": [], "tables": ["int4"]}),
    "bfloat16_dense.": FREE.model_copy(update={"kernels": ["bfloat16"], "tables": []}),
    "int8_dense.": FREE.model_copy(update={"kernels": ["int8"], "tables": []}),
}
"""The dispatcher's choice, and each dtype by itself."""


def smallest_first(contestants: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Times by which every layer gets the kernel that was asked for rather than float32."""
    return {name: 2.0 if name == "float32" else 1.0 for name in contestants}


class Costs:
    """Log loss by user of float32 and of each variant, and what the variants' reports say."""

    def __init__(self) -> None:
        self.by_user: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        self.reports: dict[str, list[Report]] = defaultdict(list)
        self.candidates = 0

    @torch.no_grad()
    def add(self, model: ModelT, sample: list[Call], scored: list[Call], outcomes: Requests, *, logits: Logits) -> None:
        """Compact ``model`` by ``sample`` in every way, and hold what it says of ``scored`` against ``outcomes``."""
        self._sum(FLOAT32, [logits(model, *call) for call in scored], outcomes)
        self.candidates += len(outcomes.item)
        for variant, config in VARIANTS.items():
            timer = None if variant == "" else smallest_first
            compacted = compact(model, config, sample, logits=logits, timer=timer)
            if not compacted.report.unavailable:
                self.reports[variant].append(compacted.report)
                self._sum(variant, [logits(compacted.model, *call) for call in scored], outcomes)

    def _sum(self, variant: str, parts: list[Tensor], outcomes: Requests) -> None:
        label_C, user_C = outcomes.supervision.label[:, 0], outcomes.user[outcomes.owner]
        known_C = ~np.isnan(label_C)
        probability_C = torch.cat(parts)[:, 0].double().sigmoid().numpy()
        for user, loss in zip(user_C[known_C], log_loss(probability_C[known_C], label_C[known_C]), strict=True):
            self.by_user[variant][int(user)] += float(loss)

    def values(self, prefix: str) -> Values:
        """Costs with intervals; ratios of bytes; how well errors were predicted."""
        values: Values = {f"{prefix}ne_candidates": self.candidates}
        for variant, reports in self.reports.items():
            for end, cost in zip(("", "_lo", "_hi"), self.cost(variant), strict=True):
                values[f"{prefix}{variant}ne_cost_pct{end}"] = round(cost, 5)
            values[f"{prefix}{variant}expected_ne_cost_pct"] = round(max(each.ne_cost_pct for each in reports), 5)
            if variant == "" or variant.endswith("tables."):
                values[f"{prefix}{variant}table_ratio"] = round(reports[-1].table_ratio, 3)
        options = [
            option
            for report in self.reports[""]
            for layer in report.of("linear")
            for name, option in layer.options.items()
            if name != FLOAT32 and option.predicted
        ]
        ratio = np.array([(option.predicted or 0.0) / option.error for option in options])
        for share in (5, 50, 95):
            values[f"{prefix}predicted_vs_measured_p{share}"] = round(float(np.percentile(ratio, share)), 3)
        return values

    def cost(self, variant: str) -> tuple[float, float, float]:
        """Relative change of NE in %, and its interval of 95 % by a paired bootstrap over users.

        Base rates are the labels', and the same on both sides: NE changes as the loss does.
        """
        users = sorted(self.by_user[FLOAT32])
        before_U, after_U = (np.array([self.by_user[name][user] for user in users]) for name in (FLOAT32, variant))
        drawn = draw_users(np.random.default_rng(0), len(users), REPLICATES)
        cost_P = np.concatenate([weight_PU @ (after_U - before_U) / (weight_PU @ before_U) for weight_PU in drawn])
        low, high = np.percentile(100 * cost_P, [2.5, 97.5])
        return 100 * float((after_U - before_U).sum() / before_U.sum()), float(low), float(high)


def measure(options: Options, temporary: Path) -> Values:
    """``options.work`` is a finished run, ``options.data`` its data set if that has been moved; where there is none, a
    small run on generated data is made.
    """
    run = options.work if options.work is not None else generated(temporary / "generated")
    config = configuration.load(run / "platform.yaml", PlatformConfig)
    dataset = Dataset.open(options.data) if options.data is not None else dataset_of(config, run)
    there = config.dataset.model_copy(update={"path": dataset.path})
    config, workspace = config.model_copy(update={"dataset": there}), config.workspace(dataset)
    return {**of_foundation(config, run, workspace), **of_experts(config, run, workspace, temporary / "before")}


def of_foundation(config: PlatformConfig, run: Path, workspace: Workspace) -> Values:
    """Every snapshot, on the window that it was the newest for."""
    costs, settings = Costs(), config.foundation.model
    model = settings.build(inputs=workspace.inputs, seed=0).eval()
    reader = workspace.reader({"all": (workspace.engagements, settings.history)})
    registry, lineage = Registry(run / "registry"), config.foundation.publisher.lineage
    for before, window in pairwise(workspace.dataset.windows):
        known = [each for each in registry.list(lineage) if each.watermark <= window.start]
        if not known or known[-1].watermark <= before.start:
            continue  # the one that published it is no longer there
        model.load_state_dict(known[-1].load())
        recent, requests = last(workspace.requests(before.index)), workspace.requests(window.index)
        sample = [(batch,) for batch in reader.batches(recent, size=16)]
        scored = [(batch,) for batch in reader.batches(requests, size=64)]
        costs.add(model, sample, scored, workspace.outcomes(requests), logits=scored_logits)
    return costs.values("")


def of_experts(config: PlatformConfig, run: Path, workspace: Workspace, past: Path) -> Values:
    """Every expert of the platform's last arm, as it was before the last window that it learned."""
    for name in config.experts_of(workspace.inputs.surfaces):
        own = Path("checkpoints", "experts", name)
        step = min((run / own).glob("step-*"))
        shutil.copytree(step, past / own / step.name)
    for name in ("registry", "tae_log"):
        (past / name).symlink_to((run / name).resolve())
    job, costs = ExpertJob(config, past, workspace.inputs.surfaces), Costs()
    for name, learner in job.learners.items():
        window, surfaces = job.trainers[name].cursor or 0, learner.surfaces.values()
        member = learner.members[config.expert.arms[-1], config.seeds[0]]
        learner.vocabulary.eval()
        recent, requests = (workspace.requests(index).on_surface(*surfaces) for index in (window, window + 1))
        with member.optimiser.averaged():
            model = member.model.eval()
            sample = expert_calls(learner, model, window, last(recent))
            scored = expert_calls(learner, model, window + 1, requests)
            costs.add(model, sample, scored, workspace.outcomes(requests), logits=logits_of)
    return costs.values("expert.")


def expert_calls(learner: SurfaceLearner, model: ExpertModel, window: int, requests: Requests) -> list[Call]:
    """Arguments of an expert's calls for ``requests`` of ``window``."""
    features, made, start = learner.teacher.read(window, requests).features, [], 0
    for batch in learner.reader.batches(requests, size=64):
        rows = slice(start, start + len(batch.item_C))
        start = rows.stop
        read, item_U = batch.reading(model.histories)
        made.append((read, learner.vocabulary(batch).of_items(item_U), features[rows]))
    return made


def last(requests: Requests) -> Requests:
    """The last :data:`SAMPLE` of them."""
    return requests.slice(max(0, len(requests) - SAMPLE), len(requests))


def generated(folder: Path) -> Path:
    """A run of a small platform over generated windows."""
    dataset = Synthetic.Config(users=150, items=200, windows=5).build(folder / "data")
    settings = {
        "name": "generated",
        "dataset": {"path": dataset.path},
        "run": folder / "run",
        "seeds": [0],
        "spans": {},
        "expert": {"arms": ["control", "treated"]},
    }
    config = PlatformConfig.model_validate(settings)
    Platform(config).run(lambda message, share: None)
    return config.run
