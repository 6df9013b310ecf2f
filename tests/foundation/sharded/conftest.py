"""A group of one worker in the test's own process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from foundation.sharded.group import Group


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Group]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield Group()
    dist.destroy_process_group()
