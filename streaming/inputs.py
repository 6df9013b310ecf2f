"""What a data set offers to a model: the names and counts from which a model's shapes follow."""

from dataclasses import dataclass

from streaming.labels.plan import LabelPlan
from streaming.schema import DatasetConfig, TaskConfig


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Names of features and numbers of categories. The id is the first feature of items and of users.

    ``tasks`` names what a model has logits for: the heads of ``labels``, which are the data set's tasks where no policy
    splits one. ``labels`` None: every task waits for its labels.
    """

    item_features: list[str]
    user_features: list[str]
    context: list[str]
    dense: list[str]
    surfaces: list[str]
    actions: list[str]
    tasks: list[str]
    labels: LabelPlan | None = None

    @property
    def plan(self) -> LabelPlan:
        """How ``tasks`` are learned and read."""
        return self.labels or LabelPlan.of([TaskConfig(name=name) for name in self.tasks])

    @staticmethod
    def of(config: DatasetConfig) -> "Inputs":
        """The inputs of the data set that ``config`` describes."""
        return Inputs(
            item_features=["item_id", *config.item_attributes],
            user_features=["user_id", *config.user_attributes],
            context=list(config.context),
            dense=list(config.dense),
            surfaces=list(config.surfaces),
            actions=list(config.actions),
            tasks=[task.name for task in config.tasks],
        )
