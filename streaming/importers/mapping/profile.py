"""What an import would make of the source, and what would go wrong: the answer to ``--dry-run``."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streaming.importers.mapping.columns import Int
from streaming.importers.mapping.config import MappingConfig
from streaming.importers.mapping.findings import Finding, findings
from streaming.importers.mapping.grouping import group
from streaming.importers.mapping.prepare import Prepared


@dataclass(frozen=True, kw_only=True)
class Bad:
    """Bad rows of one kind, and the first of them."""

    reason: str
    rows: int
    first: str


@dataclass(frozen=True, kw_only=True)
class SurfaceProfile:
    """Rows on one surface, and for each task the share of known labels that are 1, None where none is known."""

    name: str
    rows: int
    rates: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Counts of the good rows.

    Attributes:
        first, last: earliest and latest row or engagement, ISO 8601 in UTC.
        largest_window: rows of the window that has most.
        empty_windows: windows without a row.
        ties: rows that share user and time with another row.
        candidates_per_request: smallest, median, mean, largest; before negatives are drawn.
        nulls: by column, of all rows.
    """

    rows: int
    bad: list[Bad]
    users: int
    items: int
    engagements: int
    surfaces: list[SurfaceProfile]
    first: str
    last: str
    windows: int
    largest_window: int
    empty_windows: int
    ties: int
    requests: int
    candidates_per_request: dict[str, float]
    nulls: dict[str, int]
    findings: list[Finding]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def profile(config: MappingConfig, prepared: Prepared) -> Profile:
    """Profile what was prepared. Reads one window at a time."""
    tally, quarantine = prepared.tally, prepared.quarantine
    sizes, ties = _requests(config, prepared)
    names = prepared.surfaces.names
    surfaces = [
        SurfaceProfile(
            name=name,
            rows=int(tally.shown[number]),
            rates={
                task: _rate(tally.positive[number, index], tally.known[number, index])
                for index, task in enumerate(tally.tasks)
            },
        )
        for number, name in sorted(enumerate(names), key=lambda each: each[1])
    ]
    counts = prepared.rows.rows
    return Profile(
        rows=int(counts.sum()),
        bad=[
            Bad(reason=reason, rows=count, first=quarantine.first[reason])
            for reason, count in quarantine.reasons.most_common()
        ],
        users=len(prepared.users.codes()),
        items=len(prepared.items.codes()),
        engagements=tally.engagements,
        surfaces=surfaces,
        first=_iso(tally.first),
        last=_iso(tally.last),
        windows=len(counts),
        largest_window=int(counts.max()),
        empty_windows=int((counts == 0).sum()),
        ties=ties,
        requests=len(sizes),
        candidates_per_request={
            "smallest": int(sizes.min()),
            "median": float(np.median(sizes)),
            "mean": round(float(sizes.mean()), 2),
            "largest": int(sizes.max()),
        },
        nulls=tally.null,
        findings=list(findings(config, prepared, sizes, ties)),
    )


def _requests(config: MappingConfig, prepared: Prepared) -> tuple[npt.NDArray[np.int32], int]:
    """Rows of every request, and how many rows share user and time with another."""
    sizes, ties = [np.zeros(0, np.int32)], 0
    for window in range(len(prepared.rows.rows)):
        table = prepared.rows.window(window)
        user, time, request = (table[name].to_numpy() for name in ("user", "time", "request"))
        found = group(user=user, time=time, request=request, within=config.requests.within)
        sizes.append(np.diff(found.offsets).astype(np.int32))
        order = np.lexsort((time, user))
        same = (np.diff(user[order]) == 0) & (np.diff(time[order]) == 0)
        ties += int((np.append(same, False) | np.append(False, same)).sum()) if len(order) else 0
    return np.concatenate(sizes), ties


def _rate(positive: np.int64, known: np.int64) -> float | None:
    return round(float(positive / known), 6) if known else None


def _iso(time: int | Int) -> str:
    return f"{np.datetime64(int(time), 'us')}+00:00"
