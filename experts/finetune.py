"""Where an expert that goes on training the foundation model's tower gets it from."""

from collections.abc import Iterable
from dataclasses import dataclass

from experts.member import Member
from experts.teacher import as_late_as
from hypercast.pins import Pin
from hypercast.registry import Registry
from streaming.dataset import Dataset, Window


@dataclass(frozen=True, kw_only=True)
class Start:
    """Snapshots of ``registry`` that an expert with that ``pin`` may start from."""

    registry: Registry
    pin: Pin
    dataset: Dataset

    def give(self, members: Iterable[Member], window: Window, *, delay: int) -> None:
        """Before ``window``, give those that wait for a tower one that has seen nothing of it (law L3).

        It is the newest that has seen nothing of the ``delay`` windows before either, or that of the pin; of a pin to
        a snapshot that has seen the window, none is given yet.
        """
        waiting = [each for each in members if each.model.tower is not None and not each.model.tower.given]
        if not waiting:
            return
        as_of = as_late_as(self.dataset, window.index, delay=delay)
        if self.pin.version is None:
            snapshot = self.registry.latest(self.pin.lineage, as_of=as_of)
        else:
            snapshot = self.registry.get(self.pin.target)
        if snapshot.watermark <= window.start:
            weights = snapshot.load()
            for member in waiting:
                member.give(weights)
