"""Stored requests as questions, and stored engagements as a stream."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pyarrow as pa

from hypercast.serving.features.question import Question, Value
from streaming.dataset import Dataset
from streaming.requests import Requests
from streaming.workspace import Workspace


def questions_of(workspace: Workspace, requests: Requests, *, given: Sequence[str]) -> list[Question]:
    """Requests of one surface as they would be asked; dense columns that must be ``given`` are as stored."""
    config = workspace.dataset.config
    window = next(each for each in workspace.dataset.windows if each.start <= requests.time[0] < each.end)
    stored = _context(workspace.dataset, window.index)
    questions = []
    for row in range(len(requests)):
        part = slice(requests.offsets[row], requests.offsets[row + 1])
        questions.append(
            Question(
                request_id=int(requests.request_id[row]),
                surface=config.surfaces[requests.surface[part][0]],
                user_id=int(requests.user_id[row]),
                time=int(requests.time[row]),
                context=stored[int(requests.request_id[row])],
                item_ids=requests.item_id[part],
                dense={name: requests.dense[part, config.dense.index(name)] for name in given},
                candidate_ids=requests.candidate_id[part],
            )
        )
    return questions


@cache
def _context(dataset: Dataset, window: int) -> dict[int, dict[str, Value]]:
    """The context of a window's requests, by their ids."""
    names = dataset.config.context
    table = dataset.requests(window, columns=["request_id", *names])
    return dict(zip(table["request_id"].to_pylist(), table.select(names).to_pylist(), strict=True))


def engagements_of(workspace: Workspace, window: int) -> dict[str, np.ndarray]:
    """A window's engagements, by user and time, as a stream brings them."""
    table = workspace.dataset.engagements(window)
    table = table.set_column(table.schema.get_field_index("time"), "time", table["time"].cast(pa.int64()))
    return {name: table[name].to_numpy() for name in ("user_id", "item_id", "surface", "action", "time")}
