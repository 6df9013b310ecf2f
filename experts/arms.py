"""The arms of the comparison: what one expert becomes with and without the foundation model."""

import math

from experts.backbone.mlp import MLP
from experts.fusion import GatedFusion
from experts.model import ExpertModel
from foundation.hstu.embedding import FeatureEmbedding
from foundation.hstu.vocabulary import BatchVocabulary
from streaming.inputs import Inputs
from transfer.gain import CONTROL, CONTROL_MATCHED, LOGIT_RESIDUAL, TAE, TREATED

ARMS = (CONTROL, CONTROL_MATCHED, TAE, LOGIT_RESIDUAL, TREATED)


def arm_configs(
    base: ExpertModel.Config, *, fusion: GatedFusion.Config, cross_history: int, inputs: Inputs, embedding: int
) -> dict[str, ExpertModel.Config]:
    """Configurations of every arm, by name.

    ``control`` is ``base``. ``tae`` adds the embedding, ``logit_residual`` the teacher's logit, ``treated`` both.
    ``control_matched`` adds the cross-surface history instead, and gets as many dense parameters as ``treated`` by a
    wider backbone, so that no gain is one of size.
    """
    treated = base.model_copy(update={"fusion": fusion, "logit_residual": True})
    matched = base.model_copy(update={"cross_history": cross_history})
    size = dense_parameters(treated, inputs, embedding)
    return {
        CONTROL: base,
        CONTROL_MATCHED: widened(matched, to=size, inputs=inputs, embedding=embedding),
        TAE: base.model_copy(update={"fusion": fusion}),
        LOGIT_RESIDUAL: base.model_copy(update={"logit_residual": True}),
        TREATED: treated,
    }


def widened(config: ExpertModel.Config, *, to: int, inputs: Inputs, embedding: int) -> ExpertModel.Config:
    """``config`` with the narrowest first hidden layer that gives it at least ``to`` dense parameters."""
    first, *rest = config.backbone.hidden
    per_unit = dense_parameters(_hidden(config, first + 1, rest), inputs, embedding)
    per_unit -= dense_parameters(config, inputs, embedding)
    missing = to - dense_parameters(config, inputs, embedding)
    return _hidden(config, first + max(0, math.ceil(missing / per_unit)), rest)


def dense_parameters(config: ExpertModel.Config, inputs: Inputs, embedding: int) -> int:
    """Number of parameters outside the embedding tables, which are the same in every arm."""
    vocabulary = BatchVocabulary.Config(default=2).build(inputs)
    model = config.build(inputs=inputs, vocabulary=vocabulary, embedding=embedding, seed=0)
    tables = {id(each.weight) for each in model.modules() if isinstance(each, FeatureEmbedding)}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in tables)


def _hidden(config: ExpertModel.Config, first: int, rest: list[int]) -> ExpertModel.Config:
    return config.model_copy(update={"backbone": MLP.Config(hidden=[first, *rest])})
