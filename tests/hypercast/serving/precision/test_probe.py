"""A probe sees what flows, changes nothing, and leaves no trace."""

import torch
from torch import nn

from foundation.model import FoundationModel
from hypercast.serving.precision.compact import Precision, compact
from hypercast.serving.precision.probe import Probe, predicted_errors
from tests.hypercast.serving.precision.world import World, never_float32

ALL = Probe.Config(every=1, rows=1 << 20, keep=1 << 20)


def test_moments_are_those_of_every_row_that_a_layer_is_given(world: World) -> None:
    given: list[torch.Tensor] = []
    layer = world.model.tower[0]
    hook = layer.register_forward_hook(lambda _, arguments, output: given.append(arguments[0].double()))
    with torch.no_grad(), Probe(config=ALL, model=world.model) as probe:
        for call in world.sample:
            world.model(*call)
    hook.remove()
    seen, rows_NI = probe.layers["tower.0"], torch.cat(given)
    assert seen.inputs.count == len(rows_NI) == seen.outputs.count
    torch.testing.assert_close(seen.inputs.mean_I, rows_NI.mean(0))
    torch.testing.assert_close(seen.inputs.variance_I, rows_NI.var(0, correction=0))
    torch.testing.assert_close(seen.outputs.mean_I, layer(rows_NI.float()).detach().double().mean(0))
    assert torch.equal(seen.kept_NI(), rows_NI.float())
    assert list(seen.rows) == [len(each) for each in given]


def test_one_call_in_so_many_is_looked_at_and_so_many_rows_of_it() -> None:
    layer = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad(), Probe(config=Probe.Config(every=3, rows=5, keep=7), model=layer) as probe:
        for rows in (4, 1, 1, 100, 1, 1, 9):
            layer(torch.ones(rows, 3))
    seen = probe.layers["0"]
    assert list(seen.rows) == [4, 100, 9]
    assert seen.typical_rows == 9
    assert seen.inputs.count == 4 + 5 + 5
    assert len(seen.kept_NI()) == 7


def test_answers_are_the_same_and_hooks_are_gone_afterwards(world: World) -> None:
    with torch.no_grad():
        before = [world.model(*call).logit_CT for call in world.sample]
        with Probe(config=ALL, model=world.model):
            during = [world.model(*call).logit_CT for call in world.sample]
        assert all(torch.equal(a, b) for a, b in zip(before, during, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in world.model.modules())


def test_between_two_passes_that_are_looked_at_no_layer_has_a_hook(world: World) -> None:
    looked_at = []
    with torch.no_grad(), Probe(config=Probe.Config(every=2), model=world.model) as probe:
        for call in [*world.sample, *world.later]:
            world.model(*call)
            looked_at.append(bool(world.model.tower[0]._forward_hooks))
    assert looked_at == [place % 2 == 0 for place in range(len(looked_at))]
    assert len(probe.layers["tower.0"].rows) == sum(looked_at)
    assert len(probe.layers["stack.layers.0.project"].rows) == sum(looked_at)


def test_live_statistics_of_a_compact_model_tell_when_inputs_have_moved(world: World) -> None:
    config = Precision(kernels=["int8"], tables=[], layer_error=1.0)
    chosen = compact(world.model, config, world.sample, timer=never_float32)

    def expected(model: FoundationModel, calls: list) -> dict[str, float]:
        with torch.no_grad(), Probe(config=ALL, model=model) as probe:
            for call in calls:
                model(*call)
        return predicted_errors(probe, model)

    usual, later = expected(chosen.model, world.sample), expected(chosen.model, world.later)
    assert usual.keys() == {each.name for each in chosen.report.of("linear")}
    for name, error in usual.items():
        assert later[name] < 2 * error
    # One input far larger than the others makes the steps of all of them wide.
    layer = chosen.model.tower[0]
    moved = torch.randn(512, layer.in_features)
    moved[:, 0] *= 1000.0
    with torch.no_grad(), Probe(config=ALL, model=chosen.model.tower) as probe:
        layer(moved)
    quiet = layer.multiplied().clone()
    assert predicted_errors(probe, chosen.model.tower)["0"] > usual["tower.0"]
    assert torch.equal(layer.multiplied(), quiet)
