"""The arm ``boosted``: trees that grow on the teacher's logit, over the rows of all surfaces.

What a user of LightGBM gains from the foundation model without giving trees up: features, settings and schedule are
those of the reference arm ``lightgbm`` (:mod:`transfer.reference.boosting`), which knows no teacher.
"""

from pathlib import Path

import numpy as np

from experts.past import PastEmbeddings
from experts.teacher import TeacherReader
from hypercast.pins import Pin
from hypercast.store.tae_log import TaeLog
from streaming.requests import Requests
from streaming.workspace import Workspace
from transfer.gain import BOOSTED
from transfer.reference.boosting import Boosting, Teacher


def boosted(
    config: Boosting.Config,
    *,
    workspace: Workspace,
    task: str,
    seed: int,
    run: Path,
    log: TaeLog,
    pin: Pin,
    embedding: int,
    delay: int = 0,
) -> Boosting:
    """Trees with a teacher.

    Args:
        config: of the trees.
        run: folder that the predictions go to.
        log, pin: of the teacher, and what of it is read.
        embedding: width of its ``penultimate``, which segments are checked for.
        delay: see :class:`experts.teacher.TeacherReader`.
    """
    reader = TeacherReader(
        log=log,
        pin=pin,
        workspace=workspace,
        widths={"penultimate": embedding},
        past=PastEmbeddings.Config(),
        delay=delay,
    )
    teacher = logits(reader, task=workspace.inputs.tasks.index(task))
    return config.build(workspace=workspace, task=task, seed=seed, run=run, arm=BOOSTED, teacher=teacher)


def logits(reader: TeacherReader, *, task: int) -> Teacher:
    """What ``reader`` finds in the log about the task of that index."""

    def read(window: int, requests: Requests) -> np.ndarray:
        features = reader.read(window, requests).features
        return np.where(features.present_C.numpy() > 0, features.logit_CT[:, task].numpy(), np.nan)

    return read
