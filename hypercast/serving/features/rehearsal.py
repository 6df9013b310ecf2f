"""A rehearsal: before a state answers anybody, it is asked what was asked before, and must say what is on record.

An importer may have seen more than its log holds: of an import of every eighth user, the popularity of an item counts
what all of them bought. A column like that can be derived, but not from the log, and a service that derived it all the
same would be wrong without anybody noticing.
"""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from hypercast.serving.features.question import Question
from streaming.dataset import Window
from streaming.errors import DataError
from streaming.requests import Requests

if TYPE_CHECKING:
    from hypercast.serving.features.state import FeatureState


def rehearse(state: "FeatureState", window: Window, *, requests: int) -> None:
    """Feed ``state``, which stands at the start of ``window``, with it, and ask some of its ``requests`` again.

    Raises:
        DataError: a derived column is not what the data set has, by more than one unit in the last place of float32.
    """
    workspace = state.workspace
    stored = workspace.requests(window.index)
    if not len(stored):
        return
    events = _in_time(workspace.dataset.engagements(window.index))
    dense, fed = workspace.dataset.config.dense, 0
    differs = np.zeros(len(dense), dtype=np.int64)
    rows = np.unique(np.linspace(0, len(stored) - 1, min(requests, len(stored))).astype(np.int64))
    for row in rows.tolist():
        one = stored.slice(row, row + 1)
        until = int(np.searchsorted(events["time"], one.time[0], side="right"))
        state.observe({name: column[fed:until] for name, column in events.items()})
        fed = until
        wrong = np.zeros(len(dense), dtype=bool)
        for index, surface in enumerate(workspace.inputs.surfaces):
            part = one.on_surface(index)
            if len(part):
                said = state.requests([_question(state, part, surface)]).dense
                wrong |= (np.abs(said - part.dense) > np.spacing(np.abs(part.dense))).any(axis=0)
        differs += wrong
    if differs.any():
        named = [f"{name} ({count} of {len(rows)})" for name, count in zip(dense, differs, strict=True) if count]
        given = [*state.config.given, *(name for name, count in zip(dense, differs, strict=True) if count)]
        raise DataError(
            f"{workspace.dataset.path}: asked again, requests of window {window.index} have other dense features than "
            f"the data set: {', '.join(named)}. Its importer has made these of more than the engagement log holds, for "
            f"example of other users'. Let callers give them, serving: {{state: {{given: [{', '.join(given)}]}}}}, or "
            "import all users."
        )


def _question(state: "FeatureState", part: Requests, surface: str) -> Question:
    described = state.workspace.dataset.config
    return Question(
        request_id=int(part.request_id[0]),
        surface=surface,
        user_id=int(part.user_id[0]),
        time=int(part.time[0]),
        context=dict.fromkeys(described.context),
        item_ids=part.item_id,
        dense={name: part.dense[:, described.dense.index(name)] for name in state.given},
    )


def _in_time(table: pa.Table) -> dict[str, np.ndarray]:
    time = table["time"].cast(pa.int64()).to_numpy()
    order = np.argsort(time, kind="stable")
    columns = {name: table[name].to_numpy()[order] for name in ("user_id", "item_id", "surface", "action")}
    return {**columns, "time": time[order]}
