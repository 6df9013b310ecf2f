"""A service whose models are compact: what it answers, logs, tells and exchanges."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hypercast.codec import arrow
from hypercast.serving.config import ServingConfig
from hypercast.serving.deploy import FOLDER
from hypercast.serving.features.question import Question
from hypercast.serving.logs import served
from hypercast.serving.models.bundle import BundleLoader
from hypercast.serving.precision.loader import SUFFIX
from hypercast.store.segment import as_numpy
from streaming.dataset import Window
from tests.hypercast.serving.conftest import Played
from tests.hypercast.serving.test_service import swap_under_load
from tests.hypercast.serving.wire import ask
from tests.hypercast.serving.world import SECOND, configured, scores, serving

TABLES = {"kernels": [], "tables": ["int8"], "requests": 16}
"""A choice that is the same every time: tables are chosen by their size."""


def test_answers_and_what_is_logged_of_them_are_the_compact_models(played: Played, tmp_path: Path) -> None:
    config = configured(played, tmp_path, precision=TABLES | {"watch": {"share": 1.0}})
    with serving(config) as world:
        asked = world.question(at=1)
        told = world.rank(at=1)
        bundle = world.service.swap.current
        assert bundle.foundation is not None
        assert told["models"]["version"] == bundle.version and bundle.version.endswith(SUFFIX)
        models = ask(world.port, "GET", "/v1/models")[1]
        assert models["precision"][bundle.foundation.snapshot.name]["kernels"] == {"table": "int8"}
        for label in ("FM", "surface_0/treated"):
            assert world.value("precision_models_total", model=label, outcome="compact") == 1
            assert world.value("precision_answers_total", model=label, kernels="compact") > 0
            assert 0 <= world.value("precision_ne_cost_percent", model=label) <= 0.05
        watched, answered = (
            world.value(f"precision_{name}_total", model="FM", **more)
            for name, more in (("watched", {}), ("answers", {"kernels": "compact"}))
        )
        assert watched == answered  # warming included
        text = ask(world.port, "GET", "/metrics")[1]
        assert b'hypercast_precision_models_total{model="FM",outcome="compact"} 1.0' in text
        question = Question(
            **{name: asked[name] for name in ("surface", "user_id", "time")},
            request_id=told["request_id"],
            context=dict.fromkeys(("hour", "store", "weekday")),
            item_ids=np.array(asked["item_ids"]),
            dense={name: np.array(values, np.float32) for name, values in asked["dense"].items()},
        )
        requests = world.service.state.requests([question])
        said = bundle.foundation.score(requests)
        np.testing.assert_array_equal(
            scores(told).astype(np.float32), bundle.experts["surface_0"].score(requests, said.features())
        )
        now = world.now
    plain = BundleLoader(config=config, workspace=played.workspace()).load()
    assert plain.foundation is not None
    exact = plain.foundation.score(requests)
    np.testing.assert_allclose(
        scores(told), plain.experts["surface_0"].score(requests, exact.features()), rtol=0.02, atol=1e-3
    )
    window = Window(index=99, start=now, end=now + 60 * SECOND)
    rows = pa.concat_tables(served.parts(config.run / FOLDER / "served", window))
    rows = rows.filter(pa.array(as_numpy(rows, "request_id") == told["request_id"]))
    width = plain.foundation.snapshot.dims["penultimate"]
    logged = arrow.decode(rows[served.VECTOR + "penultimate"], codec="float32", width=width)
    np.testing.assert_array_equal(logged, said.vectors["penultimate"])
    assert (logged != exact.vectors["penultimate"]).any()
    np.testing.assert_allclose(logged, exact.vectors["penultimate"], atol=0.05)


def test_compact_snapshots_are_swapped_under_load(played: Played, tmp_path: Path) -> None:
    with serving(configured(played, tmp_path, precision=TABLES)) as world:
        swap_under_load(world, swaps=4)
        assert world.service.swap.current.version.endswith(SUFFIX)
        assert world.value("precision_models_total", model="FM", outcome="compact") >= 5


def test_precision_is_off_unless_it_is_asked_for() -> None:
    assert ServingConfig().precision is None
    usual = ServingConfig.model_validate({"precision": {}}).precision
    assert usual is not None and (usual.watch.share, usual.requests) == (0.01, 128)
    for wrong, says in (({"precise": 1}, "precise"), ({"statistics": {"keep": 5}}, "live traffic are not kept")):
        with pytest.raises(ValueError, match=says):
            ServingConfig.model_validate({"precision": wrong})
