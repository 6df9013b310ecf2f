"""The probe: a fixed set of candidates that every snapshot scores, to see how far its embeddings have moved.

It only measures: nothing is trained on it and it is never served. It is drawn once, from the window that had just been
trained on when the first snapshot was released, and kept as ids, so that every later snapshot scores the same::

    FOLDER/probe.json     window, request ids, candidate ids, bandwidth of the kernel, SHA-256 of these

Shape legend: N candidates of the probe.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hypercast.errors import RegistryError, StoreError
from hypercast.objects import record
from hypercast.store.adapter import Adapter
from hypercast.store.engine import Damage
from streaming.errors import DataError
from streaming.requests import Requests

Integers = NDArray[np.int64]
REMEDY = "Restore the file from a copy; or delete it, and drift is measured on another probe from now on."
"""What to do about a damaged probe."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Attributes: ``window`` that it was drawn from; ``request_id`` and ``candidate_id`` int64 [N], in the order of the
    request log; ``bandwidth`` of the kernel, from the first snapshot that scored it.
    """

    window: int
    request_id: Integers
    candidate_id: Integers
    bandwidth: float

    @staticmethod
    def read(folder: Path) -> "Probe | None":
        """The probe that was kept in ``folder``, or None.

        Raises:
            RegistryError: the file is damaged.
        """
        try:
            values = record.read(folder / "probe.json", remedy=REMEDY)
        except FileNotFoundError:
            return None
        return Probe(
            window=values["window"],
            request_id=np.array(values["request_id"], np.int64),
            candidate_id=np.array(values["candidate_id"], np.int64),
            bandwidth=values["bandwidth"],
        )

    def write(self, folder: Path) -> None:
        """Keep it in ``folder``, whole or not at all."""
        values = {
            "window": self.window,
            "request_id": self.request_id.tolist(),
            "candidate_id": self.candidate_id.tolist(),
            "bandwidth": self.bandwidth,
        }
        record.write(folder / "probe.json", values)

    def rows(self, requests: Requests) -> Integers:
        """Rows of its candidates among those of its window's ``requests`` of :func:`requests_of`, int64 [N].

        Raises:
            DataError: a candidate is not there any more.
        """
        known = {key: row for row, key in enumerate(_keys(requests))}
        wanted = list(zip(self.request_id.tolist(), self.candidate_id.tolist(), strict=True))
        lost = [key for key in wanted if key not in known]
        if lost:
            raise DataError(
                f"probe: request {lost[0][0]} of window {self.window} has no candidate {lost[0][1]} any more: the data "
                "set has changed under the run. Start a run in a new folder."
            )
        return np.array([known[key] for key in wanted], np.int64)

    def requests_of(self, requests: Requests) -> Requests:
        """Those of its window's ``requests`` that it has candidates of."""
        return requests.take(np.flatnonzero(np.isin(requests.request_id, self.request_id)))


def draw(requests: Requests, *, window: int, size: int, candidates: int, seed: int) -> Probe:
    """Choose candidates of one window, evenly among requests; the bandwidth is still to be set.

    Args:
        requests: of the window.
        window: its index.
        size: how many requests, at most.
        candidates: how many candidates in all, at most.
        seed: of the choice.
    """
    random = np.random.default_rng(seed)
    chosen = np.sort(random.permutation(np.flatnonzero(np.diff(requests.offsets)))[:size])
    share = max(candidates // max(len(chosen), 1), 1)
    rows = [
        np.sort(random.permutation(np.arange(*requests.offsets[[request, request + 1]]))[:share]) for request in chosen
    ]
    index = np.concatenate([*rows, np.zeros(0, np.int64)]).astype(np.int64)
    return Probe(
        window=window,
        request_id=requests.request_id[requests.owner[index]],
        candidate_id=requests.candidate_id[index],
        bandwidth=1.0,
    )


def verify(folder: Path) -> list[Damage]:
    """What is not what was written in ``folder``: the probe, and adapters that were fitted on it."""
    damages = []
    try:
        Probe.read(folder)
    except RegistryError as error:
        damages.append(Damage(where=str(folder / "probe.json"), what=str(error), remedy=REMEDY))
    for path in sorted(folder.glob("*.adapter")):
        remedy = f"Delete {path}: it is fitted again when its snapshot is compared again."
        try:
            adapter = Adapter.from_bytes(path.read_bytes(), where=str(path))
        except FileNotFoundError:
            continue  # its snapshot is gone, and so is it, since it was listed
        except StoreError as error:
            damages.append(Damage(where=str(path), what=str(error), remedy=remedy))
            continue
        if path.stem != f"{adapter.source}-to-{adapter.target}":
            what = f"{path}: it is the adapter from {adapter.source} to {adapter.target}"
            damages.append(Damage(where=str(path), what=what, remedy=remedy))
    return damages


def _keys(requests: Requests) -> list[tuple[int, int]]:
    return list(zip(requests.request_id[requests.owner].tolist(), requests.candidate_id.tolist(), strict=True))
