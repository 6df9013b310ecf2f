"""Everything that a consumer of a data set needs in memory, opened once."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from streaming.batch import BatchReader
from streaming.catalogue import Catalogue
from streaming.dataset import Dataset, Window
from streaming.history import EngagementLog
from streaming.inputs import Inputs
from streaming.requests import Requests, read_requests


@dataclass(frozen=True)
class Workspace:
    """A data set with its catalogues and its engagement log."""

    dataset: Dataset

    @cached_property
    def inputs(self) -> Inputs:
        return Inputs.of(self.dataset.config)

    @cached_property
    def items(self) -> Catalogue:
        return Catalogue.read(self.dataset.items(), id_column="item_id", attributes=self.dataset.config.item_attributes)

    @cached_property
    def users(self) -> Catalogue:
        return Catalogue.read(self.dataset.users(), id_column="user_id", attributes=self.dataset.config.user_attributes)

    @cached_property
    def engagements(self) -> EngagementLog:
        return EngagementLog.read(self.dataset, self.items)

    def requests(self, window: int) -> Requests:
        """The window's requests in time order."""
        return read_requests(self.dataset, window, items=self.items, users=self.users)

    def learned_in(self, window: Window) -> Iterator[tuple[int, Requests]]:
        """Requests of which some label became known in ``window``, by the index of the window they were made in.

        Tasks with a delay bring earlier windows' requests back, oldest first.
        """
        delay = max(task.delay_seconds for task in self.dataset.config.tasks) * 1_000_000
        for made in self.dataset.windows:
            if made.start <= window.start < made.end + delay:
                requests = self.requests(made.index).learned_in(window)
                if len(requests):
                    yield made.index, requests

    def reader(self, histories: dict[str, tuple[EngagementLog, int]]) -> BatchReader:
        """A reader of batches that carry ``histories``."""
        return BatchReader(items=self.items, users=self.users, context=self.dataset.config.context, histories=histories)
