"""A compact model stays within its bounds, tells what it did, and leaves the original alone."""

from collections.abc import Callable, Mapping

import pytest
import torch

from foundation.inference import CandidateScorer
from foundation.model import FoundationModel
from hypercast.serving.precision.compact import CompactModel, Precision, compact, logits_of
from hypercast.serving.precision.cost import divergence
from hypercast.serving.precision.kernels import BFloat16, Float32, Int8
from hypercast.serving.precision.tables import CompactTable
from hypercast.serving.precision.twin import twin
from streaming.batch import RequestBatch
from streaming.errors import DataError
from tests.hypercast.serving.precision.world import World, never_float32

NO_BOUND = {"layer_error": 10.0, "table_error": 10.0, "ne_cost_pct": 1e6}


def scored(model: FoundationModel, batch: RequestBatch) -> torch.Tensor:
    return CandidateScorer.Config(micro_batch=32).build(model).score(batch).logit_CT


def said(model: FoundationModel, world: World) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model(*call).logit_CT for call in world.sample])


@pytest.fixture(scope="module")
def chosen(world: World) -> CompactModel[FoundationModel]:
    return compact(world.model, Precision(), world.sample, timer=never_float32)


def test_every_layer_that_is_reached_is_in_the_report(world: World, chosen: CompactModel[FoundationModel]) -> None:
    names = [each.name for each in chosen.report.layers]
    stack = [f"stack.layers.{index}.{part}" for index in (0, 1) for part in ("project", "output")]
    assert sorted(names) == sorted(
        ["table", "dense", *stack, "tower.0", "tower.3", "main_heads", "alignment.0", "surface_heads"]
    )
    table = chosen.report.of("table")[0]
    assert table.kernel == "int4"
    assert chosen.report.table_ratio == 4 * 16 / (16 / 2 + 4)
    assert {each.kernel for each in chosen.report.of("linear")} == {"bfloat16"}
    assert isinstance(chosen.model.table, CompactTable)
    assert isinstance(chosen.model.tower[0], BFloat16)


def test_what_is_reported_is_what_happens(world: World, chosen: CompactModel[FoundationModel]) -> None:
    before, after = said(world.model, world), said(chosen.model, world)
    assert chosen.report.candidates == len(before)
    assert chosen.report.ne_cost_pct == pytest.approx(divergence(before, after).ne_cost_pct)
    assert chosen.report.logit_change == pytest.approx(float((before - after).square().mean().sqrt()))
    assert 0 < chosen.report.ne_cost_pct <= Precision().ne_cost_pct
    for layer in chosen.report.layers:
        bound = Precision().table_error if layer.kind == "table" else Precision().layer_error
        assert layer.chosen.error <= bound
        assert layer.chosen.nbytes < layer.float32.nbytes


def test_the_original_keeps_its_layers_and_its_bits(world: World) -> None:
    before = said(world.model, world)
    layers = dict(world.model.named_modules())
    compact(world.model, Precision(), world.sample, timer=never_float32)
    assert dict(world.model.named_modules()) == layers
    assert torch.equal(said(world.model, world), before)


def test_without_candidates_it_is_the_original_to_the_bit(world: World) -> None:
    same = compact(world.model, Precision(kernels=[], tables=[]), world.sample)
    assert same.layers == {}
    assert same.report.ne_cost_pct == 0.0
    assert torch.equal(said(same.model, world), said(world.model, world))


@pytest.mark.parametrize("kernels", [["bfloat16"], ["int8"], []])
@pytest.mark.parametrize("tables", [["int8"], []])
def test_a_candidate_scored_alone_says_the_same(world: World, kernels: list, tables: list) -> None:
    """Law L6: nothing of what is scored beside it."""
    config = Precision(kernels=kernels, tables=tables, **NO_BOUND)
    model = compact(world.model, config, world.sample, timer=never_float32).model
    batch = world.later[0][0]
    together = CandidateScorer.Config().build(model).score(batch).logit_CT
    alone = CandidateScorer.Config(micro_batch=1).build(model).score(batch).logit_CT
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", ["bfloat16", "int8"])
def test_scoring_over_cached_histories_is_the_whole_forward(world: World, kernel: str) -> None:
    config = Precision(kernels=[kernel], tables=["int8"], **NO_BOUND)
    made = compact(world.model, config, world.sample, logits=scored, timer=never_float32)
    for (batch,) in world.later:
        with torch.no_grad():
            torch.testing.assert_close(scored(made.model, batch), made(batch).logit_CT, rtol=0.02, atol=0.02)
            torch.testing.assert_close(scored(made.model, batch), scored(world.model, batch), rtol=0.3, atol=0.15)


