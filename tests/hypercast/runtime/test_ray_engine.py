"""Where Ray is looked for."""

import socket

import pytest

from hypercast.runtime.ray_engine import RayEngine
from streaming.errors import ConfigError


@pytest.mark.parametrize("by_environment", [False, True])
def test_an_address_where_nobody_listens_is_one_clear_error(
    by_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        if by_environment:
            monkeypatch.setenv("RAY_ADDRESS", address)
        config = RayEngine.Config(address=None if by_environment else address)
        with pytest.raises(ConfigError, match=rf"^ray.address: cannot join '{address}'.*such as 10.0.0.1:6379"):
            RayEngine(config=config)
