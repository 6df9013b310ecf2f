"""What a window teaches an expert: requests, and beside them what the foundation model logged of their candidates.

A step trains on some of the window's own requests and, with replay, on an equal share of every window that was drawn to
be trained on again: with the label rates, embeddings and teacher's predictions that were theirs at the time, and with
the labels that became known in that window.

Shape legend: C candidates, T tasks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from experts.fusion import TeacherFeatures
from experts.teacher import TeacherLabels, TeacherReader
from hypercast.training.replay import Replay
from streaming.dataset import Window
from streaming.labels.order import interleaved
from streaming.requests import Requests, joined
from streaming.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Taught:
    """Requests with C candidates, what is logged of these, and what is distilled from."""

    requests: Requests
    features: TeacherFeatures
    labels: TeacherLabels

    def slice(self, start: int, stop: int) -> "Taught":
        """Requests ``start:stop``."""
        stop = min(stop, len(self.requests))
        rows = slice(self.requests.offsets[start], self.requests.offsets[stop])
        return Taught(requests=self.requests.slice(start, stop), features=self.features[rows], labels=self.labels[rows])

    def slices(self, size: int) -> Iterator["Taught"]:
        """All requests in their order, ``size`` at a time."""
        return (self.slice(start, start + size) for start in range(0, len(self.requests), size))

    def shares(self, count: int) -> Iterator["Taught"]:
        """All requests in their order, in ``count`` parts as equal as can be."""
        bounds = [len(self.requests) * number // count for number in range(count + 1)]
        return (self.slice(start, stop) for start, stop in pairwise(bounds))

    @staticmethod
    def joined(parts: Sequence["Taught"]) -> "Taught":
        """One part after the other; see :func:`streaming.requests.joined`."""
        if len(parts) == 1:
            return parts[0]
        return Taught(
            requests=joined([part.requests for part in parts]),
            features=TeacherFeatures.joined([part.features for part in parts]),
            labels=TeacherLabels.joined([part.labels for part in parts]),
        )


class Lessons:
    """What every step of a window trains on.

    Args:
        workspace: the data set; surfaces: indices of the surfaces whose candidates are trained on.
        teacher: what reads the log.
        replay: which earlier windows come again.
        size: requests of the window's own in a step.
    """

    def __init__(
        self, *, workspace: Workspace, surfaces: Sequence[int], teacher: TeacherReader, replay: Replay, size: int
    ) -> None:
        self.workspace = workspace
        self.surfaces = surfaces
        self.teacher = teacher
        self.replay = replay
        self.size = size

    def of(self, window: Window) -> Iterator[Taught]:
        """A part a step. Of what it holds only those labels are known that became so in the window they are taught in.

        Nothing where the window teaches nothing of the surfaces.
        """
        new = [self._taught(made, learned) for made, learned in self.workspace.learned_in(window)]
        steps = sum(-(-len(part.requests) // self.size) for part in new)
        again = [part for index in self.replay.draw(window.index) for part in self._again(index)] if steps else []
        earlier = [part.shares(steps) for part in again]
        for part in interleaved([(-(-len(part.requests) // self.size), part.slices(self.size)) for part in new]):
            yield Taught.joined([*(next(share) for share in earlier), part])

    def _again(self, index: int) -> Iterator[Taught]:
        window = self.workspace.dataset.window(index)
        for made, learned in self.workspace.became_known_in(window):
            yield self._taught(made, learned)

    def _taught(self, made: int, learned: Requests) -> Taught:
        requests = learned.on_surface(*self.surfaces)
        features = self.teacher.read(made, requests).features
        labels = self.teacher.labels(made, requests, features)
        return Taught(requests=requests, features=features, labels=labels)
