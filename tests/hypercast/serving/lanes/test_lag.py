"""The lag of an event loop."""

import asyncio
import time

from hypercast.serving.lanes.lag import Lag


def test_a_loop_that_is_held_up_lags_and_catches_up() -> None:
    async def run() -> tuple[float, float, float]:
        lag = Lag()
        before = lag.seconds()
        await asyncio.sleep(0.02)
        time.sleep(0.3)  # nothing else runs meanwhile
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        held = lag.seconds()
        for _ in range(200):
            await asyncio.sleep(0.01)
            if lag.seconds() < 0.02:
                break
        return before, held, lag.seconds()

    before, held, after = asyncio.run(run())
    assert before < 0.05 < held
    assert after < held
