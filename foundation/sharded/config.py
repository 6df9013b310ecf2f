"""What a platform file says about training the foundation model by several workers."""

from typing import Annotated, Literal

import pydantic

from streaming.config import Config as BaseConfig

Kind = Literal["table_wise", "row_wise", "column_wise", "data_parallel"]
Accelerator = Literal["cpu", "cuda"]
Wire = Literal["float32", "float16", "bfloat16"]
Kinds = Annotated[list[Kind], pydantic.Field(min_length=1)]

LOSS_SCALE = 1024.0
"""Gradients of vectors are multiplied by it before they travel as float16, whose smallest number is 6e-8."""


class Sharding(BaseConfig):
    """Attributes:

    workers: processes that train together, each with ``threads`` of the platform.
    accelerator: on what they compute: ``cpu``, and they talk by gloo; ``cuda``, a GPU each, all in one machine, and
        what lies on GPUs travels by nccl.
    shards: into how many logical shards each global batch is cut; a multiple of ``workers``. Dropout is drawn by shard,
        so with equal ``shards`` any number of workers trains on the same masks. null: one a worker, the fastest.
    deterministic: the same bits for any number of workers that divides ``shards``: gradients are gathered and added in
        the order of the shards.
    dense: how dense weights are kept: ``ddp`` on every worker, ``fsdp2`` sharded like the tables.
    kinds: how the planner may shard a table; ``column_wise`` gives every piece a row-wise Adagrad of its own;
        ``data_parallel`` puts the whole table on every worker, where only ids and gradients travel.
    kinds_of: the same of single tables, by name as in the plan: ``{context/hour: [data_parallel]}``.
    memory_mib: what the planner may place on one worker, tables with their optimiser's sums; null for no limit.
    vectors: in what looked-up vectors and their gradients travel between workers; what is added up is float32 always.
    gradients: the same of dense gradients.
    overlap: ids of the next batch travel to the tables' owners while this batch computes.
    max_failures: how often Ray Train starts the workers again from the last checkpoint; -1 for ever.
    """

    workers: int = pydantic.Field(default=2, ge=1)
    accelerator: Accelerator = "cpu"
    shards: int | None = pydantic.Field(default=None, ge=1)
    deterministic: bool = False
    dense: Literal["ddp", "fsdp2"] = "ddp"
    kinds: Kinds = ["table_wise", "row_wise"]
    kinds_of: dict[str, Kinds] = {}
    memory_mib: float | None = pydantic.Field(default=None, gt=0)
    vectors: Literal["float32", "float16"] = "float32"
    gradients: Wire = "float32"
    overlap: bool = True
    max_failures: int = pydantic.Field(default=3, ge=-1)

    @property
    def logical(self) -> int:
        """Shards of a global batch."""
        return self.workers if self.shards is None else self.shards

    @pydantic.model_validator(mode="after")
    def _workers_share_shards_evenly(self) -> "Sharding":
        if self.logical % self.workers:
            raise ValueError(
                f"sharding: {self.shards} shards cannot be spread evenly over {self.workers} workers. "
                f"Give shards: {2 * self.workers}, or another multiple"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _deterministic_is_possible(self) -> "Sharding":
        if not self.deterministic:
            return self
        misfits = {
            "shards: null (give a number that every number of workers divides, such as 4)": self.shards is None,
            "dense: fsdp2 (give ddp)": self.dense != "ddp",
            "kinds: column_wise (its sums of squares depend on the plan)": any(
                "column_wise" in kinds for kinds in (self.kinds, *self.kinds_of.values())
            ),
            "accelerator: cuda (where kernels may add in any order)": self.accelerator == "cuda",
            "vectors or gradients below float32": (self.vectors, self.gradients) != ("float32", "float32"),
        }
        wrong = [name for name, is_so in misfits.items() if is_so]
        if wrong:
            raise ValueError(f"sharding: deterministic cannot be had with {'; '.join(wrong)}")
        return self