def test_what_leaves_the_model_is_float32(world: World, chosen: CompactModel[FoundationModel]) -> None:
    output = chosen(*world.sample[0])
    kinds = {output.penultimate_CR.dtype, output.logit_CT.dtype, output.surface_logit_CT.dtype}
    assert kinds | {output.sequence_CD.dtype} == {torch.float32}


def test_a_float32_layer_takes_what_a_bfloat16_one_keeps(world: World) -> None:
    def only_projections(contestants: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        kernel = getattr(contestants["float32"], "func", None)
        first = isinstance(kernel, Float32) and kernel.out_features in (32, 4 * 16)
        return dict.fromkeys(contestants, 1.0) | {"float32": 2.0 if first else 0.5}

    made = compact(world.model, Precision(tables=[], **NO_BOUND), world.sample, timer=only_projections)
    by_name = {each.name: each for each in made.report.layers}
    assert by_name["tower.0"].kernel == by_name["stack.layers.0.project"].kernel == "bfloat16"
    assert by_name["tower.3"].kernel == by_name["stack.layers.0.output"].kernel == "float32"
    assert by_name["tower.0"].keep
    assert by_name["stack.layers.0.project"].keep
    assert not by_name["tower.3"].keep
    assert made(*world.sample[0]).logit_CT.dtype == torch.float32


def test_what_its_inputs_have_lost_counts_against_the_bound(world: World) -> None:
    """Held against what something else says: with that far away, nothing may be lost on top."""
    exact = said(world.model, world)
    near = compact(world.model, Precision(), world.sample, reference=exact, timer=never_float32)
    alone = compact(world.model, Precision(), world.sample, timer=never_float32)
    assert {each.name: each.kernel for each in near.report.layers} == {
        each.name: each.kernel for each in alone.report.layers
    }
    far = compact(world.model, Precision(), world.sample, reference=exact + 0.5, timer=never_float32)
    assert far.layers == {}
    assert far.report.ne_cost_pct == pytest.approx(divergence(exact + 0.5, exact).ne_cost_pct, rel=1e-6)


def test_a_model_that_is_probed_answers_others_unseen(world: World) -> None:
    """Its twin has hooks of its own."""
    other = twin(world.model)
    seen: list[str] = []
    other.dense.register_forward_hook(lambda *call: seen.append("twin"))
    world.model.dense.register_forward_hook(lambda *call: seen.append("model")).remove()
    with torch.no_grad():
        world.model(*world.sample[0])
        assert seen == []
        other(*world.sample[0])
    assert seen == ["twin"]


def test_a_layer_beyond_its_bound_stays_as_it_is(world: World) -> None:
    loose = compact(world.model, Precision(kernels=["int8"], **NO_BOUND), world.sample, timer=never_float32).report
    errors = {each.name: each.options["int8"].error for each in loose.layers}
    middle = sorted(errors.values())[len(errors) // 2]
    config = Precision(kernels=["int8"], tables=["int8"], layer_error=middle, table_error=middle, ne_cost_pct=1e6)
    report = compact(world.model, config, world.sample, timer=never_float32).report
    assert {each.name for each in report.layers if each.kernel == "int8"} == {
        name for name, error in errors.items() if error <= middle
    }


def test_layers_are_put_back_from_the_largest_error_until_the_model_is_within_its_bound(world: World) -> None:
    loose = compact(world.model, Precision(**NO_BOUND), world.sample, timer=never_float32).report
    config = Precision(layer_error=10.0, table_error=10.0, ne_cost_pct=loose.ne_cost_pct / 30)
    report = compact(world.model, config, world.sample, timer=never_float32).report
    assert report.ne_cost_pct <= config.ne_cost_pct < loose.ne_cost_pct
    put_back = [each for each in report.layers if each.put_back]
    assert put_back[0].name == "table"
    assert put_back[0].put_back[0] == "int4"
    left = max((each.chosen.error for each in report.layers if not each.put_back), default=0.0)
    for layer in put_back:
        assert min(layer.options[name].error for name in layer.put_back) >= left
        assert layer.chosen.error < layer.options[layer.put_back[-1]].error


def test_a_bound_that_nothing_meets_leaves_float32(world: World) -> None:
    made = compact(world.model, Precision(ne_cost_pct=1e-13), world.sample, timer=never_float32)
    unread = ("alignment.0", "surface_heads")  # the logits that are looked at do not pass through them
    assert {each.kernel for each in made.report.layers if each.name not in unread} == {"float32"}
    assert made.report.ne_cost_pct == 0.0
    assert torch.equal(said(made.model, world), said(world.model, world))


def test_a_kernel_that_says_nan_to_what_was_not_kept_is_put_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Int8.forward

    def broken(self: Int8, x_NI: torch.Tensor) -> torch.Tensor:
        return usual(self, x_NI) + (torch.nan if self.out_features == 2 and len(x_NI) > 8 else 0.0)

    monkeypatch.setattr(Int8, "forward", broken)
    config = Precision(kernels=["int8"], tables=[], probe={"every": 1, "keep": 8}, layer_error=10.0, ne_cost_pct=1e6)
    made = compact(world.model, config, world.sample, timer=never_float32)
    by_name = {each.name: each for each in made.report.layers}
    assert by_name["main_heads"].kernel == "float32"
    assert by_name["main_heads"].put_back == ["int8"]
    assert torch.isfinite(made(*world.sample[0]).logit_CT).all()


def test_the_fastest_is_taken_and_errors_of_all_are_told(world: World) -> None:
    def int8_first(contestants: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        return {"float32": 3.0, "bfloat16": 2.0, "int8": 1.0, "int4": 1.0}

    report = compact(world.model, Precision(**NO_BOUND), world.sample, timer=int8_first).report
    assert {each.kernel for each in report.of("linear")} == {"int8"}
    for layer in report.of("linear"):
        assert layer.options.keys() == {"float32", "bfloat16", "int8"}
        for option in layer.options.values():
            assert option.predicted == pytest.approx(option.error, rel=0.6, abs=1e-9)


def test_kernels_of_no_use_here_are_left_out_and_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BFloat16, "unavailable", staticmethod(lambda: "too old"))
    report = compact(world.model, Precision(), world.sample, timer=never_float32).report
    assert report.unavailable == {"bfloat16": "too old"}
    assert {each.kernel for each in report.of("linear")} <= {"int8", "float32"}
    assert all("bfloat16" not in each.options for each in report.layers)


def test_measured_times_choose_something_within_the_bounds(world: World) -> None:
    made = compact(world.model, Precision(rounds=1), world.sample)
    assert made.report.ne_cost_pct <= Precision().ne_cost_pct
    assert all(option.microseconds > 0 for each in made.report.layers for option in each.options.values())


def test_the_report_comes_back_from_json_and_prints_every_layer(chosen: CompactModel[FoundationModel]) -> None:
    report = type(chosen.report).model_validate_json(chosen.report.model_dump_json())
    assert report == chosen.report
    assert len(report.to_rich().rows) == len(report.layers) + 1


def test_refusals(world: World, fresh: FoundationModel) -> None:
    with pytest.raises(DataError, match="no candidate"):
        compact(world.model, Precision(), [])
    with pytest.raises(RuntimeError, match="eval"):
        compact(fresh.train(), Precision(), world.sample)
    with pytest.raises(ValueError, match="keeps"):
        Precision.model_validate({"probe": {"keep": 0}})


def test_int8_layers_really_multiply_int8(world: World) -> None:
    config = Precision(kernels=["int8"], tables=[], **NO_BOUND)
    made = compact(world.model, config, world.sample, timer=never_float32)
    assert all(
        isinstance(layer, Int8) and layer.tensors()["weight"].dtype == torch.int8 for layer in made.layers.values()
    )
    assert made.report.logit_change > 1e-4
    assert logits_of(made.model, *world.sample[0]).shape[1] == 2
