"""Heads on prefixes of the representation add a loss of their own and change nothing else."""

import pydantic
import pytest
import torch

from foundation.hstu.loss import masked_log_loss
from foundation.hstu.optimiser import ModelOptimiser
from foundation.model import FoundationModel
from streaming.batch import RequestBatch
from streaming.workspace import Workspace


@pytest.fixture(scope="module")
def batch(workspace: Workspace, small: FoundationModel.Config) -> RequestBatch:
    reader = workspace.reader({"all": (workspace.engagements, small.history)})
    return next(iter(reader.batches(workspace.requests(2), size=20, since=0, before=2**62)))


def built(small: FoundationModel.Config, workspace: Workspace, prefixes: list[int]) -> FoundationModel:
    config = small.model_copy(update={"prefixes": prefixes})
    return config.build(inputs=workspace.inputs, seed=0).eval()


def test_the_loss_gains_the_mean_over_prefixes_and_the_rest_stays(
    small: FoundationModel.Config, workspace: Workspace, batch: RequestBatch
) -> None:
    plain, nested = built(small, workspace, []), built(small, workspace, [2, 3])
    assert plain.state_dict().keys() == {name for name in nested.state_dict() if not name.startswith("prefix_heads.")}
    output, same = plain(batch), nested(batch)
    assert torch.equal(output.penultimate_CR, same.penultimate_CR) and torch.equal(output.logit_CT, same.logit_CT)
    losses = []
    for index, width in enumerate([2, 3]):
        weight, bias = (nested.state_dict()[f"prefix_heads.{index}.{name}"] for name in ("weight", "bias"))
        logit_CT = output.penultimate_CR[:, :width] @ weight.T + bias
        losses.append(masked_log_loss(logit_CT, batch.labels.label_CT, batch.labels.known_CT))
    added = nested.loss(same, batch, surface_weight=0.5) - plain.loss(output, batch, surface_weight=0.5)
    torch.testing.assert_close(added, torch.stack(losses).mean(), rtol=1e-4, atol=1e-6)
    (gradient_CR,) = torch.autograd.grad(torch.stack(losses).sum(), output.penultimate_CR)
    assert gradient_CR[:, :3].abs().sum(0).min() > 0 and not gradient_CR[:, 3:].any()


def test_training_teaches_the_prefixes(
    small: FoundationModel.Config, workspace: Workspace, batch: RequestBatch
) -> None:
    nested, plain = built(small, workspace, [2]), built(small, workspace, [])

    def of_prefix() -> float:
        with torch.no_grad():
            losses = [model.loss(nested(batch), batch, surface_weight=0.0) for model in (nested, plain)]
        return float(losses[0] - losses[1])

    optimiser = ModelOptimiser.Config(learning_rate=0.05).build(nested)
    plain.load_state_dict(nested.state_dict(), strict=False)
    before = of_prefix()
    for _ in range(10):
        optimiser.step(nested.loss(nested(batch), batch, surface_weight=0.0))
    plain.load_state_dict({n: v for n, v in nested.state_dict().items() if not n.startswith("prefix_heads.")})
    assert of_prefix() < before - 0.01


@pytest.mark.parametrize("prefixes", [[0], [6], [3, 2], [2, 2], [-1]])
def test_prefixes_that_are_none_are_refused(prefixes: list[int]) -> None:
    with pytest.raises(pydantic.ValidationError, match="must grow and lie between 1 and representation 6"):
        FoundationModel.Config(representation=6, prefixes=prefixes)
