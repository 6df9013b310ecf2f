"""What a data set offers to a model: the names and counts from which a model's shapes follow."""

from dataclasses import dataclass

from streaming.schema import DatasetConfig


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Names of features and numbers of categories. The id is the first feature of items and of users."""

    item_features: list[str]
    user_features: list[str]
    context: list[str]
    dense: list[str]
    surfaces: list[str]
    actions: list[str]
    tasks: list[str]

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
