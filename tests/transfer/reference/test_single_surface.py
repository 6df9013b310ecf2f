"""What one surface alone knows."""

import numpy as np
import pytest

from streaming.errors import ConfigError
from streaming.workspace import Workspace
from transfer.reference.single_surface import SurfaceWorkspace


@pytest.mark.parametrize("index", [0, 2])
def test_only_its_own_requests_and_engagements(workspace: Workspace, index: int) -> None:
    own = SurfaceWorkspace(workspace.dataset, f"surface_{index}")
    assert set(own.engagements.surface.tolist()) == {index}
    assert len(own.engagements.item) == (workspace.engagements.surface == index).sum() > 0
    for window in (1, 4):
        whole, part = workspace.requests(window), own.requests(window)
        assert set(part.surface.tolist()) == {index}
        assert len(part.item) == (whole.surface == index).sum() > 0
        np.testing.assert_array_equal(part.candidate_id, whole.candidate_id[whole.surface == index])
        assert (np.diff(part.offsets) > 0).all()


def test_what_it_learns_is_its_own(workspace: Workspace) -> None:
    own = SurfaceWorkspace(workspace.dataset, "surface_1")
    learned = list(own.learned_in(workspace.dataset.window(2)))
    assert learned and all((requests.surface == 1).all() for _, requests in learned)


def test_unknown_surface(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="no surface 'mailer'; allowed are surface_0, surface_1, surface_2"):
        SurfaceWorkspace(workspace.dataset, "mailer")
