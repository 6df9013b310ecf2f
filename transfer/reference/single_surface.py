"""A data set as one surface alone knows it: what crossing surfaces is worth shows in comparison with it."""

from dataclasses import dataclass
from functools import cached_property

from streaming.errors import ConfigError
from streaming.history import EngagementLog
from streaming.requests import Requests
from streaming.workspace import Workspace


@dataclass(frozen=True)
class SurfaceWorkspace(Workspace):
    """A workspace with the requests' candidates and the engagements of one surface only.

    Dense features stay as the data set has them, for every arm alike.

    Raises:
        ConfigError: the data set has no such surface.
    """

    surface: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.surface not in self.dataset.config.surfaces:
            raise ConfigError(f"no surface '{self.surface}'; allowed are {', '.join(self.dataset.config.surfaces)}.")

    @cached_property
    def engagements(self) -> EngagementLog:
        return self._index.only(self.index)

    @property
    def index(self) -> int:
        """Number of the surface."""
        return self.dataset.config.surfaces.index(self.surface)

    def requests(self, window: int) -> Requests:
        """The window's requests that have a candidate on the surface, with no others, in time order."""
        return super().requests(window).on_surface(self.index)
