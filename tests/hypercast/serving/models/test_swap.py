"""Newer models are looked for as long as the service runs, whatever is wrong with some of them."""

import contextlib
import logging

import pytest

from hypercast.errors import StoreError
from hypercast.serving.metrics import Metrics
from hypercast.serving.models.bundle import Bundle
from hypercast.serving.models.swap import Swap
from tests.hypercast.serving.world import until


def bundle(version: str) -> Bundle:
    return Bundle(version=version, foundation=None, pinned={}, experts={}, fallback={}, versions={})


class Scripted:
    """Has newer models whenever it is asked; loads them, or raises what it is given to."""

    def __init__(self) -> None:
        self.newest_version, self.raises = 0, list[Exception]()

    def newest(self) -> str:
        self.newest_version += 1
        return str(self.newest_version)

    def load(self) -> Bundle:
        if self.raises:
            raise self.raises.pop()
        return bundle(str(self.newest_version))


@pytest.mark.parametrize(
    "error", [StoreError("no such run."), OSError(5, "disk"), RuntimeError("shapes"), KeyError("w")]
)
def test_whatever_loading_raises_the_next_ones_are_looked_for(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    loader, metrics, warmed = Scripted(), Metrics(), list[str]()
    caplog.set_level(logging.WARNING)
    with contextlib.closing(
        Swap(loader=loader, warm=lambda new: warmed.append(new.version), every=0.005, metrics=metrics)
    ) as swap:
        until(lambda: metrics.value("swaps_total", outcome="swapped") >= 1)
        loader.raises = [error] * 5
        until(lambda: not loader.raises)
        after = metrics.value("swaps_total", outcome="swapped")
        until(lambda: metrics.value("swaps_total", outcome="swapped") > after)
        assert swap.current.version == warmed[-1]
    assert metrics.value("swaps_total", outcome="failed") == 5
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "stays in use" in caplog.text


def test_models_that_cannot_be_warmed_are_not_used() -> None:
    loader, metrics = Scripted(), Metrics()

    def warm(new: Bundle) -> None:
        if new.version != "0":
            raise ZeroDivisionError

    with contextlib.closing(Swap(loader=loader, warm=warm, every=0.005, metrics=metrics)) as swap:
        until(lambda: metrics.value("swaps_total", outcome="failed") >= 3)
        assert swap.current.version == "0"
