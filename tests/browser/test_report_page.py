"""What a user sees: the report page, and MLflow's own pages on a run, in a real browser."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from mlflow import MlflowClient

from tests.browser import webdriver
from transfer import gain, page, predictions, report
from transfer.gain import CONTROL, CONTROL_MATCHED, TREATED
from transfer.monitor import FOUNDATION, PLATFORM, Monitor, expert_key
from transfer.predictions import Column

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,  # MLflow takes its time to start
    pytest.mark.skipif(webdriver.missing() is not None, reason=str(webdriver.missing())),
]

SURFACES = ["home", "mailer"]
HOSTILE = "<img src=x onerror=document.title='gone'>"


def table(seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    size = 300
    logit, error = random.normal(-1, 1, size), random.normal(0, 1, size)
    columns = [Column("buy", arm, each) for arm in (CONTROL, CONTROL_MATCHED, TREATED) for each in (0, 1)]
    values = {
        "request_id": np.arange(size),
        "user_id": random.integers(0, 40, size) * 7919,
        "candidate_id": np.zeros(size, dtype=np.int32),
        "time": pa.array(1_000_000 * np.arange(size)).cast(pa.timestamp("us", tz="UTC")),
        "weight": np.ones(size, dtype=np.float32),
        "stratum": np.zeros(size, dtype=np.int8),
        "label_buy": (random.random(size) < 1 / (1 + np.exp(-logit))).astype(np.float32),
    }
    for column in columns:
        off = (0.3 if column.arm == TREATED else 1.0) * error + random.normal(0, 0.05, size)
        values[column.name] = 1 / (1 + np.exp(-(logit + off)))
    schema = predictions.schema(tasks=["buy"], tags=[], columns=columns)
    return pa.table({each.name: pa.array(values[each.name]).cast(each.type) for each in schema}, schema=schema)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with predictions, its page as ``report.html``, and an MLflow store that has both."""
    folder = tmp_path_factory.mktemp("browser") / "run"
    for window in range(1, 7):
        for place, surface in enumerate(SURFACES):
            predictions.write(folder, surface=surface, window=window, table=table(100 * place + window))
    result = report.build(folder, task="buy", spans=[gain.Span("steady", 1, 6)], surfaces=SURFACES, replicates=200)
    made = page.build(folder, result, title=f"tiny {HOSTILE}", surfaces=SURFACES, replicates=100)
    page.write(made, folder / "report.html")
    with Monitor.Config().build(run=folder, platform="tiny") as monitor:
        for window in range(1, 7):
            metrics = {
                PLATFORM: {"gain_pct/treated_vs_control/home": 5.0 + window},
                FOUNDATION: {"train_loss": 1.0 / window},
                expert_key("home", TREATED, 0): {"ne": 0.7 - 0.01 * window},
            }
            monitor.log_window(window=window, end=window * 604_800_000_000, metrics=metrics)
        monitor.log_report(result)
    return folder


@pytest.fixture(scope="module")
def mlflow_ui(run: Path) -> Iterator[str]:
    """MLflow's pages on the run's store, on a free port of the loopback, as ``hypercast transfer ui`` serves them."""
    port = webdriver.free_port()
    command = "from hypercast.cli.main import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    (run / "platform.yaml").write_text(f"name: tiny\ndataset: {{path: none}}\nrun: {run}\n", encoding="utf-8")
    server = subprocess.Popen(
        [sys.executable, "-c", command, "transfer", "ui", "--run", str(run), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    try:
        webdriver.wait_for(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=30)


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_legible_in_light_and_dark(dark: bool, run: Path, tmp_path: Path) -> None:
    with webdriver.browser(dark=dark) as browser:
        browser.open((run / "report.html").as_uri())
        text = browser.read_until("What the foundation model is worth", "Ladder of arms", "Time to parity")
        browser.screenshot(tmp_path / "top.png")
        browser.run("document.querySelector('figure').scrollIntoView()")
        browser.screenshot(tmp_path / "figures.png")
        assert f"tiny {HOSTILE}" in text and browser.run("return document.title") == f"tiny {HOSTILE}"
        assert browser.run("return document.querySelectorAll('svg').length") == 3
        # Figures are drawn, inside the page, and their ink differs from the ground.
        boxes = browser.run(
            "return [...document.querySelectorAll('svg')].map(e => {const b = e.getBoundingClientRect();"
            "return [b.width, b.height, getComputedStyle(e).fill]})"
        )
        ground = browser.run("return getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
        assert all(width > 500 and height > 100 and fill != ground for width, height, fill in boxes)
        assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
        assert browser.errors() == []


def test_mlflow_shows_the_run_tree_its_metrics_and_the_report(run: Path, mlflow_ui: str, tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{run / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny").experiment_id
    (platform,) = client.search_runs([experiment], filter_string="tags.`hypercast.key` = 'platform'")
    client.log_artifact(platform.info.run_id, str(run / "report.html"), "report")
    (child,) = client.search_runs([experiment], filter_string="tags.`hypercast.key` = 'home/treated/seed0'")
    place = f"{mlflow_ui}/#/experiments/{experiment}/runs"
    with webdriver.browser() as browser:
        browser.open(place)
        browser.read_until("platform", "3 matching runs")  # the tree, its branches folded
        browser.screenshot(tmp_path / "runs.png")
        browser.open(f"{place}/{child.info.run_id}")
        browser.read_until(expert_key("home", TREATED, 0), "Parent run", "platform", "ne")
        browser.screenshot(tmp_path / "child.png")
        browser.open(f"{place}/{platform.info.run_id}")
        browser.read_until("Child runs", expert_key("home", TREATED, 0), "gain_pct/treated_vs_control/home", "11")
        browser.screenshot(tmp_path / "metrics.png")
        browser.open(f"{place}/{platform.info.run_id}/artifacts/report/report.html")
        browser.read_until("report.html", "tables")
        browser.screenshot(tmp_path / "artifact.png")
