"""A bundle is made compact whole, within the bound of what it says in float32, or says why it is not."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from foundation.encoding import Reused
from hypercast.serving.config import ServedPrecision
from hypercast.serving.features.asked import Asked
from hypercast.serving.metrics import Metrics
from hypercast.serving.models.bundle import Bundle, BundleLoader
from hypercast.serving.models.foundation import FoundationScorer
from hypercast.serving.precision import loader as loading
from hypercast.serving.precision import options
from hypercast.serving.precision.cost import Divergence, divergence
from hypercast.serving.precision.loader import SUFFIX, CompactLoader
from hypercast.serving.precision.sample import as_asked
from streaming.workspace import Workspace
from tests.hypercast.serving.conftest import Played
from tests.hypercast.serving.precision.world import never_float32

TREATED = ("surface_0/treated", "surface_1/treated")
CONTROL = ("surface_0/control", "surface_1/control")


@pytest.fixture(autouse=True)
def compact_kernels_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choices that do not depend on how busy the machine is."""

    def timed(contestants: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
        return never_float32(contestants)

    monkeypatch.setattr(options, "in_turn", timed)


@pytest.fixture(scope="module")
def workspace(played: Played) -> Workspace:
    return played.workspace()


@pytest.fixture(scope="module")
def plain(played: Played, workspace: Workspace) -> BundleLoader:
    return BundleLoader(config=played.config, workspace=workspace)


class Given:
    """Loads one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def newest(self) -> str:
        return self.bundle.version

    def load(self) -> Bundle:
        return self.bundle


def compacting(
    loader: Any, workspace: Workspace, *, metrics: Metrics | None = None, live: bool = True, **changes: Any
) -> CompactLoader:
    return CompactLoader(
        loader=loader,
        config=ServedPrecision.model_validate({"requests": 16, **changes}),
        workspace=workspace,
        batch=8,
        live=live,
        metrics=metrics or Metrics(),
    )


def later(played: Played, workspace: Workspace, surface: int) -> Asked:
    """Requests of the first window that the models have not learned from."""
    stored = workspace.requests(played.next_window.index).on_surface(surface)
    return as_asked(workspace, stored.slice(0, 12))


def answers(bundle: Bundle, surface: str, asked: Asked) -> np.ndarray:
    foundation = bundle.foundation_of(surface)
    assert foundation is not None
    return bundle.experts[surface].score(asked, foundation.score(asked).features())


def cost(reference_CT: np.ndarray, other_CT: np.ndarray) -> float:
    """Expected change of NE of probabilities, in %."""
    return divergence(*(torch.from_numpy(each).logit() for each in (reference_CT, other_CT))).ne_cost_pct


def test_answers_are_compact_and_within_the_bound_and_float32_models_stay_as_they_are(
    played: Played, workspace: Workspace, plain: BundleLoader
) -> None:
    bundle, metrics = plain.load(), Metrics()
    asked = {name: later(played, workspace, index) for index, name in enumerate(workspace.inputs.surfaces)}
    before = {name: answers(bundle, name, each) for name, each in asked.items()}
    loader = compacting(plain, workspace, metrics=metrics)
    made = loader.load()
    assert made.version == bundle.version + SUFFIX == loader.newest() == made.versions["bundle"]
    said = made.versions["precision"]
    assert {*said} == {played.snapshot.name, *TREATED, *CONTROL}
    assert json.loads(json.dumps(said)) == said
    for name, told in said.items():
        assert told["kernels"]["table"] in ("int8", "int4"), name
        assert told["ne_cost_pct"] <= 0.05 and told["table_ratio"] > 2 and told["candidates"] > 0
    for label in ("FM", *TREATED, *CONTROL):
        assert metrics.value("precision_models_total", model=label, outcome="compact") == 1
    for name, each in asked.items():
        found = answers(made, name, each)
        assert (found != before[name]).any()
        assert cost(before[name], found) < 0.1  # chosen by others, so it may be a little more than their bound
        np.testing.assert_array_equal(answers(bundle, name, each), before[name])
        assert made.fallback[name].report is not None and bundle.fallback[name].report is None
    assert metrics.value("precision_answers_total", model="FM", kernels="compact") == 2
    assert metrics.value("precision_answers_total", model="surface_1/treated", kernels="compact") == 1


def test_vectors_are_the_compact_models_and_a_candidate_is_scored_as_if_it_were_alone(
    played: Played, workspace: Workspace, plain: BundleLoader
) -> None:
    """Law L6."""
    made = compacting(plain, workspace).load()
    one = later(played, workspace, 1)
    one = cast(Asked, one.take(np.argsort(-np.diff(one.offsets), kind="stable")[:1]))
    assert len(one.item) > 3
    foundation, expert = made.foundation_of("surface_1"), made.experts["surface_1"]
    in_float32 = plain.load().foundation_of("surface_1")
    assert foundation is not None and in_float32 is not None

    def said(asked: Asked) -> list[np.ndarray]:
        scored = foundation.score(asked)
        return [scored.logit_CT, scored.vectors["penultimate"], expert.score(asked, scored.features())]

    whole, exact = said(one), in_float32.score(one).vectors["penultimate"]
    assert (whole[1] != exact).any()
    np.testing.assert_allclose(whole[1], exact, atol=0.1 * np.abs(exact).max())
    alone = one.impressions()
    for place in range(len(one.item)):
        for mine, theirs in zip(said(cast(Asked, alone.slice(place, place + 1))), whole, strict=True):
            np.testing.assert_allclose(mine[0], theirs[place], rtol=2e-3, atol=1e-3)


def test_encoded_histories_are_kept_for_the_compact_model_alone(
    played: Played, workspace: Workspace, plain: BundleLoader
) -> None:
    exact, made = (
        plain.load().foundation_of("surface_1"),
        compacting(plain, workspace).load().foundation_of("surface_1"),
    )
    assert exact is not None and made is not None and exact.kept is not None and made.kept is not None
    one = cast(Asked, later(played, workspace, 1).slice(0, 1))
    exact.score(one)
    assert made.kept is not exact.kept and not len(made.kept)
    first, second = made.score(one), made.score(one)
    assert (first.reused, second.reused) == (Reused(miss=1), Reused(hit=1))
    np.testing.assert_array_equal(first.logit_CT, second.logit_CT)
    assert (first.logit_CT != exact.score(one).logit_CT).any()


def test_without_a_sample_float32_answers_and_that_is_said_once_and_counted(
    played: Played, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, metrics = BundleLoader(config=played.config, workspace=workspace).load(), Metrics()
    first = workspace.dataset.windows[0].end - 1
    assert bundle.foundation is not None
    bundle.foundation.snapshot = replace(bundle.foundation.snapshot, watermark=first)
    for expert in (*bundle.experts.values(), *bundle.fallback.values()):
        expert.as_of = first
    loader = compacting(Given(bundle), workspace, metrics=metrics)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            made = loader.load()
    assert len(caplog.records) == 5
    assert all(
        "answers in float32" in each.message and "no request was made" in each.message for each in caplog.records
    )
    assert made.foundation is bundle.foundation
    assert made.experts == bundle.experts and made.fallback == bundle.fallback
    for label in ("FM", *TREATED, *CONTROL):
        assert metrics.value("precision_models_total", model=label, outcome="no_sample") == 2
    assert "no request was made" in made.versions["precision"]["surface_1/treated"]["why"]


def test_a_compact_model_that_strays_is_given_up_until_the_next_bundle(
    played: Played, workspace: Workspace, plain: BundleLoader, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    watch = {"share": 1.0, "least": 1, "ne_cost_pct": 1e-12}
    loader = compacting(plain, workspace, metrics=metrics, watch=watch)
    asked, exact = later(played, workspace, 0), answers(plain.load(), "surface_0", later(played, workspace, 0))
    for bundles in (1, 2):
        made = loader.load()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert (answers(made, "surface_0", asked) != exact).any()
            for _ in range(2):
                np.testing.assert_array_equal(answers(made, "surface_0", asked), exact)
        warned = [each.message.split(" costs ")[0] for each in caplog.records]
        assert warned == [f"compact {played.snapshot.name}", "compact surface_0/treated"]
        for label in ("FM", "surface_0/treated"):
            assert metrics.value("precision_strayed_total", model=label) == bundles
            assert metrics.value("precision_watched_total", model=label) == bundles
            assert metrics.value("precision_answers_total", model=label, kernels="compact") == bundles
            assert metrics.value("precision_answers_total", model=label, kernels="float32") == 2 * bundles
            assert metrics.value("precision_ne_cost_percent", model=label) > 1e-12
            kernels = made.versions["precision"][played.snapshot.name if label == "FM" else label]["kernels"]
            for layer in kernels.keys() - {"table"}:
                assert 0 < metrics.value("precision_layer_error", model=label, layer=layer) < 0.1
            assert metrics.value("precision_layer_error", model=label, layer="table") == 0  # tells of linear layers


def test_a_foundation_model_whose_vectors_cost_an_expert_too_much_stays_in_float32(
    played: Played, workspace: Workspace, plain: BundleLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = iter([0.01, 0.06])  # of the first surface, and of the second

    def costly(reference_CT: torch.Tensor, other_CT: torch.Tensor) -> Divergence:
        assert not torch.equal(reference_CT, other_CT)
        return Divergence(extra=next(costs), loss=100.0)

    monkeypatch.setattr(loading, "divergence", costly)
    metrics = Metrics()
    made = compacting(plain, workspace, metrics=metrics).load()
    assert made.foundation is plain.load().foundation
    assert metrics.value("precision_models_total", model="FM", outcome="refused") == 1
    assert "surface_1/treated 0.0600 % of NE" in made.versions["precision"][played.snapshot.name]["why"]
    assert all(made.experts[name].report is not None for name in workspace.inputs.surfaces)


def test_a_kernel_that_fails_on_this_machine_fails_no_bundle(
    workspace: Workspace, plain: BundleLoader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(self: FoundationScorer, sample: Any, **settings: Any) -> FoundationScorer:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(FoundationScorer, "compacted", fails)
    metrics = Metrics()
    with caplog.at_level(logging.WARNING):
        made = compacting(plain, workspace, metrics=metrics).load()
    assert made.foundation is plain.load().foundation
    assert ["could not create a primitive" in each.message for each in caplog.records] == [True]
    assert metrics.value("precision_models_total", model="FM", outcome="failed") == 1
    assert made.experts["surface_0"].report is not None


def test_where_nothing_is_computed_live_the_foundation_model_is_left_alone(
    workspace: Workspace, plain: BundleLoader
) -> None:
    made = compacting(plain, workspace, live=False).load()
    assert made.foundation is plain.load().foundation
    assert {*made.versions["precision"]} == {*TREATED, *CONTROL}


def test_nothing_better_is_told(workspace: Workspace, plain: BundleLoader) -> None:
    metrics = Metrics()
    made = compacting(plain, workspace, metrics=metrics, kernels=[], tables=[]).load()
    assert made.foundation is not None and made.foundation.report is None
    assert metrics.value("precision_models_total", model="FM", outcome="unchanged") == 1
    assert "better" in made.versions["precision"]["surface_0/control"]["why"]
